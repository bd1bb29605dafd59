//! Policy losses, KL term, entropy bonus and weights against a sampler mismatch, each against a plain reference.
//!
//! `scripts/golden/policy_losses.py` wrote `tests/golden/policy_losses.json` in double precision with nothing but the standard
//! library. A case is a set of recipe keys, so the way from the recipe to the loss is exercised too.

use std::collections::BTreeMap;

use asyncthink_algorithms::{
    Aggregation, BatchTotals, Group, PolicyObjective, RowCount, Scope, TokenLoss, advantage, loss,
};
use asyncthink_data::{EpisodeIndex, TokenId, TrainingRow};
use asyncthink_recipe::GrpoSection;
use asyncthink_torch::Head;
use serde::Deserialize;
use serde_json::{Value, json};
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
    sampler: Vec<f32>,
    reference: Vec<f32>,
    logits: Vec<Vec<f32>>,
}

impl Row {
    fn trained(&self, values: &[f32]) -> Vec<f32> {
        let values = self.mask.iter().zip(values);
        values
            .filter_map(|(on, value)| on.then_some(*value))
            .collect()
    }
}

#[derive(Deserialize)]
struct Case {
    grpo: Value,
    loss: f64,
    metrics: BTreeMap<String, f64>,
    gradient: Vec<Vec<Vec<f64>>>,
}

impl Case {
    /// The section of the recipe.
    fn section(&self) -> GrpoSection {
        let mut section = json!({
            "num_steps": 1,
            "prompts_per_step": 1,
            "optimizer": { "learning_rate": 1e-3 },
        });
        let keys = section.as_object_mut().unwrap();
        keys.extend(self.grpo.as_object().unwrap().clone());
        serde_json::from_value(section).unwrap()
    }
}

/// Loss, gradient by row, and sums of the metrics.
struct Evaluated {
    loss: f64,
    gradient: Vec<Vec<f64>>,
    metrics: BTreeMap<String, f64>,
}

impl Golden {
    fn load() -> Self {
        serde_json::from_str(include_str!("../tests/golden/policy_losses.json")).unwrap()
    }

    fn training_rows(&self, section: &GrpoSection) -> Vec<TrainingRow> {
        let registry = advantage::registry();
        let estimator = registry.get(section.advantage.name()).unwrap()(section);
        let advantages: Vec<f64> = self
            .rewards
            .chunks(self.group_size)
            .flat_map(|group| Group::new(group).unwrap().advantages(&*estimator))
            .collect();
        self.rows
            .iter()
            .map(|row| {
                #[expect(clippy::cast_possible_truncation, reason = "rows hold f32")]
                let advantage = advantages[row.episode as usize] as f32;
                TrainingRow::policy(
                    row.ids.iter().copied().map(TokenId).collect(),
                    row.mask.clone(),
                    row.sampler.clone(),
                    advantage,
                    EpisodeIndex(row.episode),
                )
                .unwrap()
            })
            .collect()
    }

    fn evaluate(&self, case: &Case, rows_at_a_time: usize, chunk_tokens: i64) -> Evaluated {
        let section = case.section();
        let losses = loss::registry();
        let policy = (losses.get(&section.loss.name).unwrap().build)(&section).unwrap();
        let loss = PolicyObjective::of(&section, policy);
        let rows = self.training_rows(&section);
        let counts: Vec<RowCount> = rows
            .iter()
            .map(|row| RowCount {
                episode: row.episode().0,
                num_trained: row.num_trained(),
            })
            .collect();
        let weights = Aggregation::of(&section)
            .unwrap()
            .weights(&counts, BatchTotals::of(&counts));
        let mut all = Evaluated {
            loss: 0.0,
            gradient: Vec::new(),
            metrics: BTreeMap::new(),
        };
        let indices: Vec<usize> = (0..rows.len()).collect();
        for members in indices.chunks(rows_at_a_time) {
            let batch: Vec<_> = members
                .iter()
                .map(|&row| (&rows[row], weights[row]))
                .collect();
            let batch = MicroBatch::assemble(&batch, Device::Cpu).unwrap();
            self.add_part(members, &batch, &loss, &section, chunk_tokens, &mut all);
        }
        all
    }

    /// One micro-batch. The logits stand in for hidden states, under a head that changes nothing.
    fn add_part(
        &self,
        members: &[usize],
        batch: &MicroBatch,
        loss: &PolicyObjective,
        section: &GrpoSection,
        chunk_tokens: i64,
        all: &mut Evaluated,
    ) {
        let settings = HeadSettings {
            temperature: section.temperature,
            chunk_tokens,
            entropy: false,
        };
        let logits: Vec<f32> = members
            .iter()
            .flat_map(|&row| self.rows[row].logits.concat())
            .collect();
        let vocab = i64::try_from(self.rows[0].logits[0].len()).unwrap();
        let logits = Tensor::from_slice(&logits).reshape([-1, vocab]);
        let identity = Tensor::eye(vocab, (Kind::Float, Device::Cpu));
        let head = Head {
            weight: &identity,
            temperature: section.temperature,
        };
        let trained = batch.select_trained(&logits).unwrap();
        let concat = |values: fn(&Row) -> Vec<f32>| {
            let values: Vec<f32> = members
                .iter()
                .flat_map(|&row| values(&self.rows[row]))
                .collect();
            Tensor::from_slice(&values)
        };
        let old = concat(|row| row.trained(&row.old));
        let reference = concat(|row| row.trained(&row.reference));
        let reference = loss.needs_reference().then_some(&reference);
        let scores = (loss.scope() == Scope::Sequence)
            .then(|| head::score(head, &trained, &batch.targets, chunk_tokens).unwrap());
        let of_batch = MicroBatchLoss::new(
            loss,
            batch,
            OldLogp::Given(&old),
            reference,
            scores.as_ref(),
        )
        .unwrap();
        let entropy_weights = (loss.entropy_coefficient() > 0.0)
            .then(|| &batch.weights * -loss.entropy_coefficient());
        let (of_trained, output) = head::backward(
            head,
            &trained,
            &batch.targets,
            settings,
            entropy_weights.as_ref(),
            &mut |range, logp| of_batch.chunk(&range, logp),
        )
        .unwrap();
        all.loss += output.loss;
        for (name, sum) in loss
            .metrics(&batch.tokens(&output.logp, &old, reference))
            .unwrap()
        {
            *all.metrics.entry(name.to_owned()).or_default() += sum.double_value(&[]);
        }
        let of_logits = logits
            .zeros_like()
            .index_add_(0, &batch.positions, &of_trained);
        let mut values = to_host(&of_logits.flatten(0, -1)).unwrap().into_iter();
        for &row in members {
            let count = self.rows[row].logits.concat().len();
            all.gradient.push(values.by_ref().take(count).collect());
        }
    }

    fn num_trained(&self) -> usize {
        let masks = self.rows.iter().flat_map(|row| &row.mask);
        masks.filter(|trained| **trained).count()
    }
}

fn assert_close(got: f64, expected: f64, what: &str) {
    assert!(
        (got - expected).abs() <= TOLERANCE,
        "{what}: {got}, expected {expected}"
    );
}

#[test]
fn losses_gradients_and_metrics_equal_the_plain_reference() {
    let golden = Golden::load();
    let num_trained = golden.num_trained() as f64;
    for case in &golden.cases {
        let what = case.grpo.to_string();
        let got = golden.evaluate(case, usize::MAX, 1000);
        assert_close(got.loss, case.loss, &format!("loss, {what}"));
        let expected: Vec<&String> = case.metrics.keys().collect();
        assert_eq!(got.metrics.keys().collect::<Vec<_>>(), expected, "{what}");
        for (name, mean) in &case.metrics {
            assert_close(
                got.metrics[name] / num_trained,
                *mean,
                &format!("{name}, {what}"),
            );
        }
        let expected: Vec<f64> = case.gradient.concat().concat();
        let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        assert!(largest > 1e-3, "{what} tests nothing");
        for (got, expected) in got.gradient.concat().iter().zip(&expected) {
            assert_close(*got, *expected, &format!("gradient, {what}"));
        }
    }
}

#[test]
fn cutting_into_micro_batches_and_chunks_changes_nothing() {
    let golden = Golden::load();
    for case in &golden.cases {
        let whole = golden.evaluate(case, usize::MAX, 1000);
        for (rows_at_a_time, chunk_tokens) in [(1, 1000), (3, 4), (5, 1)] {
            let cut = golden.evaluate(case, rows_at_a_time, chunk_tokens);
            assert!((whole.loss - cut.loss).abs() < 1e-6, "{}", case.grpo);
            for (a, b) in whole.gradient.concat().iter().zip(cut.gradient.concat()) {
                assert!((a - b).abs() < 1e-7, "{}", case.grpo);
            }
            for (name, sum) in &whole.metrics {
                assert!(
                    (sum - cut.metrics[name]).abs() < 1e-4,
                    "{name}, {}",
                    case.grpo
                );
            }
        }
    }
}

/// Every loss that a case names, on a few tokens of two rows in f64: `dL/dlogp` against central differences.
#[test]
fn gradients_equal_finite_differences_in_f64() {
    use asyncthink_algorithms::TokenBatch;
    let double = |values: &[f64]| Tensor::from_slice(values);
    let logp = [-0.9, -1.4, -0.3, -2.0, -1.1, -0.6];
    let old = double(&[-1.2, -1.3, -0.3001, -1.7, -0.7, -0.9]);
    let sampler = double(&[-1.25, -1.0, -0.4, -1.75, -0.9, -0.9]);
    let reference = double(&[-1.0, -1.1, -0.5, -2.2, -0.8, -0.61]);
    let advantages = double(&[0.5, 0.5, 0.5, -0.8, -0.8, -0.8]);
    let weights = double(&[0.1, 0.1, 0.1, 0.2, 0.2, 0.2]);
    let rows = Tensor::from_slice(&[0_i64, 0, 0, 1, 1, 1]);
    for case in &Golden::load().cases {
        let section = case.section();
        // The loss of CISPO has weights without a gradient: its differences are taken in the script.
        if section.loss.name == "cispo" {
            continue;
        }
        let losses = loss::registry();
        let policy = (losses.get(&section.loss.name).unwrap().build)(&section).unwrap();
        let loss = PolicyObjective::of(&section, policy);
        let at = |logp: &[f64]| {
            let logp = double(logp);
            let tokens = TokenBatch {
                logp: &logp,
                logp_old: &old,
                logp_sampler: &sampler,
                logp_reference: loss.needs_reference().then_some(&reference),
                advantages: &advantages,
                weights: &weights,
                rows: &rows,
                num_rows: 2,
            };
            loss.gradient(&tokens).unwrap()
        };
        let gradient = at(&logp).gradient;
        assert_eq!(gradient.kind(), Kind::Double, "{}", case.grpo);
        for (index, got) in to_host(&gradient).unwrap().into_iter().enumerate() {
            let moved = |by: f64| {
                let mut logp = logp;
                logp[index] += by;
                at(&logp).loss.double_value(&[])
            };
            let difference = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!(
                (got - difference).abs() < 1e-8,
                "{}: {got} {difference}",
                case.grpo
            );
        }
    }
}
