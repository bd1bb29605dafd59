//! An evaluation method: answers from a list, without a model.

use asyncthink_data::TokenId;
use asyncthink_eval::{EvalProgress, Method, OpenMethod, Question, Result, Target};
use asyncthink_protocol::RawTrace;
use asyncthink_rollout::{AgentRecord, Episode, GradedEpisode, Outcome};

/// Answers from a list, without a model.
#[derive(Debug)]
pub(super) struct FixedAnswers(pub(super) &'static [&'static str]);

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
