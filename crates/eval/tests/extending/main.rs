//! A method of one's own, and what an evaluation makes of its episodes.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod fixed_answers;
#[path = "../../../../tests/src/tiny.rs"]
mod tiny;

use std::path::Path;

use asyncthink_distributed::Ranks;
use asyncthink_eval::{Error, EvalProgress, EvalSettings, Methods, Target, evaluate};
use asyncthink_recipe::Recipe;
use asyncthink_tasks::{Problem, mcd};
use tch::Device;

use fixed_answers::FixedAnswers;

static FIXED: FixedAnswers = FixedAnswers(&["3+5", "3+5, 4*2"]);

fn problems() -> Vec<Problem> {
    let rules = mcd::Rules {
        min_numbers: 2,
        max_numbers: 2,
    };
    let problem = mcd::Problem::new(8, vec![3, 5, 2, 4], 2, rules).unwrap();
    vec![problem.into(); 3]
}

#[test]
fn a_method_is_found_by_name_and_measured_like_the_others() {
    let sets = tiny::sets(&[&["eval={ samples_per_problem = 2, bootstrap_samples = 50 }"]]);
    let recipe = Recipe::parse(tiny::TINY, Path::new("fixed.toml"), &sets).unwrap();
    let settings = EvalSettings::from_recipe(&recipe).unwrap();
    assert_eq!(settings.methods, ["asyncthink"]);
    let target = Target {
        model_dir: Path::new("none"),
        device: Device::Cpu,
        settings: &settings,
    };
    let methods = Methods::builtin().with(&FIXED);
    let method = methods.find("fixed").unwrap();
    let problems = problems();
    let run = |progress: &mut dyn FnMut(EvalProgress) -> bool| {
        evaluate(&target, &problems, method, &Ranks::single(), progress)
    };
    let (evaluation, lines) = run(&mut |_| true).unwrap().unwrap();
    let value = |key: &str| evaluation.metric(key).map(|interval| interval.value);
    assert_eq!(value("all_correct"), Some(0.5));
    assert_eq!(value("accuracy"), Some(0.75));
    assert_eq!(value("format_errors"), Some(0.0));
    // The method tells no timeline.
    assert_eq!(value("latency_tokens"), None);
    let ids: Vec<&str> = lines.iter().map(|line| line.id.as_str()).collect();
    assert_eq!(ids, ["p0.s0", "p0.s1", "p1.s0", "p1.s1", "p2.s0", "p2.s1"]);
    assert_eq!(lines[1].trace.organizer, "3+5, 4*2");
    assert!(matches!(
        run(&mut |at| at.finished_episodes < 3),
        Err(Error::Stopped)
    ));
    let error = methods.find("fixd").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`eval.methods`: there is no method `fixd` (known: asyncthink, fixed)"
    );
}
