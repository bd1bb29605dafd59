//! The policy loss against a plain reference.
//!
//! `scripts/golden/grpo_loss.py` wrote `tests/golden/grpo_loss.json` in double precision with nothing but the standard
//! library. Everything between a row and its gradient is exercised: advantages, weights, layout, chunked head, loss.

use std::sync::Arc;

use asyncthink_algorithms::advantage::{MeanCentred, MeanStd};
use asyncthink_algorithms::loss::is_clipped;
use asyncthink_algorithms::{
    AdvantageEstimator, Aggregation, BatchTotals, Clip, ClippedPolicyLoss, Group, KlPenalty,
    PolicyObjective, RowCount,
};
use asyncthink_data::{EpisodeIndex, TokenId, TrainingRow};
use asyncthink_recipe::KlEstimator;
use asyncthink_torch::Head;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::head::{self, HeadSettings};
use crate::micro_batch::{MicroBatch, to_host};
use crate::token_loss::{MicroBatchLoss, OldLogp};

/// Largest difference that counts as equal: the reference is f64, the loss f32.
const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Golden {
    group_size: usize,
    rewards: Vec<f64>,
    rows: Vec<Row>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Row {
    episode: u32,
    ids: Vec<u32>,
    mask: Vec<bool>,
    old: Vec<f32>,
    reference: Vec<f32>,
    logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Case {
    advantage: String,
    advantage_eps: f64,
    aggregation: String,
    constant_length_tokens: u64,
    clip_eps_low: f64,
    clip_eps_high: f64,
    kl_beta: f64,
    temperature: f64,
    loss: f64,
    clip_share: f64,
    gradient: Vec<Vec<Vec<f64>>>,
}

impl Golden {
    fn load() -> Self {
        serde_json::from_str(include_str!("../tests/golden/grpo_loss.json")).unwrap()
    }

    fn advantages(&self, case: &Case) -> Vec<f64> {
        let advantage: &dyn AdvantageEstimator = match case.advantage.as_str() {
            "mean_centred" => &MeanCentred,
            _ => &MeanStd {
                eps: case.advantage_eps,
            },
        };
        self.rewards
            .chunks(self.group_size)
            .flat_map(|group| Group::new(group).unwrap().advantages(advantage))
            .collect()
    }

    fn training_rows(&self, case: &Case) -> Vec<TrainingRow> {
        let advantages = self.advantages(case);
        self.rows
            .iter()
            .map(|row| {
                #[expect(clippy::cast_possible_truncation, reason = "rows hold f32")]
                let advantage = advantages[row.episode as usize] as f32;
                TrainingRow::policy(
                    row.ids.iter().copied().map(TokenId).collect(),
                    row.mask.clone(),
                    row.old.clone(),
                    advantage,
                    EpisodeIndex(row.episode),
                )
                .unwrap()
            })
            .collect()
    }

    /// Loss, gradient by row and number of clipped tokens, with `rows_at_a_time` rows in a micro-batch.
    fn evaluate(
        &self,
        case: &Case,
        rows_at_a_time: usize,
        chunk_tokens: i64,
    ) -> (f64, Vec<Vec<f64>>, f64) {
        let rows = self.training_rows(case);
        let counts: Vec<RowCount> = rows
            .iter()
            .map(|row| RowCount {
                episode: row.episode().0,
                num_trained: row.num_trained(),
            })
            .collect();
        let weights = match case.aggregation.as_str() {
            "token_mean" => Aggregation::TokenMean,
            "episode_mean" => Aggregation::EpisodeMean,
            _ => Aggregation::ConstantLength {
                tokens: case.constant_length_tokens,
            },
        }
        .weights(&counts, BatchTotals::of(&counts));
        let clip = Clip {
            low: case.clip_eps_low,
            high: case.clip_eps_high,
            dual: None,
        };
        let loss = PolicyObjective::new(Arc::new(ClippedPolicyLoss { clip })).with_kl(KlPenalty {
            beta: case.kl_beta,
            estimator: KlEstimator::K3,
            is_bias_corrected: false,
        });
        let settings = HeadSettings {
            temperature: case.temperature,
            chunk_tokens,
            entropy: false,
        };
        let (mut value, mut gradient, mut num_clipped) = (0.0, Vec::new(), 0.0);
        let indices: Vec<usize> = (0..rows.len()).collect();
        for members in indices.chunks(rows_at_a_time) {
            let batch: Vec<_> = members
                .iter()
                .map(|&row| (&rows[row], weights[row]))
                .collect();
            let batch = MicroBatch::assemble(&batch, Device::Cpu).unwrap();
            // The logits stand in for hidden states, under a head that changes nothing.
            let logits: Vec<f32> = members
                .iter()
                .flat_map(|&row| self.rows[row].logits.concat())
                .collect();
            let vocab = i64::try_from(self.rows[0].logits[0].len()).unwrap();
            let logits = Tensor::from_slice(&logits).reshape([-1, vocab]);
            let identity = Tensor::eye(vocab, (Kind::Float, Device::Cpu));
            let head = Head {
                weight: &identity,
                temperature: case.temperature,
            };
            let reference: Vec<f32> = members
                .iter()
                .flat_map(|&row| self.rows[row].mask.iter().zip(&self.rows[row].reference))
                .filter_map(|(trained, reference)| trained.then_some(*reference))
                .collect();
            let reference = (case.kl_beta > 0.0).then(|| Tensor::from_slice(&reference));
            let trained = batch.select_trained(&logits).unwrap();
            let (of_trained, output) = head::backward(
                head,
                &trained,
                &batch.targets,
                settings,
                None,
                &mut |range, logp| {
                    let old = OldLogp::Given(&batch.logp_sampler);
                    MicroBatchLoss::of_tokens(&loss, &batch, old, reference.as_ref())
                        .chunk(&range, logp)
                },
            )
            .unwrap();
            value += output.loss;
            let clipped =
                is_clipped(&output.logp, &batch.logp_sampler, &batch.advantages, clip).unwrap();
            num_clipped += to_host(&clipped).unwrap().iter().sum::<f64>();
            let of_logits = logits
                .zeros_like()
                .index_add_(0, &batch.positions, &of_trained);
            let mut values = to_host(&of_logits.flatten(0, -1)).unwrap().into_iter();
            for &row in members {
                gradient.push(
                    values
                        .by_ref()
                        .take(self.rows[row].logits.concat().len())
                        .collect(),
                );
            }
        }
        (value, gradient, num_clipped)
    }
}

fn assert_close(got: f64, expected: f64, what: &str) {
    assert!(
        (got - expected).abs() <= TOLERANCE,
        "{what}: {got}, expected {expected}"
    );
}

#[test]
fn loss_and_gradient_equal_the_plain_reference() {
    let golden = Golden::load();
    let num_trained: usize = golden
        .rows
        .iter()
        .flat_map(|row| &row.mask)
        .filter(|trained| **trained)
        .count();
    for (index, case) in golden.cases.iter().enumerate() {
        let (loss, gradient, num_clipped) = golden.evaluate(case, usize::MAX, 1000);
        assert_close(loss, case.loss, &format!("loss of case {index}"));
        assert_close(
            num_clipped / num_trained as f64,
            case.clip_share,
            &format!("clip share of case {index}"),
        );
        let largest = case
            .gradient
            .iter()
            .flatten()
            .flatten()
            .fold(0.0_f64, |a, b| a.max(b.abs()));
        assert!(largest > 1e-3, "case {index} tests nothing");
        for (row, (got, expected)) in gradient.iter().zip(&case.gradient).enumerate() {
            for (got, expected) in got.iter().zip(expected.iter().flatten()) {
                assert_close(
                    *got,
                    *expected,
                    &format!("gradient of case {index}, row {row}"),
                );
            }
        }
    }
}

#[test]
fn cutting_into_micro_batches_and_chunks_changes_nothing() {
    let golden = Golden::load();
    for case in &golden.cases {
        let (loss, gradient, _) = golden.evaluate(case, usize::MAX, 1000);
        for (rows_at_a_time, chunk_tokens) in [(1, 1000), (3, 4), (5, 1)] {
            let (cut_loss, cut_gradient, _) = golden.evaluate(case, rows_at_a_time, chunk_tokens);
            assert!((loss - cut_loss).abs() < 1e-6);
            for (a, b) in gradient.concat().iter().zip(cut_gradient.concat()) {
                assert!((a - b).abs() < 1e-7);
            }
        }
    }
}
