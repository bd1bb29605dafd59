//! Rules for `[model]`.

use super::view::Rules;
use crate::error::ErrorKind;

pub(super) fn model(rules: &mut Rules<'_>) {
    if !rules.has("model") {
        return;
    }
    match (rules.has("model.path"), rules.has("model.init")) {
        (true, true) => rules.conflict(
            "model.path",
            "a model is either loaded or new, and `[model.init]` is there too",
            "remove `path` or `[model.init]`",
        ),
        (false, false) => rules.push(
            ErrorKind::MissingKey,
            "model",
            "neither `path` nor `[model.init]`",
            "add `path = \"...\"`, the folder of a Hugging Face model, or `[model.init]`",
        ),
        _ => {}
    }
    if !rules.has("model.init") {
        return;
    }
    if rules.has("model.adapter_base") {
        rules.conflict(
            "model.adapter_base",
            "is the base of adapters in `model.path`, and `[model.init]` makes a new model",
            "remove it, or give an adapter folder as `model.path`",
        );
    }
    if rules.has("model.lora") {
        rules.conflict(
            "model.lora",
            "adapters need a model to stand on, and `[model.init]` makes a new one that is saved nowhere",
            "give a trained model as `model.path`, or remove `[model.lora]`",
        );
    }
    if let (Some(heads), Some(kv_heads)) = (
        rules.number("model.init.num_heads"),
        rules.number("model.init.num_kv_heads"),
    ) && kv_heads >= 1.0
        && heads % kv_heads != 0.0
    {
        rules.conflict(
            "model.init.num_heads",
            &format!("is no multiple of `num_kv_heads` = {kv_heads}"),
            "every key and value head serves the same number of query heads",
        );
    }
    if let Some(head_dim) = rules.number("model.init.head_dim")
        && head_dim % 2.0 != 0.0
    {
        rules.conflict(
            "model.init.head_dim",
            "is odd, and rotary embeddings turn pairs",
            "choose an even number",
        );
    }
    let longest = [
        "organizer_max_tokens",
        "organizer_total_tokens",
        "worker_max_tokens",
    ]
    .into_iter()
    .filter_map(|name| Some((name, rules.number(&format!("protocol.{name}"))?)))
    .max_by(|a, b| a.1.total_cmp(&b.1));
    if let (Some((name, tokens)), Some(limit)) =
        (longest, rules.number("model.init.max_position_embeddings"))
        && tokens >= limit
    {
        rules.conflict(
            "model.init.max_position_embeddings",
            &format!("leaves no room for a prompt: `protocol.{name}` is {tokens}"),
            "raise it above prompt, decoded and injected tokens together",
        );
    }
}
