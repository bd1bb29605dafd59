//! Which problem a trace is about, and which rank writes it.

use crate::exchange::Stride;

/// Traces go over the problems in turn; the ranks share the problems.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Assignment {
    num_problems: usize,
    stride: Stride,
}

impl Assignment {
    /// Assigns `num_traces` traces to the first problems of `num_available`.
    pub(crate) fn new(num_available: usize, num_traces: usize, stride: Stride) -> Self {
        Self {
            num_problems: num_available.min(num_traces),
            stride,
        }
    }

    /// Indices of the problems of this rank.
    pub(crate) fn own_problems(self) -> impl Iterator<Item = usize> {
        (0..self.num_problems).filter(move |&index| self.stride.holds(index))
    }

    /// Index of the problem of a trace. There must be problems.
    pub(crate) fn problem_of(self, trace_id: usize) -> usize {
        trace_id % self.num_problems
    }

    /// The rank that writes a trace.
    pub(crate) fn rank_of(self, trace_id: usize) -> usize {
        self.stride.rank_of(self.problem_of(trace_id))
    }

    /// Tells whether this rank writes a trace.
    pub(crate) fn is_own(self, trace_id: usize) -> bool {
        self.stride.holds(self.problem_of(trace_id))
    }

    pub(crate) fn world_size(self) -> usize {
        self.stride.world_size
    }

    pub(crate) fn is_empty(self) -> bool {
        self.num_problems == 0
    }
}
