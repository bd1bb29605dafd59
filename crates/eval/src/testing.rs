//! Episodes for the tests of this crate.

use asyncthink_data::TokenId;
use asyncthink_protocol::{Concurrency, FormatError, SubQueryId};
use asyncthink_rollout::{
    AgentRecord, AttemptCounts, Episode, GradedEpisode, Outcome, WorkerEnd, WorkerRecord,
};

/// An episode of 50 decoded tokens that asks for two items. Of problem `n` there are `2 n + 1` workers: one is cancelled, `n`
/// return nothing.
pub(crate) fn graded(problem: usize, num_correct: usize, has_error: bool) -> GradedEpisode {
    let mut organizer = AgentRecord::new(vec![TokenId(1)]);
    for _ in 0..50 {
        organizer.push_decoded(TokenId(2), Some(-0.1));
    }
    let worker = |index: usize| WorkerRecord {
        sub_query_id: SubQueryId(1),
        sub_query: "1 + 1".to_owned(),
        record: AgentRecord::default(),
        end: match index {
            0 => WorkerEnd::Cancelled,
            index if index <= problem => WorkerEnd::Empty,
            _ => WorkerEnd::Returned("2".to_owned()),
        },
    };
    GradedEpisode {
        episode: Episode {
            prompt_index: problem,
            query: "1 2 = 3".to_owned(),
            sample_index: 0,
            organizer,
            workers: (0..=2 * problem).map(worker).collect(),
            outcome: if has_error {
                Outcome::Failed(FormatError::NoAnswer)
            } else {
                Outcome::Answered("1+2".to_owned())
            },
            timeline: None,
            num_joins: 0,
        },
        num_correct,
        num_required: 2,
        accuracy: num_correct as f64 / 2.0,
        concurrency: (!has_error).then_some(Concurrency {
            latency_tokens: 100 + 20 * problem as u64,
            eta: 1.0,
            eta_ratio: 0.5,
        }),
        attempts: (problem > 0).then_some(AttemptCounts {
            num_attempts: 4,
            num_repeated: 1,
        }),
    }
}
