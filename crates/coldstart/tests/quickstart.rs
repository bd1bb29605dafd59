//! The teacher on a small recipe: legal, lossless, deterministic, reusable.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod small;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::Path;

use asyncthink_coldstart::{ColdstartSettings, Error, SynthReport, run, synthesize};
use asyncthink_data::parquet::{Role, read_problems, read_sft_pairs};
use asyncthink_data::{PromptForm, PromptTemplates, PromptText, SynthFolder, Tokenizer};
use asyncthink_protocol::{CharCounter, Overflow, TagStyle, Trace};
use asyncthink_recipe::Recipe;
use asyncthink_tasks::mcd::{self, McdTask};
use proptest::prelude::*;
use small::recipe;

fn settings(recipe: &Recipe) -> ColdstartSettings {
    ColdstartSettings::from_recipe(recipe).unwrap()
}

fn run_quietly(recipe: &Recipe, directory: &Path) -> SynthReport {
    run(&settings(recipe), directory, &mut |_| {}).unwrap()
}

fn templates(recipe: &Recipe) -> PromptTemplates {
    let text = PromptText {
        organizer: recipe.prompts.organizer.clone(),
        worker: recipe.prompts.worker.clone(),
        query: recipe.prompts.query.clone(),
    };
    PromptTemplates::new(text, 1).unwrap()
}

#[test]
fn pairs_are_complete_and_lossless() {
    let directory = tempfile::tempdir().unwrap();
    let report = run_quietly(&recipe(&[]), directory.path());
    let folder = SynthFolder::new(directory.path());
    assert_eq!(
        read_problems(&folder.train_problems(), &McdTask)
            .unwrap()
            .len(),
        60
    );
    assert_eq!(
        read_problems(&folder.test_problems(), &McdTask)
            .unwrap()
            .len(),
        10
    );
    let pairs = read_sft_pairs(&folder.pairs()).unwrap();
    assert_eq!(pairs.len(), report.num_pairs);
    let tokenizer = Tokenizer::from_dir(&folder.tokenizer()).unwrap();
    assert!(tokenizer.vocab_size() < 512, "{}", tokenizer.vocab_size());
    let mut num_tokens = 0;
    for pair in &pairs {
        for text in [&pair.prompt, &pair.response] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), *text);
        }
        let row = pair.tokenize(&tokenizer, PromptForm::Plain).unwrap();
        assert_eq!(
            tokenizer.decode(row.ids()),
            format!("{}{}", pair.prompt, pair.response)
        );
        num_tokens += row.len() as u64;
    }
    assert_eq!(num_tokens, report.num_tokens);
    // A trace of n sub-queries gives n + 1 pairs, in order.
    let organizers = pairs
        .iter()
        .filter(|pair| pair.role == Role::Organizer)
        .count();
    assert_eq!(organizers, report.num_traces);
    for trace in pairs.chunk_by(|left, right| left.trace_id == right.trace_id) {
        assert_eq!(trace[0].role, Role::Organizer);
        assert_eq!(trace.len() - 1, trace[0].response.matches("<FORK").count());
        for (index, worker) in (0..).zip(&trace[1..]) {
            assert_eq!(
                (worker.role, worker.worker_index),
                (Role::Worker, Some(index))
            );
            assert!(
                trace[0]
                    .response
                    .contains(worker.prompt.strip_prefix("sub ").unwrap().trim_end())
            );
        }
    }
    // Topologies of capacity 2 with up to 3 Forks: four, each about as often.
    assert_eq!(report.topologies.len(), 4);
    assert!(
        report.topologies.values().all(|&count| count > 40),
        "{:?}",
        report.topologies
    );
    assert!(
        report.mean_accuracy > 0.1 && report.all_correct < 0.9 && report.mean_eta_ratio > 0.5,
        "{report:?}"
    );
}

#[test]
fn a_second_call_reuses_the_files_and_a_change_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let first = run_quietly(&recipe(&[]), directory.path());
    let folder = SynthFolder::new(directory.path());
    let bytes = std::fs::read(folder.pairs()).unwrap();
    let second = run_quietly(&recipe(&[]), directory.path());
    assert!(!first.is_reused && second.is_reused);
    assert_eq!(first.num_seen_targets, 0);
    assert_eq!(
        SynthReport {
            is_reused: false,
            ..second
        },
        first
    );

    // A damaged file is made again, to the same bytes.
    std::fs::write(folder.pairs(), b"damaged").unwrap();
    assert!(!run_quietly(&recipe(&[]), directory.path()).is_reused);
    assert_eq!(std::fs::read(folder.pairs()).unwrap(), bytes);

    assert!(!run_quietly(&recipe(&["seed=2"]), directory.path()).is_reused);
    assert_ne!(std::fs::read(folder.pairs()).unwrap(), bytes);
}

#[test]
fn budgets_that_nothing_fits_are_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let tight = recipe(&["protocol.worker_max_tokens=4", "synth.num_traces=50"]);
    let error = run(&settings(&tight), directory.path(), &mut |_| {}).unwrap_err();
    assert!(
        matches!(error, Error::TooFewTraces { wanted: 50, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("`worker_max_tokens`"), "{error}");
    assert!(!SynthFolder::new(directory.path()).manifest().exists());
}

#[test]
fn rates_do_what_they_say() {
    let directory = tempfile::tempdir().unwrap();
    let keen = [
        "synth.hit_rate=1.0",
        "synth.correct_answer_rate=1.0",
        "synth.persistence_rate=1.0",
        "synth.wrong_return_rate=0.0",
        "synth.focus_rate=0.0",
    ];
    let report = run_quietly(&recipe(&keen), directory.path());
    assert!(report.all_correct > 0.99, "{report:?}");
    let lazy = [
        "synth.hit_rate=0.0",
        "synth.correct_answer_rate=0.0",
        "synth.persistence_rate=0.0",
    ];
    let report = run_quietly(&recipe(&lazy), directory.path());
    assert!(report.all_correct < 0.1, "{report:?}");
}

#[test]
fn given_problems_and_a_given_tokenizer_are_used() {
    let directory = tempfile::tempdir().unwrap();
    run_quietly(&recipe(&[]), directory.path());
    let made = SynthFolder::new(directory.path()).tokenizer();
    let rows = r#"{"index":0,"target":15,"available_numbers":[3,5,7,8],"solutions":["3*5"]}"#;
    let file = directory.path().join("rows.jsonl");
    std::fs::write(&file, format!("{rows}\n")).unwrap();
    let task = format!(
        "task.mcd={{ numbers_per_solution = [2, 2], required_solutions = 2, train_file = {file:?}, test_file = {file:?} }}"
    );
    let model = format!("model={{ path = {made:?} }}");
    let other = directory.path().join("other");
    let parse = |sets: &[&str]| recipe(&[&[task.as_str(), &model], sets].concat());
    let grpo = "grpo={ num_steps = 1, prompts_per_step = 2, optimizer = { learning_rate = 1e-3 } }";
    for (set, key) in [
        (grpo, "grpo.prompts_per_step"),
        ("eval.num_problems=2", "eval.num_problems"),
    ] {
        let error = run(&settings(&parse(&[set])), &other, &mut |_| {}).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("`{key}` is 2")),
            "{error}"
        );
    }
    let recipe = parse(&["eval.num_problems=1"]);
    let report = run_quietly(&recipe, &other);
    assert_eq!(
        (report.num_train_problems, report.num_test_problems),
        (1, 1)
    );
    assert_eq!(report.num_seen_targets, 1, "both files are the same one");
    let folder = SynthFolder::new(&other);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(
            std::fs::read(folder.tokenizer().join(name)).unwrap(),
            std::fs::read(made.join(name)).unwrap()
        );
    }
    assert!(run_quietly(&recipe, &other).is_reused);
    // Another line in the file is another input.
    std::fs::write(&file, format!("{rows}\n{rows}\n")).unwrap();
    assert!(!run_quietly(&recipe, &other).is_reused);
    std::fs::write(&file, "{}\n").unwrap();
    let error = run(&settings(&recipe), &other, &mut |_| {}).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Tasks(asyncthink_tasks::Error::ProblemFile { .. })
        ) && error.to_string().contains("rows.jsonl"),
        "{error}"
    );
}

/// The target that a prompt names.
fn target(prompt: &str) -> i64 {
    let (_, after) = prompt.split_once("= ").unwrap();
    after.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn values_are_written_at_the_width_asked_for() {
    let recipe = recipe(&[
        "synth.num_traces=20",
        "synth.value_width=3",
        "prompts.query=\"{numbers} = {target:03}\"",
        "model.init.number_tokens=\"pool\"",
    ]);
    let directory = tempfile::tempdir().unwrap();
    run_quietly(&recipe, directory.path());
    let folder = SynthFolder::new(directory.path());
    for pair in read_sft_pairs(&folder.pairs()).unwrap() {
        for line in pair.response.lines().filter(|line| !line.contains('<')) {
            let Some((expr, rest)) = line.split_once('=') else {
                continue;
            };
            assert!(!expr.starts_with('0'), "{line}");
            let value = rest.split_whitespace().next().unwrap();
            assert_eq!(value.len(), 3, "{line}");
        }
    }
    let tokenizer = Tokenizer::from_dir(&folder.tokenizer()).unwrap();
    for (number, num_tokens) in [("12", 1), ("13", 2), ("012", 3), ("030", 3)] {
        assert_eq!(
            tokenizer.encode(number).unwrap().len(),
            num_tokens,
            "{number}"
        );
    }
}

#[test]
fn other_targets_are_many_and_never_held_out() {
    let directory = tempfile::tempdir().unwrap();
    let sets = [
        "synth.other_target_rate=0.5",
        "synth.near_target_rate=0.5",
        "task.mcd.num_validation_problems=7",
    ];
    let report = run_quietly(&recipe(&sets), directory.path());
    assert_eq!(report.num_validation_problems, 7);
    let folder = SynthFolder::new(directory.path());
    let targets_of = |path: &Path| -> BTreeSet<i64> {
        let problems = read_problems(path, &McdTask).unwrap();
        let countdown = problems[0].downcast_ref::<mcd::Problem>();
        assert!(countdown.is_some(), "{:?}", problems[0]);
        problems
            .iter()
            .map(|problem| target(&templates(&recipe(&[])).query(&problem.fields())))
            .collect()
    };
    let trained = targets_of(&folder.train_problems());
    let held_out = targets_of(&folder.test_problems());
    let validation = targets_of(&folder.validation_problems());
    assert!(validation.is_disjoint(&held_out) && validation.is_disjoint(&trained));
    let pairs = read_sft_pairs(&folder.pairs()).unwrap();
    let organizers = pairs.iter().filter(|pair| pair.role == Role::Organizer);
    let asked: Vec<i64> = organizers.map(|pair| target(&pair.prompt)).collect();
    let num_other = asked.iter().filter(|one| !trained.contains(one)).count();
    let different: BTreeSet<i64> = asked.iter().copied().collect();
    assert!(num_other > 30 && num_other < asked.len() / 2, "{num_other}");
    assert!(different.len() > trained.len() + 10, "{different:?}");
    assert!(different.is_disjoint(&held_out), "{held_out:?}");
    assert!(different.is_disjoint(&validation), "{validation:?}");
    // A recipe that no longer asks for them leaves none behind.
    run_quietly(&recipe(&[]), directory.path());
    assert!(!folder.validation_problems().exists());
}

#[test]
fn near_targets_may_be_out_of_reach() {
    let num_with_a_hit = |rate: &str| {
        let directory = tempfile::tempdir().unwrap();
        let near = format!("synth.near_target_rate={rate}");
        let sets = ["synth.other_target_rate=1.0", "synth.hit_rate=1.0", &near];
        run_quietly(&recipe(&sets), directory.path());
        let pairs = read_sft_pairs(&SynthFolder::new(directory.path()).pairs()).unwrap();
        let hit = pairs.iter().filter(|pair| pair.response.contains(" ok "));
        hit.count()
    };
    let (values, near) = (num_with_a_hit("0.0"), num_with_a_hit("1.0"));
    assert!(near > 0 && near < values / 2, "{near} of {values}");
}

/// A look at the text, so that a change of it is seen.
#[test]
fn text_is_as_documented() {
    let recipe = recipe(&["synth.num_traces=40"]);
    let directory = tempfile::tempdir().unwrap();
    run_quietly(&recipe, directory.path());
    let (mut num_hits, mut num_taken_up) = (0, 0);
    for pair in read_sft_pairs(&SynthFolder::new(directory.path()).pairs()).unwrap() {
        let target = target(&pair.prompt);
        let mut known = String::new();
        let mut tried: Vec<String> = Vec::new();
        for line in pair.response.lines() {
            if let Some((join, list)) = line.split_once("have ") {
                let returned = join.rsplit_once("</JOIN").unwrap().0;
                let returned = returned.rsplit_once('>').unwrap().1;
                assert!(list.starts_with(returned), "{list} after {line}");
                // What was known stays, as far as there is room.
                let is_kept = |own: &str| list.split(';').any(|item| item == own);
                let is_full = list.split(';').count() == 2;
                assert!(is_full || known.split(';').all(|own| own.is_empty() || is_kept(own)));
                list.clone_into(&mut known);
                num_taken_up += 1;
            }
            let line = line.rsplit('>').next().unwrap();
            let Some((expr, rest)) = line.split_once('=') else {
                continue;
            };
            let (value, verdict) = rest.split_once(' ').unwrap();
            let value: i64 = value.parse().unwrap();
            let is_new = !tried.iter().any(|earlier| earlier == expr);
            assert!(is_new, "{expr} twice in {}", pair.response);
            tried.push(expr.to_owned());
            match value.cmp(&target) {
                Ordering::Less => assert_eq!(verdict, "low"),
                Ordering::Greater => assert_eq!(verdict, "high"),
                Ordering::Equal => {
                    let list = verdict.strip_prefix("ok ").unwrap();
                    assert!(list.starts_with(&known), "{list} after {known}");
                    assert!(list.split(';').count() <= 2);
                    list.clone_into(&mut known);
                    num_hits += 1;
                }
            }
        }
        let closing = if pair.role == Role::Organizer {
            "</ANSWER>"
        } else {
            let returned = format!("<RETURN>{known}</RETURN>");
            assert!(
                known.is_empty() || pair.response.ends_with(&returned),
                "{}",
                pair.response
            );
            "</RETURN>"
        };
        assert!(pair.response.ends_with(closing));
    }
    assert!(num_hits > 20 && num_taken_up > 10);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10) })]
    #[test]
    fn every_trace_is_legal(seed: u64, capacity in 1_u32..6, tags_are_hyphen: bool, large: bool) {
        let tags = if tags_are_hyphen { "hyphen" } else { "plain" };
        let forks = if capacity == 1 { 0 } else { 4 };
        let mut sets = vec![
            format!("protocol.capacity={capacity}"), format!("protocol.tag_style=\"{tags}\""),
            format!("synth.topology_max_forks={forks}"), "synth.num_traces=40".to_owned(), "task.mcd.num_train_problems=5".to_owned(),
            "protocol.organizer_max_tokens=2000".to_owned(), "protocol.worker_max_tokens=2000".to_owned(),
            "model.init.max_position_embeddings=8000".to_owned(), "synth.persistence_rate=0.5".to_owned(),
        ];
        if large {
            sets.extend(["task.mcd.numbers_per_solution=[2,4]", "task.mcd.number_range=[1,50]", "task.mcd.target_range=[100,200]"].map(str::to_owned));
        }
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let recipe = recipe(&sets);
        let directory = tempfile::tempdir().unwrap();
        let report = run_quietly(&recipe, directory.path());
        prop_assert_eq!(&report.rejected, &std::collections::BTreeMap::new());
        let folder = SynthFolder::new(directory.path());
        let tokenizer = Tokenizer::from_dir(&folder.tokenizer()).unwrap();
        let problems = read_problems(&folder.train_problems(), &McdTask).unwrap();
        let traces = synthesize(&settings(&recipe), &problems, &templates(&recipe), &tokenizer, &BTreeSet::new(), seed).unwrap();
        prop_assert_eq!(traces.len(), 40);
        let style = if tags_are_hyphen { TagStyle::Hyphen } else { TagStyle::Plain };
        for trace in &traces {
            let checked = Trace::check(&trace.raw, style, Overflow::Error, &CharCounter);
            prop_assert!(checked.is_ok(), "{:?} {:?}", checked, trace.raw);
            prop_assert!(checked.unwrap().workers().iter().all(|worker| worker.is_joined));
            for pair in trace.pairs(&templates(&recipe), &tokenizer).unwrap() {
                prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&pair.response).unwrap()), pair.response);
            }
        }
        let again = synthesize(&settings(&recipe), &problems, &templates(&recipe), &tokenizer, &BTreeSet::new(), seed).unwrap();
        prop_assert!(traces.iter().zip(&again).all(|(left, right)| left.raw == right.raw));
    }
}
