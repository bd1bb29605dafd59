//! Rows of random tokens to train on.

use asyncthink_data::{TokenId, TrainingRow};
use asyncthink_recipe::BenchTrainSection;
use asyncthink_rollout::mix_seed;

use super::cost::Rows;
use crate::failure::Failure;

/// The rows of a repeat: lengths are those of every repeat, tokens its own.
///
/// # Errors
/// When a row is not one that can be trained on.
pub(crate) fn random_rows(
    bench: &BenchTrainSection,
    vocab_size: i64,
    seed: u64,
    repeat: u64,
) -> Result<Vec<TrainingRow>, Failure> {
    let [least, most] = bench.row_tokens.map(|tokens| tokens as u64);
    let vocab = u64::try_from(vocab_size).unwrap_or(1).max(1);
    (0..bench.num_rows as u64)
        .map(|row| {
            let len = least + mix_seed(seed, row) % (most - least + 1);
            let ids_seed = mix_seed(mix_seed(seed, repeat + 1), row);
            let ids: Vec<TokenId> = (0..len)
                .map(|place| mix_seed(ids_seed, place) % vocab)
                .map(|id| TokenId(u32::try_from(id).unwrap_or(0)))
                .collect();
            let (prompt, response) = ids.split_at(prompt_tokens(ids.len(), bench.trained_share));
            Ok(TrainingRow::sft(prompt, response)?)
        })
        .collect()
}

/// Tokens of a row that are not trained: the first one at least, and not all of them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of a count"
)]
fn prompt_tokens(row_tokens: usize, trained_share: f64) -> usize {
    let trained = (row_tokens as f64 * trained_share).round() as usize;
    (row_tokens - trained.min(row_tokens)).clamp(1, row_tokens - 1)
}

/// The work of a forward pass over rows, in micro-batches.
pub(crate) fn work(rows: &[TrainingRow], num_micro_batches: usize) -> Rows {
    let sum = |value: &dyn Fn(&TrainingRow) -> f64| rows.iter().map(value).sum();
    let len = |row: &TrainingRow| row.len() as f64;
    Rows {
        steps: num_micro_batches as f64,
        computed: sum(&len),
        sampled: sum(&|row| row.num_trained() as f64),
        attended: sum(&|row| 0.5 * len(row) * (len(row) + 1.0)),
        cached: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(row_tokens: [usize; 2], trained_share: f64) -> BenchTrainSection {
        BenchTrainSection {
            num_rows: 40,
            row_tokens,
            trained_share,
            micro_batch_tokens: None,
            activation_checkpointing: None,
            optimizer: true,
            num_repeats: 1,
        }
    }

    #[test]
    fn lengths_stay_from_repeat_to_repeat_and_tokens_change() {
        let bench = bench([5, 9], 0.5);
        let rows = random_rows(&bench, 100, 1, 0).unwrap();
        let lens: Vec<usize> = rows.iter().map(TrainingRow::len).collect();
        assert_eq!(lens.iter().min(), Some(&5));
        assert_eq!(lens.iter().max(), Some(&9));
        assert!(
            rows.iter()
                .all(|row| row.num_trained() == row.len().div_ceil(2))
        );
        let again = random_rows(&bench, 100, 1, 1).unwrap();
        let lens_again: Vec<usize> = again.iter().map(TrainingRow::len).collect();
        assert_eq!(lens_again, lens);
        assert_ne!(again, rows);
    }

    #[test]
    fn every_row_has_a_token_to_train_and_one_before_it() {
        for share in [1e-9, 0.5, 1.0] {
            for row in random_rows(&bench([2, 4], share), 3, 1, 0).unwrap() {
                assert!((1..row.len()).contains(&row.num_trained()), "{share}");
            }
        }
    }

    #[test]
    fn a_token_attends_to_itself_and_those_before_it() {
        let rows = random_rows(&bench([3, 3], 1.0), 100, 1, 0).unwrap();
        let work = work(&rows, 2);
        assert!((work.attended - 40.0 * 6.0).abs() < 1e-9);
        assert!((work.sampled - 40.0 * 2.0).abs() < 1e-9);
    }
}
