//! What ranks sampled, put together on the first one.

use asyncthink_protocol::FormatError;
use asyncthink_trainer::Ranks;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::episode_line::EpisodeLine;
use crate::error::{Error, Result};
use crate::outcome::EpisodeOutcome;

/// All that is kept of an episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    pub(crate) outcome: EpisodeOutcome,
    pub(crate) line: EpisodeLine,
}

/// The episodes of all ranks, on the first of them, problem after problem with so many samples each.
pub(crate) fn gather(
    own: Vec<Measured>,
    num_problems: usize,
    samples_per_problem: usize,
    ranks: &Ranks,
) -> Result<Option<Vec<Measured>>> {
    if ranks.is_alone() {
        return Ok(Some(own));
    }
    let bytes = serde_json::to_vec(&own).map_err(|error| wrong(error.to_string()));
    let shares = ranks.gather_bytes(&ranks.agree_as(bytes)?)?;
    let all = ranks
        .is_first()
        .then(|| join(&shares, num_problems, samples_per_problem));
    ranks.agree_as(all.transpose())
}

/// Reads the shares and makes sure that they are one episode per place.
fn join(
    shares: &[Vec<u8>],
    num_problems: usize,
    samples_per_problem: usize,
) -> Result<Vec<Measured>> {
    let mut all: Vec<Measured> = Vec::new();
    for (rank, share) in shares.iter().enumerate() {
        let share: Vec<Measured> = serde_json::from_slice(share)
            .map_err(|error| wrong(format!("those of rank {rank}: {error}")))?;
        all.extend(share);
    }
    let wanted = num_problems * samples_per_problem;
    if all.len() != wanted {
        return Err(wrong(format!("{} instead of {wanted}", all.len())));
    }
    for (place, measured) in all.iter().enumerate() {
        let (problem, sample) = (place / samples_per_problem, place % samples_per_problem);
        let id = EpisodeLine::id_of(problem, sample);
        if measured.outcome.problem != problem || measured.line.id != id {
            let found = &measured.line.id;
            return Err(wrong(format!("`{found}` in the place of `{id}`")));
        }
    }
    Ok(all)
}

fn wrong(reason: String) -> Error {
    Error::Shares { reason }
}

/// The code of a format error. Spelled out in a field, it would look to serde like a piece of what is read.
pub(crate) type ErrorCode = &'static str;

/// Reads a code that a format error has.
pub(crate) fn error_code<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ErrorCode>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let code = FormatError::CODES.into_iter().find(|code| *code == text);
    code.map(Some)
        .ok_or_else(|| D::Error::custom("no code of a format error"))
}

#[cfg(test)]
mod tests {
    use asyncthink_protocol::RawTrace;

    use super::*;

    fn measured(problem: usize, sample: usize) -> Measured {
        let (latency_tokens, eta_ratio) = (Some(7), Some(1.0 / 3.0));
        Measured {
            outcome: EpisodeOutcome {
                problem,
                num_correct: 1,
                num_required: 3,
                accuracy: 1.0 / 3.0,
                error: (sample == 1).then_some("no_answer"),
                latency_tokens,
                eta_ratio,
                num_forks: 1,
                num_empty_returns: 0,
                num_cancelled_workers: 0,
                decoded_tokens: 9,
            },
            line: EpisodeLine {
                id: EpisodeLine::id_of(problem, sample),
                query: "1 2 = 3".to_owned(),
                trace: RawTrace {
                    capacity: 2,
                    organizer: "1+2=3 \"ok\"\n".to_owned(),
                    workers: Vec::new(),
                },
                answer: Some("1+2".to_owned()),
                error: (sample == 1).then_some("no_answer"),
                num_correct: 1,
                num_required: 3,
                latency_tokens,
                eta_ratio,
            },
        }
    }

    fn share(places: &[(usize, usize)]) -> Vec<u8> {
        let share: Vec<Measured> = places.iter().map(|&(p, s)| measured(p, s)).collect();
        serde_json::to_vec(&share).unwrap()
    }

    #[test]
    fn shares_come_back_to_the_bit() {
        let shares = [
            share(&[]),
            share(&[(0, 0), (0, 1)]),
            share(&[(1, 0), (1, 1)]),
        ];
        let expected = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(p, s)| measured(p, s));
        assert_eq!(join(&shares, 2, 2).unwrap(), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let good = share(&[(0, 0), (0, 1)]);
        let other_code = String::from_utf8(good.clone()).unwrap();
        let other_code = other_code.replace("no_answer", "bad_answer").into_bytes();
        for (second, reason) in [
            (share(&[(1, 0)]), "3 instead of 4"),
            (share(&[(1, 1), (1, 0)]), "`p1.s1` in the place of `p1.s0`"),
            (other_code, "those of rank 1: no code of a format error"),
            (good[..40].to_vec(), "those of rank 1: EOF"),
        ] {
            let error = join(&[good.clone(), second], 2, 2).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
