//! A candidate as ranks exchange it: the pairs of a trace with its figures, or the rule that refused it.

use asyncthink_data::parquet::{Role, SftPair};
use asyncthink_data::{PromptTemplates, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::pipeline::MAX_REASON_BYTES;
use crate::report::TraceFigures;
use crate::seeds::{Stream, seed_of};
use crate::trace::SynthTrace;

/// A candidate that was written and judged.
pub(crate) type Candidate = Result<Accepted, String>;

/// A trace that passed the rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Accepted {
    /// The organizer's, then those of the workers.
    pub(crate) pairs: Vec<SftPair>,
    pub(crate) figures: TraceFigures,
}

impl Accepted {
    pub(crate) fn of(
        trace: &SynthTrace,
        templates: &PromptTemplates,
        tokenizer: &Tokenizer,
    ) -> Candidate {
        Ok(Self {
            pairs: trace
                .pairs(templates, tokenizer)
                .map_err(|_| "chat template".to_owned())?,
            figures: TraceFigures::of(trace),
        })
    }
}

/// Provenance that a candidate must have, to refuse one that does not belong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) teacher: &'a str,
    pub(crate) seed: u64,
    pub(crate) trace_id: u64,
    pub(crate) problem_index: usize,
}

impl Expected<'_> {
    /// Says what is wrong with a candidate of another rank.
    pub(crate) fn check(&self, candidate: &Candidate) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("trace {}: {what}", self.trace_id));
        let accepted = match candidate {
            Ok(accepted) => accepted,
            Err(rule) if rule.len() <= MAX_REASON_BYTES => return Ok(()),
            Err(_) => return wrong("the name of a rule is too long"),
        };
        let Accepted { pairs, figures } = accepted;
        if pairs.is_empty() || pairs.len() != figures.pair_tokens.len() {
            return wrong("pairs and their lengths do not fit together");
        }
        let seed = seed_of(self.seed, Stream::Trace, self.trace_id);
        for (index, pair) in pairs.iter().enumerate() {
            let worker_index = index.checked_sub(1);
            let role = match worker_index {
                None => Role::Organizer,
                Some(_) => Role::Worker,
            };
            let is_in_place =
                pair.role == role && pair.worker_index.map(|index| index as usize) == worker_index;
            if !is_in_place {
                return wrong("its pairs are not in order");
            }
            let is_of_trace = pair.trace_id == self.trace_id
                && pair.problem_index == self.problem_index as u64
                && pair.seed == seed
                && pair.teacher == self.teacher
                && pair.topology == figures.topology;
            if !is_of_trace {
                return wrong("a pair is of another trace");
            }
            if !has_ordered_spans(pair) {
                return wrong("injected text is outside the response");
            }
        }
        let figures = [figures.accuracy, figures.eta_ratio];
        if !figures.iter().all(|figure| figure.is_finite()) {
            return wrong("a figure is not a number");
        }
        Ok(())
    }
}

fn has_ordered_spans(pair: &SftPair) -> bool {
    let mut from = 0;
    pair.injected.iter().all(|span| {
        let (start, end) = (span.start as usize, span.end as usize);
        let is_ordered = from <= start && pair.response.get(start..end).is_some();
        from = end;
        is_ordered
    })
}

#[cfg(test)]
mod tests {
    use asyncthink_data::parquet::Span;

    use super::*;

    const TEACHER: &str = "solver";

    const EXPECTED: Expected<'_> = Expected {
        teacher: TEACHER,
        seed: 1,
        trace_id: 7,
        problem_index: 3,
    };

    fn accepted() -> Accepted {
        let organizer = SftPair {
            trace_id: 7,
            role: Role::Organizer,
            worker_index: None,
            problem_index: 3,
            prompt: "main".to_owned(),
            response: "1+2=3".to_owned(),
            injected: vec![Span { start: 1, end: 3 }],
            teacher: TEACHER.to_owned(),
            seed: seed_of(1, Stream::Trace, 7),
            topology: "F1 J1".to_owned(),
        };
        let worker = SftPair {
            role: Role::Worker,
            worker_index: Some(0),
            injected: Vec::new(),
            ..organizer.clone()
        };
        Accepted {
            pairs: vec![organizer, worker],
            figures: TraceFigures {
                topology: "F1 J1".to_owned(),
                pair_tokens: vec![9, 5],
                accuracy: 0.5,
                is_all_correct: false,
                eta_ratio: 0.75,
                latency_tokens: 12,
            },
        }
    }

    type Change = fn(&mut Accepted);

    #[test]
    fn what_does_not_belong_is_refused() {
        EXPECTED.check(&Ok(accepted())).unwrap();
        EXPECTED.check(&Err("malformed".to_owned())).unwrap();
        let changes: [(Change, &str); 6] = [
            (|one| one.pairs.clear(), "do not fit together"),
            (|one| one.pairs.swap(0, 1), "not in order"),
            (|one| one.pairs[1].trace_id = 8, "another trace"),
            (|one| one.pairs[0].seed += 1, "another trace"),
            (
                |one| one.pairs[0].injected[0].end = 9,
                "outside the response",
            ),
            (|one| one.figures.eta_ratio = f64::NAN, "not a number"),
        ];
        for (change, reason) in changes {
            let mut one = accepted();
            change(&mut one);
            let error = EXPECTED.check(&Ok(one)).unwrap_err();
            assert!(
                error.starts_with("trace 7: ") && error.contains(reason),
                "{error}"
            );
        }
        EXPECTED.check(&Err("x".repeat(65))).unwrap_err();
    }
}
