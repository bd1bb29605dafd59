//! A task and a teacher that the project does not have, each in a file of its own and registered by one line, go the
//! whole way: recipe, problems, traces, files, grading.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod echo;
mod parrot;
#[path = "../small/mod.rs"]
mod small;

use std::path::Path;

use asyncthink_coldstart::{ColdstartSettings, Error, run, teacher};
use asyncthink_data::SynthFolder;
use asyncthink_data::parquet::{read_problems, read_sft_pairs};
use asyncthink_recipe::{Catalogue, ErrorKind, Recipe, RecipeErrors};
use asyncthink_tasks::{Registry, Task};
use echo::Echo;
use parrot::Parrot;

fn catalogue() -> Catalogue {
    Catalogue::closed(Registry::builtin().with(&Echo))
        .with_loss("clip", Catalogue::no_options("The clipped ratio."))
        .with_eval_method("asyncthink")
        .with_teacher("solver", Catalogue::no_options("The solver."))
        .with_teacher(
            teacher::Teacher::name(&Parrot),
            teacher::Teacher::options_schema(&Parrot),
        )
}

fn teachers() -> teacher::Registry {
    teacher::Registry::builtin().with(&Parrot)
}

/// The small recipe with another task and teacher.
fn load(sets: &[&str]) -> Result<Recipe, RecipeErrors> {
    let own = [
        "task={ echo = { num_words = 40 } }",
        "prompts.query=\"say {word}\"",
        "synth={ num_traces = 100, teacher = { parrot = {} } }",
    ];
    small::load(&[&own, sets].concat(), &catalogue())
}

fn loaded(sets: &[&str]) -> Recipe {
    load(sets).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_recipe_knows_the_section() {
    let recipe = loaded(&[]);
    assert_eq!(recipe.task.task().name(), "echo");
    let resolved = recipe.to_toml();
    assert!(
        resolved.contains("[task.echo]\nnum_words = 40\nprefix = \"word\"\n"),
        "{resolved}"
    );
    assert!(
        resolved.contains("[synth.teacher.parrot]\nsilent_every = 5\n"),
        "{resolved}"
    );
    let again = Recipe::parse_with(&resolved, Path::new("again.toml"), &[], &catalogue());
    assert_eq!(*again.unwrap(), *recipe);
    for (set, kind, key, hint) in [
        (
            "task.echo.prefx=\"x\"",
            ErrorKind::UnknownKey,
            "task.echo.prefx",
            "did you mean `prefix`?",
        ),
        (
            "task.echo.num_words=0",
            ErrorKind::OutOfRange,
            "task.echo.num_words",
            "between 1 and 1000",
        ),
        (
            "task={ ehco = {} }",
            ErrorKind::UnknownKey,
            "task.ehco",
            "did you mean `echo`?",
        ),
        (
            "task={ mcd = {}, echo = { num_words = 1 } }",
            ErrorKind::Conflict,
            "task.echo",
            "keep one of `[task.mcd]`, `[task.echo]`",
        ),
        (
            "task={}",
            ErrorKind::MissingKey,
            "task",
            "add one of `[task.echo]`, `[task.mcd]`",
        ),
        (
            "prompts.query=\"say {wrod}\"",
            ErrorKind::OutOfRange,
            "prompts.query",
            "did you mean `{word}`?",
        ),
        (
            "synth.teacher.parrot.silent_every=1",
            ErrorKind::OutOfRange,
            "synth.teacher.parrot.silent_every",
            "the default",
        ),
    ] {
        let errors = load(&[set]).expect_err(set);
        let found = errors.errors().iter().find(|error| error.key() == key);
        let error = found.unwrap_or_else(|| panic!("{set}: {errors}"));
        assert_eq!(error.kind(), kind, "{errors}");
        assert!(error.hint().contains(hint), "{errors}");
    }
}

#[test]
fn problems_and_traces_are_made() {
    let recipe = loaded(&[]);
    let settings = ColdstartSettings::from_recipe_with(&recipe, &teachers()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let report = run(&settings, directory.path(), &mut |_| {}).unwrap();
    assert_eq!((report.num_train_problems, report.num_traces), (40, 100));
    assert_eq!(report.num_seen_targets, 0);
    assert!(report.rejected["silent"] >= 20, "{report:?}");
    assert_eq!(report.topologies.len(), 4);
    let folder = SynthFolder::new(directory.path());
    let problems = read_problems(&folder.train_problems(), &Echo).unwrap();
    assert_eq!(
        problems,
        settings
            .task
            .problems(report_seed(&problems))
            .unwrap()
            .train
    );
    let error = read_problems(&folder.train_problems(), &asyncthink_tasks::mcd::McdTask);
    assert!(error.unwrap_err().to_string().contains("task `echo`"));
    for pair in read_sft_pairs(&folder.pairs()).unwrap() {
        assert_eq!(pair.teacher, "parrot");
        assert!(pair.prompt.contains("say word"), "{}", pair.prompt);
    }
    assert!(
        run(&settings, directory.path(), &mut |_| {})
            .unwrap()
            .is_reused
    );
}

/// The problems depend on the last digit of their seed only, which each shows.
fn report_seed(problems: &[asyncthink_tasks::Problem]) -> u64 {
    let (_, word) = problems[0].fields().remove(0);
    word.trim_start_matches("word")[..1].parse().unwrap()
}

#[test]
fn answers_are_graded_and_compared() {
    let problem = Echo.read_problem(r#"{"word": "hello"}"#).unwrap();
    assert!(problem.grade(" hello\n").is_all_correct());
    assert!(!problem.grade("goodbye").is_all_correct());
    assert_eq!(problem.vote_key(" hello"), problem.vote_key("hello "));
    assert_eq!(problem.split_key(), "hello");
    assert_eq!(
        serde_json::to_string(&problem).unwrap(),
        r#"{"echo":{"word":"hello"}}"#
    );
    Echo.read_problem("{}").unwrap_err();
}

#[test]
fn a_teacher_writes_for_its_tasks_only() {
    let solver = loaded(&["synth={ num_traces = 1 }"]);
    let error = ColdstartSettings::from_recipe_with(&solver, &teachers()).unwrap_err();
    assert!(matches!(error, Error::TaskNotTaught { .. }), "{error}");
    assert!(error.is_input());
    let message = error.to_string();
    assert!(
        message.contains("`solver`") && message.contains("`echo`"),
        "{message}"
    );
    let recipe = small::recipe(&["synth.teacher.parrot={}"]);
    let error = ColdstartSettings::from_recipe_with(&recipe, &teachers()).unwrap_err();
    assert!(matches!(error, Error::TaskNotTaught { .. }), "{error}");
    // The registry is a value: without its line the teacher is unknown.
    let error = ColdstartSettings::from_recipe(&loaded(&[])).unwrap_err();
    assert!(
        error.to_string().contains("choose one of `solver`"),
        "{error}"
    );
}
