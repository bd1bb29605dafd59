//! The pairs that `synth` wrote, as training rows.

use asyncthink_data::TrainingRow;
use asyncthink_data::parquet::{SftPair, read_sft_pairs};

use crate::error::{Error, Result};
use crate::models::sft_tokenizer;
use crate::problems::check_synth_is_complete;
use crate::settings::SftSettings;
use asyncthink_gradient::PolicyModel;

/// Most pairs that are held out to measure the loss on.
const MAX_HELD_OUT: usize = 256;

/// The pairs as rows, in the order of the file.
pub(super) struct Rows {
    pub(super) train: Vec<TrainingRow>,
    /// Empty unless `eval_every_steps` asks for them.
    pub(super) held_out: Vec<TrainingRow>,
}

pub(super) fn read_rows(settings: &SftSettings) -> Result<Rows> {
    let path = settings.run.layout.synth().pairs();
    if !path.exists() {
        return Err(Error::NoRows { path });
    }
    check_synth_is_complete(&settings.run.layout)?;
    let tokenizer = sft_tokenizer(&settings.run)?;
    let pairs = read_sft_pairs(&path)?;
    let num_train = match settings.section.eval_every_steps {
        Some(_) => first_held_out(&pairs),
        None => pairs.len(),
    };
    let mut train = pairs
        .iter()
        .map(|pair| pair.tokenize(&tokenizer))
        .collect::<Result<Vec<_>, _>>()?;
    let held_out = train.split_off(num_train);
    if train.is_empty() {
        return Err(Error::NoRows { path });
    }
    Ok(Rows { train, held_out })
}

/// Index of the first held-out pair: one twentieth of the pairs, at most [`MAX_HELD_OUT`], in whole traces from the end.
fn first_held_out(pairs: &[SftPair]) -> usize {
    let wanted = (pairs.len() / 20).min(MAX_HELD_OUT);
    let mut first = pairs.len() - wanted;
    while first < pairs.len() && first > 0 && pairs[first].trace_id == pairs[first - 1].trace_id {
        first += 1;
    }
    first
}

/// Fails where a row does not fit into the model's context.
pub(super) fn check_lengths(rows: &[TrainingRow], model: &PolicyModel) -> Result<()> {
    let limit_tokens =
        usize::try_from(model.config().max_position_embeddings).unwrap_or(usize::MAX);
    match rows
        .iter()
        .enumerate()
        .find(|(_, row)| row.len() > limit_tokens)
    {
        None => Ok(()),
        Some((index, row)) => Err(Error::RowTooLong {
            row: index,
            num_tokens: row.len(),
            limit_name: "the model's `max_position_embeddings`",
            limit_tokens,
        }),
    }
}
