//! Whole runs on a tiny problem: stopping and resuming, damage, refusals, and log-probabilities of real episodes.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use asyncthink_recipe::{Recipe, Stage};
use asyncthink_torch::{Parallelism, set_num_threads, set_parallelism};
use asyncthink_trainer::{
    Advantage, Aggregation, BatchSettings, Clip, EpisodeSampler, Error, ModelCard, ModelFiles,
    Objective, Observer, Phase, Resume, RewardRule, RunLayout, RunOptions, RunOutcome, StageLock,
    StepReport, StopFlag, accumulate_gradient, assign_advantages, grade_episode, run_grpo, run_sft,
    score_rows, train_problems, training_rows,
};
use fs_err as fs;
use serde_json::Value;
use tch::{Device, Tensor};

const RECIPE: &str = r#"
name = "tiny"
run_dir = "RUN"
seed = 3
device = "cpu"
num_threads = 2

[task.mcd]
num_numbers = 4
number_range = [1, 8]
target_range = [2, 20]
numbers_per_solution = [2, 2]
required_solutions = 2
num_train_problems = 5
num_test_problems = 2
test_target_fraction = 0.2

[protocol]
capacity = 2
worker_max_tokens = 60
organizer_max_tokens = 80
max_forks = 2
organizer_total_tokens = 160

[prompts]
organizer = "main {query}\n"
worker = "sub {sub_query}\n"
query = "{numbers} = {target}"

[model.init]
hidden_size = 48
num_layers = 2
num_heads = 2
num_kv_heads = 1
head_dim = 24
intermediate_size = 96
max_position_embeddings = 512

[synth]
num_traces = 60
max_attempts_organizer = 2
max_attempts_worker = 2
topology_max_forks = 2

[sft]
num_steps = 12
batch_tokens = 1500
micro_batch_tokens = 600
save_every_steps = 4
eval_every_steps = 5

[sft.optimizer]
learning_rate = 5e-3
warmup_steps = 2
schedule = "cosine"

[grpo]
num_steps = 6
prompts_per_step = 2
group_size = 4
save_every_steps = 2
dump_episodes_every_steps = 3
micro_batch_tokens = 600
max_logprob_mismatch = 1e-4

[grpo.optimizer]
learning_rate = 1e-3

[grpo.reward]
gate_concurrency = false
"#;

/// libtorch's generator, which draws initial weights, is one per process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    // Before anything starts rayon's threads in another number.
    set_num_threads(2).unwrap();
    ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A recipe whose run lies in `dir`, with problems and pairs made.
fn recipe(dir: &Path, sets: &[&str]) -> Recipe {
    let run_dir = dir.join("run");
    let text = RECIPE.replace("RUN", run_dir.to_str().unwrap());
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let recipe = Recipe::parse(&text, Path::new("tiny.toml"), &sets).unwrap();
    asyncthink_synth::run(&recipe, &run_dir, &mut |_| {}).unwrap();
    recipe
}

/// Raises the stop flag at a moment and collects what it is told.
#[derive(Default)]
struct Watcher {
    stop: StopFlag,
    stop_after_step: Option<u64>,
    stop_in_phase: Option<(Phase, u64)>,
    phases_seen: u64,
    warnings: Vec<String>,
    steps: Vec<u64>,
}

impl Observer for Watcher {
    fn phase(&mut self, phase: Phase, _done: u64, _total: u64) {
        if let Some((wanted, count)) = self.stop_in_phase
            && wanted == phase
        {
            self.phases_seen += 1;
            if self.phases_seen == count {
                self.stop.request(15);
            }
        }
    }

    fn step(&mut self, report: &StepReport<'_>) {
        self.steps.push(report.step);
        if self.stop_after_step == Some(report.step) {
            self.stop.request(2);
        }
    }

    fn warning(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }
}

fn run(
    recipe: &Recipe,
    stage: Stage,
    resume: Resume,
    watcher: &mut Watcher,
) -> Result<RunOutcome, Error> {
    let stop = watcher.stop.clone();
    let options = RunOptions { resume };
    match stage {
        Stage::Sft => run_sft(recipe, &options, watcher, &stop),
        _ => run_grpo(recipe, &options, watcher, &stop),
    }
}

fn finish(recipe: &Recipe, stage: Stage) -> PathBuf {
    match run(recipe, stage, Resume::Auto, &mut Watcher::default()).unwrap() {
        RunOutcome::Finished { model, .. } => model,
        RunOutcome::Stopped { .. } => panic!("nobody asked to stop"),
    }
}

/// The metrics without the figures that a clock made.
fn metrics(recipe: &Recipe, stage: Stage) -> Vec<Value> {
    let text = fs::read_to_string(RunLayout::new(&recipe.run_dir).metrics(stage)).unwrap();
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            assert!(value.as_object_mut().unwrap().remove("timing").is_some());
            value
        })
        .collect()
}

fn weights(model: &Path) -> Vec<u8> {
    fs::read(model.join("model.safetensors")).unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (source, target) = (
            entry.as_ref().unwrap().path(),
            to.join(entry.unwrap().file_name()),
        );
        if source.is_symlink() {
            fs::os::unix::fs::symlink(fs::read_link(&source).unwrap(), &target).unwrap();
        } else if source.is_dir() {
            copy_folder(&source, &target);
        } else {
            fs::copy(&source, &target).unwrap();
        }
    }
}

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
    let card = ModelCard::read(&resumed).unwrap();
    assert_eq!(card, ModelCard::of(&broken));
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
    assert!(matches!(error, Error::DatasetChanged { .. }), "{error}");

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
    assert!(matches!(error, Error::WrongStage { .. }), "{error}");
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
        matches!(error, Error::InitialModelChanged { .. }),
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
    let strict = recipe(dir.path(), &[&sets[..], &[bound.as_str()]].concat());
    let error = run(&strict, Stage::Grpo, Resume::Never, &mut Watcher::default()).unwrap_err();
    let Error::LogprobMismatch { step, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(step, failing as u64 + 1);
    let checkpoint = RunLayout::new(&good.run_dir)
        .checkpoints(Stage::Grpo)
        .join(format!("step_{failing}"));
    assert!(checkpoint.is_dir());
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
    assert!(matches!(error, Error::RunInUse { .. }), "{error}");
    drop(lock);
    let model = finish(&recipe, Stage::Sft);

    let path = model.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["surplus"] = Value::from(9999);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let error = ModelFiles::load(&model, Device::Cpu).unwrap_err();
    assert!(
        matches!(error, Error::VocabularyTooLarge { num_ids: 10000, .. }),
        "{error}"
    );

    // Without its manifest, what `synth` wrote may be of two runs.
    fs::remove_file(layout.synth().manifest()).unwrap();
    assert!(matches!(train_problems(&recipe), Err(Error::NoRows { .. })));
    let error = run(&recipe, Stage::Sft, Resume::Auto, &mut Watcher::default()).unwrap_err();
    assert!(matches!(error, Error::NoRows { .. }), "{error}");
}

/// Gradients of all parameters under one cutting of the batch.
fn gradients(
    model: &mut ModelFiles,
    rows: &[asyncthink_data::TrainingRow],
    micro_batch_tokens: usize,
) -> Vec<Tensor> {
    model.decoder.set_requires_grad(true);
    let settings = BatchSettings {
        objective: Objective::Policy {
            clip: Clip {
                low: 0.2,
                high: 0.2,
            },
            kl_beta: 0.0,
        },
        aggregation: Aggregation::EpisodeMean,
        temperature: 0.8,
        micro_batch_tokens,
    };
    let mut parameters: Vec<Tensor> = model
        .decoder
        .named_parameters()
        .iter()
        .map(|(_, tensor)| tensor.shallow_clone())
        .collect();
    for parameter in &mut parameters {
        parameter.zero_grad();
    }
    accumulate_gradient(&model.decoder, None, rows, &settings, &mut |_, _| true)
        .unwrap()
        .unwrap();
    parameters
        .iter()
        .map(|parameter| parameter.grad().copy())
        .collect()
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
    let mut model = ModelFiles::load(&model, Device::Cpu).unwrap();
    let problems = train_problems(&recipe).unwrap();
    let sampler = EpisodeSampler::new(&ModelCard::of(&recipe), 0.8).unwrap();
    let queries: Vec<_> = (0..24)
        .map(|index| sampler.query(&problems[index / 6], index / 6, index % 6, index as u64))
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
            grade_episode(episode, problem, &rule, true)
        })
        .collect();
    assign_advantages(&mut graded, 6, Advantage::MeanCentred);
    let rows = training_rows(&graded).unwrap();

    let scores = score_rows(&model.decoder, &rows, 0.8, 700).unwrap();
    let mut num_compared = 0;
    for (row, scores) in rows.iter().zip(&scores) {
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
    assert!(num_compared > 500);

    // One thread at a time on a batch, then several, each with a part of it.
    set_parallelism(Parallelism::WithinOperations);
    let whole = gradients(&mut model, &rows, 1_000_000);
    set_parallelism(Parallelism::AcrossBatch);
    for micro_batch_tokens in [1, 150, 700, 1_000_000] {
        let cut = gradients(&mut model, &rows, micro_batch_tokens);
        for (a, b) in whole.iter().zip(&cut) {
            let difference = (a - b).norm().double_value(&[]);
            let norm = a.norm().double_value(&[]);
            assert!(difference <= 1e-5 * norm, "{difference} of {norm}");
        }
    }
}
