//! The gradient of a batch equals a plain reference, row by row in one graph, for every combination of packing, shared prefixes,
//! activation checkpointing, threads, ranks and sharding.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test"
)]

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use asyncthink_algorithms::{
    Aggregation, Clip, ClippedPolicyLoss, CrossEntropy, KlPenalty, PolicyObjective, TokenLoss, k3,
};
use asyncthink_data::{EpisodeIndex, TokenId, TrainingRow};
use asyncthink_distributed::{AdamW, AdamWSettings, Ranks, ShardedDecoder, Sharding, StateOptions};
use asyncthink_gradient::{BatchMetrics, BatchSettings, PackedBatch, Weights, rows_of_rank};
use asyncthink_model::{Decoder, ModelConfig, ModelSizes, Parallelism, Segments};
use asyncthink_recipe::{KlEstimator, OldPolicy};
use asyncthink_torch::{GroupOptions, ProcessGroup, Store, StoreOptions};
use tch::{Device, Kind, Tensor};

const TEMPERATURE: f64 = 0.9;
const CLIP: Clip = Clip {
    low: 0.2,
    high: 0.3,
    dual: None,
};
const KL_BETA: f64 = 0.1;
const SEED: u64 = 5;
const REFERENCE_SEED: u64 = 6;

/// One update moves the weights by [`MAGNIFIED`] times the gradient.
const PLAIN_STEPS: AdamWSettings = AdamWSettings {
    beta1: 0.0,
    beta2: 0.0,
    eps: 1e6,
    weight_decay: 0.0,
};
const MAGNIFIED: f64 = 1000.0;

fn config() -> ModelConfig {
    ModelConfig::new(&ModelSizes {
        vocab_size: 31,
        hidden_size: 24,
        intermediate_size: 40,
        num_layers: 3,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 8,
        rope_theta: 10_000.0,
        max_position_embeddings: 128,
        tie_word_embeddings: true,
        eos_token_id: 0,
    })
    .unwrap()
}

/// A number in `0 .. bound` that looks random.
fn draw(index: usize, bound: usize) -> usize {
    (index * 2_654_435_761) % 4_294_967_291 % bound
}

fn ids(stream: usize, len: usize) -> Vec<TokenId> {
    let id = |place| TokenId(u32::try_from(draw(stream * 1000 + place + 1, 31)).unwrap());
    (0..len).map(id).collect()
}

/// Prompt and mask of a row: a head that all rows have, a group's prompt, a response with injected text in it.
fn ids_and_mask(index: usize) -> (Vec<TokenId>, Vec<bool>) {
    let (group, response) = (index % 3, 6 + draw(index + 7, 14));
    let prompt = [ids(1, 9), ids(10 + group, [12, 9, 3][group])].concat();
    // Two rows of a group are the same, and the rest begin alike.
    let own = ids(if index < 6 { group } else { 100 + index }, response);
    let mask = (0..prompt.len() + response)
        .map(|place| place >= prompt.len() && place % 7 != 3)
        .collect();
    ([prompt, own].concat(), mask)
}

fn policy_rows() -> Vec<TrainingRow> {
    (0..14)
        .map(|index| {
            let (ids, mask) = ids_and_mask(index);
            let logprobs = (0..ids.len())
                .map(|place| {
                    let noise = draw(index * 100 + place + 3, 1000) as f32 / 1000.0;
                    if mask[place] { -3.0 - noise } else { 0.0 }
                })
                .collect();
            let advantage = [0.7, -0.4, 0.1, 0.0][index % 4];
            // Rows of an episode have one advantage.
            let episode = EpisodeIndex(u32::try_from(index % 4 + 4 * (index / 8)).unwrap());
            TrainingRow::policy(ids, mask, logprobs, advantage, episode).unwrap()
        })
        .collect()
}

fn supervised_rows() -> Vec<TrainingRow> {
    (0..11)
        .map(ids_and_mask)
        .map(|(ids, mask)| TrainingRow::sft_masked(ids, mask).unwrap())
        .collect()
}

/// What is trained.
#[derive(Clone, Debug)]
struct Task {
    rows: Vec<TrainingRow>,
    loss: Arc<dyn TokenLoss>,
    aggregation: Aggregation,
    is_policy: bool,
}

impl Task {
    fn policy() -> Self {
        Self {
            rows: policy_rows(),
            loss: Arc::new(
                PolicyObjective::new(Arc::new(ClippedPolicyLoss { clip: CLIP })).with_kl(
                    KlPenalty {
                        beta: KL_BETA,
                        estimator: KlEstimator::K3,
                        is_bias_corrected: false,
                    },
                ),
            ),
            aggregation: Aggregation::EpisodeMean,
            is_policy: true,
        }
    }

    fn supervised() -> Self {
        Self {
            rows: supervised_rows(),
            loss: Arc::new(CrossEntropy),
            aggregation: Aggregation::TokenMean,
            is_policy: false,
        }
    }
}

/// Log-probabilities of a row's trained tokens, by the definition.
fn logp_of(decoder: &Decoder, row: &TrainingRow, temperature: f64) -> Tensor {
    let ids: Vec<i64> = row.ids().iter().map(|id| i64::from(id.0)).collect();
    let trained = row
        .loss_mask()
        .iter()
        .enumerate()
        .filter(|(_, trained)| **trained);
    let trained: Vec<i64> = trained.map(|(index, _)| index as i64).collect();
    let ids = Tensor::from_slice(&ids);
    let segments = Segments::separate(&[ids.size1().unwrap()]).unwrap();
    let hidden = decoder.hidden_packed(&ids, &segments).unwrap();
    let logits = decoder.lm_head(&hidden).unwrap() / temperature;
    let trained = Tensor::from_slice(&trained);
    let all = logits
        .log_softmax(-1, Kind::Float)
        .index_select(0, &(&trained - 1));
    let targets = ids.index_select(0, &trained).unsqueeze(1);
    all.gather(1, &targets, false).squeeze_dim(1)
}

/// The clipped loss of tokens, by the definition.
fn clipped(logp: &Tensor, old: &Tensor, advantages: &Tensor) -> Tensor {
    let ratio = (logp - old).exp();
    let bounded = ratio.clamp(1.0 - CLIP.low, 1.0 + CLIP.high);
    -(ratio * advantages).minimum(&(bounded * advantages))
}

/// Loss and gradient of all rows in one graph.
fn plain(task: &Task) -> (f64, Vec<Tensor>) {
    let mut decoder = Decoder::init(&config(), Device::Cpu, SEED).unwrap();
    decoder.set_requires_grad(true);
    let reference = Decoder::init(&config(), Device::Cpu, REFERENCE_SEED).unwrap();
    let mut total = Tensor::from(0.0_f64);
    for row in &task.rows {
        let num_trained = |row: &TrainingRow| row.num_trained() as f64;
        let all = task.rows.iter();
        let (losses, weight) = if task.is_policy {
            let logp = logp_of(&decoder, row, TEMPERATURE);
            let sampled = row.logprobs().unwrap().iter().zip(row.loss_mask());
            let sampled: Vec<f32> = sampled
                .filter(|(_, trained)| **trained)
                .map(|(logp, _)| *logp)
                .collect();
            let (old, advantages) = (
                Tensor::from_slice(&sampled),
                logp.full_like(f64::from(row.advantage())),
            );
            let losses = clipped(&logp, &old, &advantages);
            let penalty = k3(&logp, &logp_of(&reference, row, TEMPERATURE).detach()).unwrap();
            let of_episode = all.filter(|other| other.episode() == row.episode());
            (
                losses + penalty * KL_BETA,
                8.0 * of_episode.map(num_trained).sum::<f64>(),
            )
        } else {
            (-logp_of(&decoder, row, 1.0), all.map(num_trained).sum())
        };
        total += losses.sum(Kind::Double) / weight;
    }
    total.backward();
    let parameters = decoder.named_parameters().iter();
    let gradients = parameters.map(|(_, tensor)| tensor.grad().copy()).collect();
    (total.double_value(&[]), gradients)
}

/// How a batch is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    micro_batch_tokens: usize,
    share_prefixes: bool,
    activation_checkpointing: bool,
    num_threads: usize,
    is_sharded: bool,
}

/// Cuts for so many ranks.
fn cuts(world_size: usize) -> Vec<Cut> {
    let threads_and_shards: &[(usize, bool)] = match world_size {
        1 => &[(1, false), (2, false), (1, true)],
        _ => &[(1, false), (1, true)],
    };
    let mut cuts = Vec::new();
    let budgets: &[usize] = if world_size == 1 {
        &[1, 70, 1_000_000]
    } else {
        &[70, 1_000_000]
    };
    for &micro_batch_tokens in budgets {
        for share_prefixes in [false, true] {
            for activation_checkpointing in [false, true] {
                for &(num_threads, is_sharded) in threads_and_shards {
                    // Layers in parts are always computed again.
                    if activation_checkpointing || !is_sharded {
                        cuts.push(Cut {
                            micro_batch_tokens,
                            share_prefixes,
                            activation_checkpointing,
                            num_threads,
                            is_sharded,
                        });
                    }
                }
            }
        }
    }
    cuts
}

fn weights_of(cut: Cut, seed: u64, ranks: &Arc<Ranks>) -> Weights {
    if cut.is_sharded {
        let sharding = Sharding {
            ranks: Arc::clone(ranks),
            device: Device::Cpu,
            kind: Kind::Float,
            micro_batches_per_gather: 2,
        };
        let decoder = ShardedDecoder::init(&config(), seed, sharding).unwrap();
        Weights::Sharded(Rc::new(decoder))
    } else {
        let mut decoder = Decoder::init(&config(), Device::Cpu, seed).unwrap();
        decoder.set_requires_grad(seed == SEED);
        Weights::Whole(Box::new(decoder))
    }
}

fn values(weights: &Weights) -> Vec<Tensor> {
    let copies = |decoder: &Decoder| {
        let parameters = decoder.named_parameters().iter();
        parameters
            .map(|(_, tensor)| tensor.detach().copy())
            .collect()
    };
    match weights {
        Weights::Whole(decoder) => copies(decoder),
        Weights::Sharded(decoder) => copies(&decoder.gather().unwrap()),
    }
}

fn settings(task: &Task, cut: Cut) -> BatchSettings {
    BatchSettings {
        loss: Arc::clone(&task.loss),
        aggregation: task.aggregation,
        old_policy: OldPolicy::Sampler,
        measures_policy: task.is_policy,
        temperature: if task.is_policy { TEMPERATURE } else { 1.0 },
        micro_batch_tokens: cut.micro_batch_tokens,
        activation_checkpointing: cut.activation_checkpointing,
        share_prefixes: cut.share_prefixes,
        redistribute_rows: task.is_policy,
        parallelism: Parallelism::across_batch(cut.num_threads),
    }
}

/// Metrics and gradient of the second of two passes over one batch, which must equal the first.
fn compute(task: &Task, cut: Cut, ranks: &Arc<Ranks>) -> (BatchMetrics, Vec<Tensor>) {
    let weights = weights_of(cut, SEED, ranks);
    let reference = task
        .is_policy
        .then(|| weights_of(cut, REFERENCE_SEED, ranks));
    let mut optimizer = match &weights {
        Weights::Whole(decoder) => AdamW::new(
            decoder.trained_parameters(),
            PLAIN_STEPS,
            Arc::clone(ranks),
            1 << 10,
        ),
        Weights::Sharded(decoder) => AdamW::of_sharded(
            decoder,
            PLAIN_STEPS,
            Arc::clone(ranks),
            StateOptions::default(),
        ),
    }
    .unwrap();
    let settings = settings(task, cut);
    let rows = if task.is_policy {
        // Episodes are whole on the rank that sampled them.
        let is_own =
            |row: &&TrainingRow| row.episode().0 as usize % ranks.world_size() == ranks.rank();
        task.rows.iter().filter(is_own).cloned().collect()
    } else {
        rows_of_rank(&task.rows, &config(), cut.share_prefixes, ranks)
    };
    let mut batch = PackedBatch::new(&weights, &rows, &settings, ranks).unwrap();
    let mut pass = |optimizer: &mut AdamW| {
        optimizer.zero_grad();
        let metrics =
            batch.accumulate_gradient(&weights, reference.as_ref(), optimizer, &mut |_, _| true);
        metrics.unwrap().unwrap()
    };
    let first = pass(&mut optimizer);
    let metrics = pass(&mut optimizer);
    assert_close(metrics.loss, first.loss, &"a second pass");
    assert_close(metrics.kl_reference, first.kl_reference, &"a second pass");
    let before = values(&weights);
    optimizer.clip_grad_norm(1e30).unwrap();
    optimizer.step(PLAIN_STEPS.eps * MAGNIFIED).unwrap();
    let moved = before.iter().zip(values(&weights));
    let gradients = moved
        .map(|(before, after)| (before - after) / MAGNIFIED)
        .collect();
    (metrics, gradients)
}

fn in_world<T: Send>(world_size: usize, run: impl Fn(&Arc<Ranks>) -> T + Sync) -> Vec<T> {
    let store = Store::serve("127.0.0.1", 0, &StoreOptions::default()).unwrap();
    let (port, run) = (store.port(), &run);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                scope.spawn(move || {
                    let options = StoreOptions::default();
                    let store = Store::connect("127.0.0.1", port, &options).unwrap();
                    let options = GroupOptions {
                        rank,
                        world_size,
                        timeout: Duration::from_mins(1),
                        name: "combinations".to_owned(),
                        store_rank: None,
                    };
                    let group = ProcessGroup::new(&store, Device::Cpu, &options).unwrap();
                    let ranks = Arc::new(Ranks::new(group));
                    let result = run(&ranks);
                    ranks.part().unwrap();
                    result
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn assert_close(a: f64, b: f64, what: &dyn std::fmt::Debug) {
    assert!(
        (a - b).abs() <= 1e-5 * b.abs().max(1e-3),
        "{what:?}: {a} and {b}"
    );
}

fn check(task: &Task) {
    // Operations are too small to be worth several threads.
    Parallelism::SINGLE.apply();
    let (loss, expected) = plain(task);
    let num_tokens: usize = task
        .rows
        .iter()
        .filter(|row| task.loss.has_gradient(row.advantage()))
        .map(TrainingRow::len)
        .sum();
    let mut first: Option<BatchMetrics> = None;
    for world_size in [1, 2, 3] {
        let cuts = cuts(world_size);
        let compute_all = |ranks: &Arc<Ranks>| -> Vec<_> {
            cuts.iter().map(|&cut| compute(task, cut, ranks)).collect()
        };
        let results = match world_size {
            1 => vec![compute_all(&Arc::default())],
            _ => in_world(world_size, compute_all),
        };
        for (cut, (metrics, gradients)) in
            results.iter().flat_map(|of_rank| cuts.iter().zip(of_rank))
        {
            let what = (world_size, cut);
            let first = first.get_or_insert_with(|| metrics.clone());
            assert_close(metrics.loss, loss, &what);
            for (a, b) in [
                (metrics.entropy, first.entropy),
                (metrics.kl_reference, first.kl_reference),
                (metrics.kl_sampler, first.kl_sampler),
                (metrics.mismatch_max_nats, first.mismatch_max_nats),
            ] {
                assert_close(a, b, &what);
            }
            assert_eq!(metrics.num_tokens, num_tokens, "{what:?}");
            let shares = cut.share_prefixes && cut.micro_batch_tokens > 1;
            assert_eq!(metrics.num_computed_tokens < num_tokens, shares, "{what:?}");
            for (gradient, expected) in gradients.iter().zip(&expected) {
                let difference = (gradient - expected).norm().double_value(&[]);
                let norm = expected.norm().double_value(&[]);
                assert!(
                    difference <= 1e-5 * norm,
                    "{what:?}: {difference} of {norm}"
                );
            }
        }
    }
}

#[test]
fn a_policy_gradient_is_that_of_rows_one_by_one_however_they_are_cut() {
    check(&Task::policy());
}

#[test]
fn a_supervised_gradient_is_that_of_rows_one_by_one_however_they_are_cut() {
    check(&Task::supervised());
}

#[test]
fn rows_that_one_rank_sampled_are_computed_by_all() {
    let task = Task::policy();
    let cut = Cut {
        micro_batch_tokens: 100,
        share_prefixes: true,
        activation_checkpointing: false,
        num_threads: 1,
        is_sharded: false,
    };
    let imbalance = |redistribute_rows| {
        let of_ranks = in_world(3, |ranks| {
            let weights = weights_of(cut, SEED, ranks);
            let Weights::Whole(decoder) = &weights else {
                unreachable!("the test made it whole");
            };
            let parameters = decoder.trained_parameters();
            let optimizer =
                AdamW::new(parameters, PLAIN_STEPS, Arc::clone(ranks), 1 << 10).unwrap();
            let settings = BatchSettings {
                redistribute_rows,
                ..settings(&task, cut)
            };
            // The last rank has sampled nothing, the first one nearly everything.
            let own = [&task.rows[..12], &task.rows[12..], &[]][ranks.rank()];
            let mut batch = PackedBatch::new(&weights, own, &settings, ranks).unwrap();
            let metrics = batch.accumulate_gradient(&weights, None, &optimizer, &mut |_, _| true);
            metrics.unwrap().unwrap()
        });
        assert!(of_ranks.iter().all(|metrics| *metrics == of_ranks[0]));
        of_ranks[0].rank_imbalance
    };
    assert!(imbalance(false) > 1.0);
    assert!(imbalance(true) < 0.2, "{}", imbalance(true));
}
