//! Losses and a metrics sink that the project does not have, each in a file of its own and registered by one line, train.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../common/mod.rs"]
mod common;
mod line_counter;
mod reinforce;
mod sequence_ratio;

use std::path::Path;
use std::sync::Arc;

use asyncthink_algorithms::loss::{Cispo, CrossEntropy, Gspo, PolicyLossSpec};
use asyncthink_algorithms::{
    Aggregation, Clip, ClippedPolicyLoss, PolicyObjective, SamplerCorrection, TokenLoss,
};
use asyncthink_data::{EpisodeIndex, TokenId, TrainingRow};
use asyncthink_distributed::{AdamW, AdamWSettings};
use asyncthink_gradient::{BatchMetrics, BatchSettings, PackedBatch, Weights};
use asyncthink_metrics::OpenSink;
use asyncthink_model::{Decoder, ModelConfig, ModelSizes, Parallelism};
use asyncthink_recipe::{Catalogue, CorrectionMode, OldPolicy, Recipe, Stage};
use asyncthink_trainer::{GrpoSettings, Registries, RunOptions, RunOutcome, run_grpo};
use fs_err as fs;
use tch::{Device, Tensor};

use common::{Watcher, alone, finish};
use sequence_ratio::SequenceRatio;

const REINFORCE: PolicyLossSpec = reinforce::SPEC;
const SEQUENCE_RATIO: PolicyLossSpec = sequence_ratio::SPEC;
const LINE_COUNTER: OpenSink = line_counter::open;

fn registries() -> Registries {
    let mut registries = Registries::default();
    registries.losses = registries.losses.with("reinforce", REINFORCE);
    registries.losses = registries.losses.with("sequence_ratio", SEQUENCE_RATIO);
    registries.sinks = registries.sinks.with("line_counter", LINE_COUNTER);
    registries
}

fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::builtin();
    for (name, loss) in registries().losses.iter() {
        catalogue = catalogue.with_loss(name, (loss.schema)());
    }
    for name in registries().sinks.names() {
        catalogue = catalogue.with_metrics_sink(name);
    }
    catalogue
}

/// The tiny recipe whose SFT is done in `dir`, with changes for GRPO that the project alone does not know.
fn recipe(dir: &Path, sft_steps: u32, sets: &[&str]) -> Recipe {
    let trained = common::recipe(dir, &[&format!("sft.num_steps={sft_steps}")]);
    finish(&trained, Stage::Sft);
    let sets: Vec<String> = ["grpo.num_steps=2"]
        .iter()
        .chain(sets)
        .map(ToString::to_string)
        .collect();
    Recipe::parse_with(
        &trained.to_toml(),
        Path::new("extended.toml"),
        &sets,
        &catalogue(),
    )
    .unwrap_or_else(|errors| panic!("{errors}"))
}

fn train(recipe: &Recipe) {
    let settings = GrpoSettings::with_registries(recipe, &registries()).unwrap();
    let mut watcher = Watcher::default();
    let stop = watcher.stop.clone();
    let outcome = run_grpo(&settings, &RunOptions::default(), &mut watcher, &stop).unwrap();
    assert!(matches!(outcome, RunOutcome::Finished { num_steps: 2, .. }));
}

#[test]
fn a_token_loss_with_an_option_trains_and_reports_its_metric() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    // A model that knows the format now and then, so that the rewards of a group differ.
    let sets = [
        "grpo.loss={ reinforce = { scale = 0.5 } }",
        "grpo.group_size=8",
    ];
    let recipe = recipe(dir.path(), 80, &sets);
    train(&recipe);
    let mut num_trained = 0;
    for line in common::metrics(&recipe, Stage::Grpo) {
        let metric = line["loss_metrics"]["advantage_abs"].as_f64();
        // Groups of equal rewards train nothing, and then there is nothing to take a mean of.
        if line["num_trained_tokens"] != 0 {
            assert!(metric.is_some_and(|value| value > 0.0), "{line}");
            num_trained += 1;
        }
        assert!(line["clip_share"].is_null(), "{line}");
    }
    assert!(num_trained > 0, "a step with unequal rewards");
}

#[test]
fn a_sequence_loss_trains_and_a_sink_gets_every_line() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "grpo.loss={ sequence_ratio = {} }",
        "metrics=[\"line_counter\"]",
    ];
    let recipe = recipe(dir.path(), 4, &sets);
    train(&recipe);
    let lines = common::metrics(&recipe, Stage::Grpo);
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["loss"].as_f64().is_some_and(f64::is_finite));
    let counted = fs::read_to_string(recipe.run_dir.join("grpo/lines.txt")).unwrap();
    assert_eq!(counted, "step 1\nstep 2\n");
}

#[test]
fn names_that_nobody_implements_are_refused_with_those_that_exist() {
    let text = common::tiny::TINY;
    for (set, name) in [
        ("grpo.loss={ renforce = {} }", "reinforce"),
        ("metrics=[\"line_countr\"]", "line_counter"),
    ] {
        let sets = [set.to_owned()];
        let errors = Recipe::parse_with(text, Path::new("r.toml"), &sets, &catalogue());
        let message = errors.unwrap_err().to_string();
        assert!(
            message.contains(&format!("did you mean `{name}`"))
                || message.contains(&format!("did you mean `\"{name}\"`")),
            "{message}"
        );
    }
}

/// Rows whose log-probabilities as sampled differ from the model's, two of them in one episode.
fn rows() -> Vec<TrainingRow> {
    (0..5_u32)
        .map(|index| {
            let ids: Vec<TokenId> = (0..6 + index)
                .map(|at| TokenId((index * 7 + at * 3) % 30))
                .collect();
            let mask: Vec<bool> = (0..ids.len()).map(|at| at > 1 && at != 3).collect();
            let logprobs = mask.iter().map(|&on| if on { -3.0 } else { 0.0 }).collect();
            let advantage = if index % 2 == 0 { 0.5 } else { -0.75 };
            TrainingRow::policy(ids, mask, logprobs, advantage, EpisodeIndex(index / 2)).unwrap()
        })
        .collect()
}

/// Gradient and metrics of one cutting of the batch.
fn gradient(
    loss: Arc<dyn TokenLoss>,
    old_policy: OldPolicy,
    scores_old: bool,
    micro_batch_tokens: usize,
) -> (Vec<Tensor>, BatchMetrics) {
    let config = ModelConfig::new(&ModelSizes {
        vocab_size: 30,
        hidden_size: 24,
        intermediate_size: 40,
        num_layers: 2,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 12,
        rope_theta: 10_000.0,
        max_position_embeddings: 64,
        tie_word_embeddings: true,
        eos_token_id: 0,
    });
    let mut decoder = Decoder::init(&config.unwrap(), Device::Cpu, 3).unwrap();
    decoder.set_requires_grad(true);
    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
    };
    let optimizer = AdamW::new(
        decoder.trained_parameters(),
        settings,
        Arc::default(),
        1 << 20,
    );
    let mut optimizer = optimizer.unwrap();
    optimizer.zero_grad();
    let weights = Weights::Whole(Box::new(decoder));
    let batch = BatchSettings {
        loss,
        aggregation: Aggregation::TokenMean,
        old_policy,
        measures_policy: true,
        temperature: 1.0,
        micro_batch_tokens,
        activation_checkpointing: false,
        share_prefixes: true,
        redistribute_rows: true,
        parallelism: Parallelism::SINGLE,
    };
    let rows = rows();
    let mut packed = PackedBatch::new(&weights, &rows, &batch, optimizer.ranks()).unwrap();
    if scores_old {
        packed.score_old(&weights).unwrap();
    }
    let metrics = packed.accumulate_gradient(&weights, None, &optimizer, &mut |_, _| true);
    let Weights::Whole(decoder) = &weights else {
        unreachable!("the test made it whole");
    };
    let gradients = decoder.named_parameters().iter();
    let gradients = gradients.map(|(_, parameter)| parameter.grad().copy());
    (gradients.collect(), metrics.unwrap().unwrap())
}

#[test]
fn a_sequence_loss_does_not_depend_on_packing() {
    let _alone = alone();
    let (whole, metrics) = gradient(Arc::new(SequenceRatio), OldPolicy::Sampler, false, 1000);
    assert!(metrics.loss.abs() > 1e-3, "the test must test something");
    for micro_batch_tokens in [1, 20] {
        let (cut, cut_metrics) = gradient(
            Arc::new(SequenceRatio),
            OldPolicy::Sampler,
            false,
            micro_batch_tokens,
        );
        assert!((metrics.loss - cut_metrics.loss).abs() < 1e-6);
        for (a, b) in whole.iter().zip(&cut) {
            assert!(a.allclose(b, 1e-5, 1e-7, false));
        }
    }
    // Another loss has another gradient: the scope is not ignored.
    let (other, _) = gradient(Arc::new(CrossEntropy), OldPolicy::Sampler, false, 1000);
    assert!(!whole[0].allclose(&other[0], 1e-3, 1e-5, false));
}

/// Every kind of loss and weight, with the ratio against the sampler and against the trainer, which is scored first or not.
#[test]
fn no_objective_depends_on_packing_or_on_when_the_old_policy_is_scored() {
    let _alone = alone();
    let clip = || -> Arc<dyn TokenLoss> {
        Arc::new(ClippedPolicyLoss {
            clip: Clip {
                low: 0.2,
                high: 0.28,
                dual: Some(3.0),
            },
        })
    };
    let correction = |mode| SamplerCorrection {
        mode,
        max_weight: 1.2,
        min_weight: 0.2,
    };
    let gspo = Arc::new(Gspo {
        low: 0.3,
        high: 0.4,
    });
    let cispo = Arc::new(Cispo {
        min_weight: 0.0,
        max_weight: 1.5,
    });
    let token = correction(CorrectionMode::TokenTruncate);
    let sequence = correction(CorrectionMode::SequenceMask);
    let cases = [
        (
            PolicyObjective::new(clip()).with_entropy(0.1),
            OldPolicy::Sampler,
        ),
        (
            PolicyObjective::new(clip()).with_correction(token),
            OldPolicy::Trainer,
        ),
        (
            PolicyObjective::new(gspo).with_entropy(0.1),
            OldPolicy::Sampler,
        ),
        (
            PolicyObjective::new(cispo).with_correction(sequence),
            OldPolicy::Trainer,
        ),
    ];
    for (objective, old_policy) in cases {
        let what = format!("{objective:?}");
        let objective = Arc::new(objective);
        let of = |scores_old, micro_batch_tokens| {
            gradient(
                objective.clone(),
                old_policy,
                scores_old,
                micro_batch_tokens,
            )
        };
        let (whole, metrics) = of(false, 1000);
        let largest = whole.iter().map(|one| one.abs().max().double_value(&[]));
        assert!(largest.fold(0.0, f64::max) > 1e-3, "{what}");
        for (scores_old, micro_batch_tokens) in [(false, 1), (true, 1), (true, 20)] {
            let (cut, cut_metrics) = of(scores_old, micro_batch_tokens);
            assert!((metrics.loss - cut_metrics.loss).abs() < 1e-6, "{what}");
            for (a, b) in whole.iter().zip(&cut) {
                assert!(a.allclose(b, 1e-5, 1e-7, false), "{what}");
            }
            for ((name, a), (_, b)) in metrics.loss_metrics.iter().zip(&cut_metrics.loss_metrics) {
                assert!((a - b).abs() < 1e-5, "{what}: {name}");
            }
            let size = metrics.effective_sample_size - cut_metrics.effective_sample_size;
            assert!(
                size.abs() < 1e-5 && metrics.effective_sample_size < 0.99,
                "{what}"
            );
        }
    }
}
