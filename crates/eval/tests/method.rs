//! A method of one's own, and what an evaluation makes of its episodes.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use asyncthink_data::TokenId;
use asyncthink_distributed::Ranks;
use asyncthink_eval::{
    Error, EvalProgress, EvalSettings, Method, Methods, OpenMethod, Question, Result, Target,
    evaluate,
};
use asyncthink_protocol::RawTrace;
use asyncthink_recipe::Recipe;
use asyncthink_rollout::{AgentRecord, Episode, GradedEpisode, Outcome};
use asyncthink_tasks::{Problem, mcd};
use tch::Device;

const RECIPE: &str = r#"
name = "fixed"
run_dir = "unused"
device = "cpu"

[task.mcd]
num_numbers = 4
number_range = [1, 8]
target_range = [2, 20]
numbers_per_solution = [2, 2]
required_solutions = 2
num_train_problems = 8
num_test_problems = 4

[protocol]
capacity = 2
worker_max_tokens = 60
organizer_max_tokens = 80

[prompts]
organizer = "main {query}\n"
worker = "sub {sub_query}\n"
query = "{numbers} = {target}"

[model]
path = "unused"

[eval]
samples_per_problem = 2
bootstrap_samples = 50
"#;

/// Answers from a list, without a model.
#[derive(Debug)]
struct FixedAnswers(&'static [&'static str]);

static FIXED: FixedAnswers = FixedAnswers(&["3+5", "3+5, 4*2"]);

impl Method for FixedAnswers {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn open(&self, _: &Target<'_>) -> Result<Box<dyn OpenMethod>> {
        Ok(Box::new(Self(self.0)))
    }
}

impl OpenMethod for FixedAnswers {
    fn identity(&self) -> String {
        format!("{:?}", self.0)
    }

    fn run(
        &mut self,
        questions: &[Question<'_>],
        progress: &mut dyn FnMut(EvalProgress) -> bool,
    ) -> Result<Option<Vec<GradedEpisode>>> {
        let mut episodes = Vec::new();
        for question in questions {
            let mut organizer = AgentRecord::new(vec![TokenId(0)]);
            organizer.push_decoded(TokenId(1), None);
            let episode = Episode {
                prompt_index: question.problem_index,
                query: "which?".to_owned(),
                sample_index: question.sample_index,
                organizer,
                workers: Vec::new(),
                outcome: Outcome::Answered(self.0[question.sample_index].to_owned()),
                timeline: None,
                num_joins: 0,
            };
            episodes.push(GradedEpisode::new(episode, question.problem));
            let goes_on = progress(EvalProgress {
                finished_episodes: episodes.len(),
                total_episodes: questions.len(),
            });
            if !goes_on {
                return Ok(None);
            }
        }
        Ok(Some(episodes))
    }

    fn raw_trace(&self, episode: &Episode) -> RawTrace {
        RawTrace {
            capacity: 1,
            organizer: episode.answer().unwrap_or_default().to_owned(),
            workers: Vec::new(),
        }
    }
}

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
    let recipe = Recipe::parse(RECIPE, Path::new("fixed.toml"), &[]).unwrap();
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
