//! A whole evaluation of a model that has learnt next to nothing.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../../tests/src/tiny.rs"]
mod tiny;

use std::path::Path;

use asyncthink_checkpoint::RunLayout;
use asyncthink_distributed::{DeviceSettings, Ranks, open_device};
use asyncthink_eval::{
    EpisodeLine, Error, EvalProgress, EvalSettings, Evaluation, Methods, Result, Target, evaluate,
    table,
};
use asyncthink_protocol::{CharCounter, Trace};
use asyncthink_recipe::Recipe;
use asyncthink_trainer::{RunOptions, RunOutcome, SftSettings, StopFlag, run_sft, test_problems};
use tch::Device;

/// Overrides of the shared recipe.
const SETS: [&str; 6] = [
    "task.mcd.num_test_problems=4",
    "task.mcd.test_target_fraction=0.3",
    "model.init={ hidden_size = 32, num_layers = 2, num_heads = 2, num_kv_heads = 1, head_dim = 16, \
     intermediate_size = 64, max_position_embeddings = 512 }",
    "synth.num_traces=40",
    "sft={ num_steps = 20, batch_tokens = 1000, optimizer = { learning_rate = 5e-3 } }",
    "eval={ samples_per_problem = 3, bootstrap_samples = 50 }",
];

/// The recipe of a run in `run_dir`.
fn recipe(run_dir: &Path, sets: &[&str]) -> Recipe {
    let run_dir = format!("run_dir={}", run_dir.display());
    let sets = tiny::sets(&[&tiny::TRAINING, &SETS, &[&run_dir], sets]);
    Recipe::parse(tiny::TINY, Path::new("tiny.toml"), &sets).unwrap()
}

#[test]
fn an_evaluation_repeats_itself_and_its_parts_add_up() {
    set_threads();
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let recipe = recipe(&run_dir, &[]);
    let coldstart = asyncthink_coldstart::ColdstartSettings::from_recipe(&recipe).unwrap();
    asyncthink_coldstart::run(&coldstart, &run_dir, &mut |_| {}).unwrap();
    let outcome = run_sft(
        &SftSettings::from_recipe(&recipe).unwrap(),
        &RunOptions::default(),
        &mut (),
        &StopFlag::default(),
    )
    .unwrap();
    let RunOutcome::Finished { model, .. } = outcome else {
        panic!("nobody asked to stop")
    };

    let mut seen = Vec::new();
    let (evaluation, lines) = measure(&model, &recipe, &mut |progress| {
        seen.push(progress);
        true
    })
    .unwrap();
    assert_eq!(seen.last().unwrap().finished_episodes, 12);
    assert_eq!(
        (evaluation.num_problems, evaluation.samples_per_problem),
        (4, 3)
    );
    let ids: Vec<&str> = lines.iter().map(|line| line.id.as_str()).collect();
    assert_eq!((ids.len(), ids[0], ids[11]), (12, "p0.s0", "p3.s2"));
    for line in &lines {
        // What is written down is what was judged.
        let capacity = line.trace.capacity;
        assert_eq!(capacity, recipe.protocol.capacity.get());
        let check = Trace::check(
            &line.trace,
            recipe.protocol.tag_style,
            recipe.protocol.overflow,
            &CharCounter,
        );
        match check {
            Ok(trace) => assert_eq!(line.answer.as_deref(), Some(trace.answer())),
            Err(_) => assert!(line.error.is_some(), "{line:?}"),
        }
    }
    let errors = evaluation.metric("format_errors").unwrap().value;
    let kinds: f64 = evaluation
        .metrics
        .iter()
        .filter(|metric| metric.key.starts_with("format_errors."))
        .map(|metric| metric.interval.unwrap().value)
        .sum();
    assert!((errors - kinds).abs() < 1e-9);
    for metric in &evaluation.metrics {
        if let Some(interval) = metric.interval {
            assert!(
                interval.low <= interval.value && interval.value <= interval.high,
                "{metric:?}"
            );
        }
    }
    assert_eq!(
        measure(&model, &recipe, &mut |_| true).unwrap(),
        (evaluation.clone(), lines.clone())
    );
    assert!(table(&[("after SFT", &evaluation)]).contains("all correct"));
    assert!(matches!(
        measure(&model, &recipe, &mut |_| false),
        Err(Error::Stopped)
    ));

    let with = |sets: &[&str]| self::recipe(&run_dir, sets);
    // One episode at a time: the same episodes.
    assert_eq!(
        measure(&model, &with(&["engine.max_agents=2"]), &mut |_| true).unwrap(),
        (evaluation.clone(), lines.clone())
    );
    limits_of_the_engine_change_nothing(&model, &run_dir, &(evaluation.clone(), lines.clone()));
    // A sample of the problems: episodes of the whole evaluation.
    let (part, some) = measure(&model, &with(&["eval.num_problems=2"]), &mut |_| true).unwrap();
    assert_eq!((part.num_problems, some.len()), (2, 6));
    assert!(some.iter().all(|line| lines.contains(line)));
    // Budgets of one token make every episode fail; those of the model count, unless the recipe says otherwise.
    let short = [
        "protocol.organizer_max_tokens=1",
        "protocol.organizer_total_tokens=1",
        "eval.rules_from=recipe",
    ];
    assert_eq!(
        measure(&model, &with(&short[..2]), &mut |_| true).unwrap(),
        (evaluation.clone(), lines.clone())
    );
    let (cut, _) = measure(&model, &with(&short), &mut |_| true).unwrap();
    let share = cut.metric("format_errors").unwrap().value;
    assert!((share - 1.0).abs() < 1e-9, "{share}");

    let more = with(&["task.mcd.num_test_problems=9", "eval.num_problems=9"]);
    assert!(matches!(
        measure(&model, &more, &mut |_| true),
        Err(Error::TooFewProblems {
            wanted: 9,
            found: 4
        })
    ));
}

/// Parts of prompts, other blocks, and a cache that holds little more than one episode: the same episodes.
fn limits_of_the_engine_change_nothing(
    model: &Path,
    run_dir: &Path,
    expected: &(Evaluation, Vec<EpisodeLine>),
) {
    let tight = [
        "engine.max_batch_tokens=9",
        "engine.block_size=32",
        "engine.cache_memory=128KiB",
    ];
    let measured = measure(model, &recipe(run_dir, &tight), &mut |_| true);
    assert_eq!(&measured.unwrap(), expected);
    let none = recipe(run_dir, &["engine.cache_memory=16KiB"]);
    let error = measure(model, &none, &mut |_| true)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("the KV cache cannot hold one episode: an organizer of up to")
            && error.ends_with("4 blocks of 4096 bytes fit into the budget of 16384 bytes"),
        "{error}"
    );
}

/// An evaluation by one rank, which always has a result.
fn measure(
    model: &Path,
    recipe: &Recipe,
    progress: &mut dyn FnMut(EvalProgress) -> bool,
) -> Result<(Evaluation, Vec<EpisodeLine>)> {
    let settings = EvalSettings::from_recipe(recipe)?;
    let target = Target {
        model_dir: model,
        device: Device::Cpu,
        settings: &settings,
    };
    let method = Methods::builtin().find("asyncthink")?;
    let problems = test_problems(&RunLayout::new(&recipe.run_dir), &recipe.task).unwrap();
    Ok(evaluate(&target, &problems, method, &Ranks::single(), progress)?.unwrap())
}

/// Threads are counted once per process, before anything starts rayon's own.
fn set_threads() {
    let recipe = recipe(Path::new("unused"), &[]);
    open_device(&DeviceSettings::of(&recipe)).unwrap();
}
