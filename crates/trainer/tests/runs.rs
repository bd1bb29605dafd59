//! Whole runs on a tiny problem: stopping and resuming, damage, refusals, and log-probabilities of real episodes.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use asyncthink_algorithms::advantage::MeanCentred;
use asyncthink_algorithms::{Aggregation, Clip, ClippedPolicyLoss, RewardRule};
use asyncthink_checkpoint::{Error as CheckpointError, RunLayout, StageLock};
use asyncthink_data::TrainingRow;
use asyncthink_distributed::{AdamW, AdamWSettings};
use asyncthink_gradient::{BatchSettings, Weights, accumulate_gradient, score_rows};
use asyncthink_metrics::Phase;
use asyncthink_model::{Parallelism, Precision, PretrainedModel};
use asyncthink_recipe::{OldPolicy, Stage};
use asyncthink_rollout::{AdvantageRule, assign_advantages, reward_episode, training_rows};
use asyncthink_rollout::{EpisodeSampler, ModelCard, Query};
use asyncthink_trainer::{Error, Resume, RunOutcome, train_problems};
use common::{Watcher, alone, copy_folder, finish, metrics, recipe, run, weights};
use fs_err as fs;
use serde_json::Value;
use tch::{Device, Tensor};

#[test]
fn a_stopped_sft_run_continues_as_if_it_had_never_stopped() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let straight = recipe(&dir.path().join("straight"), &[]);
    let model = finish(&straight, Stage::Sft);
    let expected = metrics(&straight, Stage::Sft);
    assert_eq!(expected.len(), 12);
    assert!(
        expected[11]["epoch"].as_u64().unwrap() >= 1,
        "the run must cross an epoch boundary"
    );
    assert!(expected[11]["loss"].as_f64() < expected[0]["loss"].as_f64());
    let measured: Vec<usize> = (0..12)
        .filter(|&line| !expected[line]["held_out_loss"].is_null())
        .collect();
    assert_eq!(measured, [4, 9, 11]);

    let broken = recipe(&dir.path().join("broken"), &[]);
    for (stop_after_step, stop_in_phase) in [
        (Some(1), None),
        (Some(5), None),
        (None, Some((Phase::Train, 3))),
        (Some(10), None),
    ] {
        let mut watcher = Watcher {
            stop_after_step,
            stop_in_phase,
            ..Watcher::default()
        };
        let outcome = run(&broken, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
        assert!(
            matches!(
                outcome,
                RunOutcome::Stopped {
                    checkpoint: Some(_),
                    ..
                }
            ),
            "{outcome:?}"
        );
    }
    let resumed = finish(&broken, Stage::Sft);
    assert_eq!(metrics(&broken, Stage::Sft), expected);
    assert_eq!(weights(&resumed), weights(&model));
    let readme = fs::read_to_string(model.join("README.md")).unwrap();
    assert!(readme.contains("Step 12 of 12") && readme.contains("Figures of step 12"));
    assert_eq!(
        fs::read_to_string(resumed.join("README.md")).unwrap(),
        readme
    );

    // A finished run has nothing left to do.
    let mut watcher = Watcher::default();
    run(&broken, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    assert!(watcher.steps.is_empty());
    assert_eq!(metrics(&broken, Stage::Sft), expected);
}

#[test]
fn a_stopped_grpo_run_continues_as_if_it_had_never_stopped() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        "sft.num_steps=300",
        "sft.save_every_steps=300",
        "grpo.kl_beta=0.01",
        "grpo.num_updates_per_rollout=2",
    ];
    let straight = recipe(&dir.path().join("straight"), &sets);
    finish(&straight, Stage::Sft);
    let model = finish(&straight, Stage::Grpo);
    let expected = metrics(&straight, Stage::Grpo);
    assert_eq!(expected.len(), 6);
    assert!(
        expected[5]["epoch"].as_u64().unwrap() >= 1,
        "the run must cross an epoch boundary"
    );
    assert!(expected[0]["num_trained_tokens"].as_u64().unwrap() > 0);
    assert!(
        RunLayout::new(&straight.run_dir)
            .episodes(Stage::Grpo, 3)
            .is_file()
    );

    assert!(
        expected
            .iter()
            .any(|line| line["joins_per_query"].as_f64() > Some(0.0))
    );

    let broken = recipe(&dir.path().join("broken"), &sets);
    copy_folder(&straight.run_dir.join("sft"), &broken.run_dir.join("sft"));
    for (stop_after_step, stop_in_phase) in [
        (Some(1), None),
        (None, Some((Phase::Rollout, 30))),
        (None, Some((Phase::Train, 1))),
        (Some(5), None),
    ] {
        let mut watcher = Watcher {
            stop_after_step,
            stop_in_phase,
            ..Watcher::default()
        };
        let outcome = run(&broken, Stage::Grpo, Resume::Auto, &mut watcher).unwrap();
        assert!(
            matches!(
                outcome,
                RunOutcome::Stopped {
                    checkpoint: Some(_),
                    ..
                }
            ),
            "{outcome:?}"
        );
    }
    let resumed = finish(&broken, Stage::Grpo);
    assert_eq!(metrics(&broken, Stage::Grpo), expected);
    assert_eq!(weights(&resumed), weights(&model));
    let readme = fs::read_to_string(model.join("README.md")).unwrap();
    assert!(readme.contains("| mean reward |") && readme.contains("`grpo.group_size`"));
    assert_eq!(
        fs::read_to_string(resumed.join("README.md")).unwrap(),
        readme
    );
    let card = ModelCard::read(&resumed).unwrap();
    assert_eq!(card, ModelCard::new(&broken.prompts, &broken.protocol));
}

#[test]
fn damage_sends_a_run_back_to_the_checkpoint_before() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &[]);
    let model = finish(&recipe, Stage::Sft);
    let (expected, expected_weights) = (metrics(&recipe, Stage::Sft), weights(&model));
    let mut bytes = expected_weights.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(model.join("model.safetensors"), bytes).unwrap();

    let mut watcher = Watcher::default();
    run(&recipe, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    assert!(
        watcher.warnings[0].contains("model.safetensors"),
        "{:?}",
        watcher.warnings
    );
    assert_eq!(watcher.steps, [9, 10, 11, 12]);
    assert_eq!(metrics(&recipe, Stage::Sft), expected);
    assert_eq!(weights(&model), expected_weights);
}

#[test]
fn another_recipe_or_other_data_is_refused_by_name() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let first = recipe(dir.path(), &["sft.num_steps=4"]);
    finish(&first, Stage::Sft);
    let changed = recipe(
        dir.path(),
        &["sft.num_steps=4", "sft.optimizer.learning_rate=1e-4"],
    );
    let error = run(&changed, Stage::Sft, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`sft.optimizer.learning_rate` is 0.0001, was 0.005"),
        "{error}"
    );
    assert!(error.is_input() && error.hint().is_some());

    let other_data = recipe(dir.path(), &["sft.num_steps=4", "synth.num_traces=40"]);
    let error = run(
        &other_data,
        Stage::Sft,
        Resume::Auto,
        &mut Watcher::default(),
    )
    .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Checkpoint(CheckpointError::DatasetChanged { .. })
        ),
        "{error}"
    );

    // Starting over moves the earlier run aside and loses nothing.
    let mut watcher = Watcher::default();
    run(&other_data, Stage::Sft, Resume::Never, &mut watcher).unwrap();
    assert!(watcher.warnings[0].contains("sft.old-1"));
    assert!(
        first
            .run_dir
            .join("sft.old-1/checkpoints/latest/model.safetensors")
            .is_file()
    );
}

#[test]
fn a_run_goes_on_from_a_given_checkpoint() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &["sft.keep_checkpoints=3"]);
    finish(&recipe, Stage::Sft);
    let expected = metrics(&recipe, Stage::Sft);
    let earlier = RunLayout::new(&recipe.run_dir)
        .checkpoints(Stage::Sft)
        .join("step_4");
    let mut watcher = Watcher::default();
    run(&recipe, Stage::Sft, Resume::From(earlier), &mut watcher).unwrap();
    assert_eq!(watcher.steps.first(), Some(&5));
    assert_eq!(metrics(&recipe, Stage::Sft), expected);

    let missing = Resume::From(dir.path().join("nowhere"));
    assert!(run(&recipe, Stage::Sft, missing, &mut Watcher::default()).is_err());
    let wrong_stage = RunLayout::new(&recipe.run_dir).latest_model(Stage::Sft);
    let error = run(
        &recipe,
        Stage::Grpo,
        Resume::From(wrong_stage),
        &mut Watcher::default(),
    )
    .unwrap_err();
    assert!(
        matches!(error, Error::Checkpoint(CheckpointError::WrongStage { .. })),
        "{error}"
    );
}

#[test]
fn grpo_without_sft_and_training_without_data_say_what_is_missing() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &[]);
    let error = run(&recipe, Stage::Grpo, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(matches!(error, Error::NoInitialModel { .. }), "{error}");
    fs::remove_dir_all(recipe.run_dir.join("synth")).unwrap();
    let error = run(&recipe, Stage::Sft, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(matches!(error, Error::NoRows { .. }), "{error}");
}

#[test]
fn a_checkpoint_from_elsewhere_is_copied_before_anything_else() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &["sft.num_steps=4", "sft.save_every_steps=2"]);
    let model = finish(&recipe, Stage::Sft);
    let expected = weights(&model);
    let checkpoints = RunLayout::new(&recipe.run_dir).checkpoints(Stage::Sft);
    // Inside the stage's folder, which is about to move, and outside of it.
    let backup = recipe.run_dir.join("sft/backup/step_2");
    let last = dir.path().join("elsewhere");
    copy_folder(&checkpoints.join("step_2"), &backup);
    copy_folder(&model, &last);

    // Stopped before a step is done, the run knows where it began.
    let mut watcher = Watcher {
        stop_in_phase: Some((Phase::Train, 1)),
        ..Watcher::default()
    };
    run(&recipe, Stage::Sft, Resume::From(backup), &mut watcher).unwrap();
    assert!(watcher.warnings[0].contains("sft.old-1"));
    assert!(recipe.run_dir.join("sft.old-1/checkpoints/step_4").is_dir());
    let mut watcher = Watcher::default();
    run(&recipe, Stage::Sft, Resume::Auto, &mut watcher).unwrap();
    assert_eq!(watcher.steps, [3, 4]);
    assert_eq!(metrics(&recipe, Stage::Sft).len(), 2);
    assert_eq!(weights(&model), expected);

    // The last step of a run from elsewhere is a finished run with a model.
    let outcome = run(
        &recipe,
        Stage::Sft,
        Resume::From(last),
        &mut Watcher::default(),
    )
    .unwrap();
    let RunOutcome::Finished { model, .. } = outcome else {
        panic!("nobody asked to stop")
    };
    assert_eq!(weights(&model), expected);
    assert_eq!(finish(&recipe, Stage::Sft), model);

    // Killed between moving the old run aside and putting the copy in its place.
    let stage = recipe.run_dir.join("sft");
    fs::rename(&stage, recipe.run_dir.join(".sft.next")).unwrap();
    assert_eq!(weights(&finish(&recipe, Stage::Sft)), expected);
}

#[test]
fn grpo_knows_the_model_that_it_began_with() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let grpo = [
        "sft.num_steps=4",
        "grpo.num_steps=2",
        "grpo.dump_episodes_every_steps=1",
    ];
    let first = recipe(dir.path(), &grpo);
    finish(&first, Stage::Sft);
    let model = finish(&first, Stage::Grpo);
    // A model that has learnt nothing breaks every episode: no row has a gradient, and all of them are compared.
    for line in metrics(&first, Stage::Grpo) {
        assert!(line["logprob_mismatch_max_nats"].is_number(), "{line}");
    }

    // Without the earlier stage on the disk, what is finished is finished.
    let (stage, aside) = (first.run_dir.join("sft"), first.run_dir.join("aside"));
    fs::rename(&stage, &aside).unwrap();
    assert_eq!(finish(&first, Stage::Grpo), model);
    fs::rename(&aside, &stage).unwrap();

    // Episodes beyond the step that a run goes back to are of another history.
    let layout = RunLayout::new(&first.run_dir);
    fs::write(layout.episodes(Stage::Grpo, 7), b"x").unwrap();
    finish(&first, Stage::Grpo);
    assert!(!layout.episodes(Stage::Grpo, 7).exists());
    assert!(layout.episodes(Stage::Grpo, 2).exists());

    // What the metrics file has lost is said.
    fs::write(layout.metrics(Stage::Grpo), b"").unwrap();
    let mut watcher = Watcher::default();
    run(&first, Stage::Grpo, Resume::Auto, &mut watcher).unwrap();
    assert!(watcher.warnings[0].contains("metrics.jsonl"));

    let sets = [&grpo[..], &["sft.optimizer.learning_rate=1e-4"]].concat();
    let second = recipe(dir.path(), &sets);
    run(&second, Stage::Sft, Resume::Never, &mut Watcher::default()).unwrap();
    let error = run(&second, Stage::Grpo, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Checkpoint(CheckpointError::InitialModelChanged { .. })
        ),
        "{error}"
    );
    assert!(error.is_input() && error.hint().is_some());
    run(&second, Stage::Grpo, Resume::Never, &mut Watcher::default()).unwrap();
}

#[test]
fn a_run_that_fails_keeps_its_last_finished_step() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let sets = ["sft.num_steps=4", "grpo.save_every_steps=6"];
    let good = recipe(dir.path(), &sets);
    finish(&good, Stage::Sft);
    let model = finish(&good, Stage::Grpo);
    let (expected, expected_weights) = (metrics(&good, Stage::Grpo), weights(&model));
    let mismatch: Vec<f64> = expected
        .iter()
        .map(|line| line["logprob_mismatch_max_nats"].as_f64().unwrap())
        .collect();
    // A bound that the first steps keep and a later one breaks; rounding errors that only shrink give none.
    let Some(failing) = (1..6).find(|&step| mismatch[step] > mismatch[0]) else {
        return;
    };
    let bound = mismatch[..failing].iter().copied().fold(0.0, f64::max);
    let bound = format!("grpo.max_logprob_mismatch={bound}");
    // The last finished step is saved at the failure, or was being written in the background.
    let in_background = ["save_in_background=always", "grpo.save_every_steps=1"];
    for more in [&in_background[..], &[]] {
        let strict = recipe(dir.path(), &[&sets[..], &[bound.as_str()], more].concat());
        let error = run(&strict, Stage::Grpo, Resume::Never, &mut Watcher::default()).unwrap_err();
        let Error::LogprobMismatch { step, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(step, failing as u64 + 1);
        let checkpoint = RunLayout::new(&good.run_dir)
            .checkpoints(Stage::Grpo)
            .join(format!("step_{failing}"));
        assert!(checkpoint.is_dir());
    }
    assert_eq!(weights(&finish(&good, Stage::Grpo)), expected_weights);
    assert_eq!(metrics(&good, Stage::Grpo), expected);
}

#[test]
fn a_stage_in_use_and_files_of_two_models_are_refused() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &["sft.num_steps=2"]);
    let layout = RunLayout::new(&recipe.run_dir);
    let lock = StageLock::acquire(&layout, Stage::Sft).unwrap();
    let error = run(&recipe, Stage::Sft, Resume::Never, &mut Watcher::default()).unwrap_err();
    assert!(
        matches!(error, Error::Checkpoint(CheckpointError::RunInUse { .. })),
        "{error}"
    );
    drop(lock);
    let model = finish(&recipe, Stage::Sft);

    let path = model.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["surplus"] = Value::from(9999);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let error = PretrainedModel::load(&model, Device::Cpu, Precision::F32).unwrap_err();
    assert!(
        matches!(
            error,
            asyncthink_model::Error::VocabularyTooLarge { num_ids: 10000, .. }
        ),
        "{error}"
    );

    // Without its manifest, what `synth` wrote may be of two runs.
    fs::remove_file(layout.synth().manifest()).unwrap();
    assert!(matches!(
        train_problems(&RunLayout::new(&recipe.run_dir), &recipe.task),
        Err(Error::NoRows { .. })
    ));
    let error = run(&recipe, Stage::Sft, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(matches!(error, Error::NoRows { .. }), "{error}");
}

/// Gradients of all parameters under one cutting of the batch.
fn gradients(
    weights: &Weights,
    optimizer: &mut AdamW,
    rows: &[asyncthink_data::TrainingRow],
    micro_batch_tokens: usize,
    activation_checkpointing: bool,
    share_prefixes: bool,
    parallelism: Parallelism,
) -> Vec<Tensor> {
    let settings = BatchSettings {
        loss: Arc::new(ClippedPolicyLoss {
            clip: Clip {
                low: 0.2,
                high: 0.2,
                dual: None,
            },
        }),
        old_policy: OldPolicy::Sampler,
        measures_policy: true,
        parallelism,
        aggregation: Aggregation::EpisodeMean,
        temperature: 0.8,
        micro_batch_tokens,
        activation_checkpointing,
        share_prefixes,
        redistribute_rows: true,
    };
    optimizer.zero_grad();
    accumulate_gradient(weights, None, rows, &settings, optimizer, &mut |_, _| true)
        .unwrap()
        .unwrap();
    let Weights::Whole(decoder) = weights else {
        unreachable!("the test made it whole");
    };
    decoder
        .named_parameters()
        .iter()
        .map(|(_, parameter)| parameter.grad().copy())
        .collect()
}

fn assert_equal(expected: &[Tensor], gradients: &[Tensor]) {
    for (a, b) in expected.iter().zip(gradients) {
        let difference = (a - b).norm().double_value(&[]);
        let norm = a.norm().double_value(&[]);
        assert!(difference <= 1e-5 * norm, "{difference} of {norm}");
    }
}

/// How many trained tokens there are, once the sampler's log-probabilities equal the scores of all.
fn num_equal_logprobs(rows: &[TrainingRow], scores: &[Vec<f64>]) -> usize {
    let mut num_compared = 0;
    for (row, scores) in rows.iter().zip(scores) {
        let sampled = row
            .logprobs()
            .unwrap()
            .iter()
            .zip(row.loss_mask())
            .filter(|(_, trained)| **trained);
        for ((sampled, _), score) in sampled.zip(scores) {
            assert!(
                (f64::from(*sampled) - score).abs() < 1e-4,
                "{sampled} {score}"
            );
            num_compared += 1;
        }
    }
    num_compared
}

#[test]
fn trainer_and_sampler_agree_and_gradients_do_not_depend_on_packing() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(
        dir.path(),
        &["sft.num_steps=150", "sft.save_every_steps=150"],
    );
    let model = finish(&recipe, Stage::Sft);
    let mut model = PretrainedModel::load(&model, Device::Cpu, Precision::F32).unwrap();
    let problems = train_problems(&RunLayout::new(&recipe.run_dir), &recipe.task).unwrap();
    let sampler =
        EpisodeSampler::new(&ModelCard::new(&recipe.prompts, &recipe.protocol), 0.8).unwrap();
    let prompts: Vec<_> = (0..4)
        .map(|index| {
            sampler
                .problem_prompt(&model.tokenizer, &problems[index], index)
                .unwrap()
        })
        .collect();
    let queries: Vec<_> = (0..24)
        .map(|index| Query {
            prompt: Arc::clone(&prompts[index / 6]),
            sample_index: index % 6,
            seed: index as u64,
        })
        .collect();
    let episodes = sampler
        .run(&model.decoder, &model.tokenizer, &queries, &mut |_| true)
        .unwrap();
    assert!(
        episodes.iter().any(|episode| episode.num_joins > 0),
        "the model must have learnt to fork and join"
    );
    let rule = RewardRule {
        lambda: 0.2,
        tau: 0.9,
        format_error: -0.5,
        gate_concurrency: false,
    };
    let mut graded: Vec<_> = episodes
        .into_iter()
        .map(|episode| {
            let problem = &problems[episode.prompt_index];
            reward_episode(episode, problem, &model.tokenizer, &rule, true)
        })
        .collect();
    assign_advantages(&mut graded, 6, AdvantageRule::shared(&MeanCentred));
    let rows = training_rows(&graded).unwrap();

    let scores = score_rows(&model.decoder, &rows, 0.8, 700, false).unwrap();
    assert!(num_equal_logprobs(&rows, &scores) > 500);
    let shared = score_rows(&model.decoder, &rows, 0.8, 700, true).unwrap();
    for (a, b) in scores.concat().iter().zip(shared.concat()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }

    model.decoder.set_requires_grad(true);
    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
    };
    let parameters = model.decoder.trained_parameters();
    let mut optimizer = AdamW::new(parameters, settings, Arc::default(), 1 << 20).unwrap();
    let weights = Weights::Whole(Box::new(model.decoder));
    let mut of = |micro_batch_tokens, activation_checkpointing, share_prefixes, parallelism| {
        gradients(
            &weights,
            &mut optimizer,
            &rows,
            micro_batch_tokens,
            activation_checkpointing,
            share_prefixes,
            parallelism,
        )
    };
    // One thread at a time on a batch, then several, each with a part of it.
    let threads = Parallelism::within_operations(2);
    threads.apply();
    let whole = of(1_000_000, false, false, threads);
    // Layers that are computed again give the same bits.
    assert_eq!(of(1_000_000, true, false, threads), whole);
    let shared = of(1_000_000, false, true, threads);
    assert_eq!(of(1_000_000, true, true, threads), shared);
    assert_equal(&whole, &shared);
    let threads = Parallelism::across_batch(2);
    threads.apply();
    for (micro_batch_tokens, checkpointing) in
        [(1, false), (150, true), (700, false), (1_000_000, true)]
    {
        for share_prefixes in [false, true] {
            let cut = of(micro_batch_tokens, checkpointing, share_prefixes, threads);
            assert_equal(&whole, &cut);
        }
    }
}
