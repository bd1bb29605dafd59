//! Takes candidates until enough have passed the rules.

use std::ops::Range;

use asyncthink_data::parquet::SftPair;

use crate::assignment::Assignment;
use crate::candidate::{Candidate, Expected};
use crate::error::{Error, Result};
use crate::report::SynthReport;
use crate::settings::ColdstartSettings;

/// Most candidates of a rank between two exchanges, and two calls of the progress function.
const CHUNK: usize = 512;

/// Fewest candidates of a round: a few more than are missing cost less than another round.
const MIN_ROUND: usize = 64;

/// Candidates tried per trace asked for before the stage gives up: if the rules refuse more than half, what is left is no
/// longer a uniform draw of topologies.
const MAX_CANDIDATES_PER_TRACE: usize = 2;

/// The traces that the first rank has taken, in the order of their numbers, until enough have passed the rules. That order
/// alone decides, so rounds and ranks do not show in the files.
pub(crate) struct Selection {
    pub(crate) report: SynthReport,
    pub(crate) pairs: Vec<SftPair>,
    /// Traces asked for.
    num_traces: usize,
    /// Candidates looked at.
    num_tried: usize,
    seed: u64,
    teacher: &'static str,
}

impl Selection {
    /// Begins with a report that has no traces yet.
    pub(crate) fn new(report: SynthReport, settings: &ColdstartSettings) -> Self {
        Self {
            report,
            pairs: Vec::new(),
            num_traces: settings.synth.num_traces,
            num_tried: 0,
            seed: settings.seed,
            teacher: settings.teacher.name(),
        }
    }

    /// Numbers of the candidates that are written next; none at the end.
    pub(crate) fn next_round(&self, assignment: Assignment) -> Range<usize> {
        let num_missing = self.num_traces - self.report.num_traces;
        let max_tried = self.num_traces.saturating_mul(MAX_CANDIDATES_PER_TRACE);
        if num_missing == 0 || assignment.is_empty() {
            return 0..0;
        }
        let count = num_missing.clamp(MIN_ROUND, CHUNK * assignment.world_size());
        self.num_tried..(self.num_tried + count).min(max_tried)
    }

    /// Takes the candidates of a round, given by rank.
    pub(crate) fn take(
        &mut self,
        round: Range<usize>,
        shares: Vec<Result<Vec<Candidate>>>,
        assignment: Assignment,
    ) -> Result<()> {
        let shares = shares.into_iter().collect::<Result<Vec<_>>>()?;
        let mut shares: Vec<_> = shares.into_iter().map(Vec::into_iter).collect();
        for id in round {
            self.num_tried += 1;
            let rank = assignment.rank_of(id);
            let candidate = shares.get_mut(rank).and_then(Iterator::next);
            let candidate =
                candidate.ok_or_else(|| Error::invalid_message(rank, "candidates are missing"))?;
            let expected = Expected {
                teacher: self.teacher,
                seed: self.seed,
                trace_id: id as u64,
                problem_index: assignment.problem_of(id),
            };
            expected
                .check(&candidate)
                .map_err(|reason| Error::invalid_message(rank, reason))?;
            match candidate {
                // Candidates beyond the number asked for are not part of the run.
                _ if self.report.num_traces == self.num_traces => {}
                Ok(accepted) => {
                    self.report.add(&accepted.figures);
                    self.pairs.extend(accepted.pairs);
                }
                Err(rule) => *self.report.rejected.entry(rule).or_default() += 1,
            }
        }
        match shares.iter().position(|rest| rest.len() > 0) {
            Some(rank) => Err(Error::invalid_message(rank, "candidates of other ranks")),
            None => Ok(()),
        }
    }

    /// Fails where the rules refused too many.
    pub(crate) fn check_enough(&self) -> Result<()> {
        if self.report.num_traces == self.num_traces {
            return Ok(());
        }
        Err(Error::TooFewTraces {
            wanted: self.num_traces,
            accepted: self.report.num_traces,
            rejected: self.report.rejected_text(),
        })
    }
}
