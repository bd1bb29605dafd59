//! Rules for `[bench.train]`.

use super::{Rules, vocabulary};

const ROW_TOKENS: &str = "bench.train.row_tokens";

pub(crate) fn train(rules: &mut Rules<'_>) {
    if !rules.has("bench.train") {
        return;
    }
    vocabulary(rules, "bench.train");
    let Some((least, most)) = rules.pair(ROW_TOKENS) else {
        return;
    };
    if least > most {
        rules.conflict(
            ROW_TOKENS,
            "the first number is larger than the second",
            "write the smallest number of tokens first, for example `[154, 512]`",
        );
        return;
    }
    if let Some(limit) = rules.number("model.init.max_position_embeddings")
        && rules.has("model.init")
        && most > limit
    {
        rules.conflict(
            ROW_TOKENS,
            &format!(
                "makes rows of up to {most} tokens, more than `model.init.max_position_embeddings` = {limit}"
            ),
            "lower it, or raise `max_position_embeddings`",
        );
    }
}
