//! The pairs that `synth` wrote, as training rows.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Empty unless `eval_every_steps` asks for them, and where all pairs are of one problem.
    pub(super) held_out: Vec<TrainingRow>,
}

pub(super) fn read_rows(settings: &SftSettings) -> Result<Rows> {
    let path = settings.run.layout.synth().pairs();
    if !path.exists() {
        return Err(Error::NoRows { path });
    }
    check_synth_is_complete(&settings.run.layout)?;
    let tokenizer = sft_tokenizer(&settings.run)?;
    let form = settings.run.card.templates()?.form();
    let pairs = read_sft_pairs(&path)?;
    let held_out_problems = match settings.section.eval_every_steps {
        Some(_) => held_out_problems(&pairs),
        None => BTreeSet::new(),
    };
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for pair in &pairs {
        if !held_out_problems.contains(&pair.problem_index) {
            train.push(pair.tokenize(&tokenizer, form)?);
        } else if held_out.len() < MAX_HELD_OUT {
            held_out.push(pair.tokenize(&tokenizer, form)?);
        }
    }
    if train.is_empty() {
        return Err(Error::NoRows { path });
    }
    Ok(Rows { train, held_out })
}

/// Problems whose pairs are held out, all of them: the last ones of the file, until they have a twentieth of the pairs.
///
/// Several traces may be of one problem, whose solutions a held-out pair would share with training. Where problems are few one
/// alone may have more than a twentieth; half of the pairs stay to train on, so of a single problem nothing is held out.
fn held_out_problems(pairs: &[SftPair]) -> BTreeSet<u64> {
    let mut num_pairs: BTreeMap<u64, usize> = BTreeMap::new();
    for pair in pairs {
        *num_pairs.entry(pair.problem_index).or_default() += 1;
    }
    let wanted = (pairs.len() / 20).clamp(1, MAX_HELD_OUT);
    let mut num_held_out = 0;
    let mut problems = BTreeSet::new();
    for pair in pairs.iter().rev() {
        if num_held_out >= wanted {
            break;
        }
        let with_it = num_held_out + num_pairs[&pair.problem_index];
        if 2 * with_it <= pairs.len() && problems.insert(pair.problem_index) {
            num_held_out = with_it;
        }
    }
    problems
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

#[cfg(test)]
mod tests {
    use asyncthink_data::parquet::Role;

    use super::*;

    fn pairs(problems: impl IntoIterator<Item = u64>) -> Vec<SftPair> {
        let pair = |(trace_id, problem_index)| SftPair {
            trace_id,
            role: Role::Organizer,
            worker_index: None,
            problem_index,
            prompt: String::new(),
            response: String::new(),
            injected: Vec::new(),
            teacher: String::new(),
            seed: 0,
            topology: String::new(),
        };
        (0..).zip(problems).map(pair).collect()
    }

    #[test]
    fn whole_problems_are_held_out() {
        // Traces cycle over the problems: 400 of 100 problems, 4 each.
        let held_out = held_out_problems(&pairs((0..400).map(|trace| trace % 100)));
        assert_eq!(held_out, (95..100).collect());
        // The cycle ends within the problems.
        let held_out = held_out_problems(&pairs((0..130).map(|trace| trace % 100)));
        assert_eq!(held_out, [27, 28, 29].into());
        // At most so many pairs, unless one problem has more.
        let held_out = held_out_problems(&pairs((0..10_000).map(|trace| trace % 5000)));
        assert_eq!(held_out.len(), MAX_HELD_OUT / 2);
    }

    #[test]
    fn few_problems_leave_one_to_train_on() {
        assert_eq!(held_out_problems(&pairs([0, 1, 0, 1])), [1].into());
        assert_eq!(held_out_problems(&pairs([3; 100])), BTreeSet::new());
        assert_eq!(held_out_problems(&[]), BTreeSet::new());
        let skewed = (0..100).map(|trace| u64::from(trace < 2));
        assert_eq!(held_out_problems(&pairs(skewed)), [1].into());
    }
}
