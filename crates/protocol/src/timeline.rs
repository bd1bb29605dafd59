use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

use crate::{Capacity, Overflow, WorkerIndex};

/// Where in a fragment a worker was forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkPoint {
    /// The worker that started.
    pub worker: WorkerIndex,
    /// Decoded tokens of the fragment up to and including the one with the end of the Fork's closing
    /// tag (`d` in Eq. 4).
    pub at_tokens: u64,
}

/// The organizer's decoded tokens between two Joins. A Join tag belongs to the fragment that it ends;
/// injected text is not decoded and belongs to none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// Decoded tokens (`n_i` in Eq. 4).
    pub num_tokens: u64,
    /// Forks completed in the fragment, in order.
    pub forks: Vec<ForkPoint>,
    /// The worker joined at the end; `None` for the last fragment and no other.
    pub join: Option<WorkerIndex>,
}

/// Why numbers do not describe an episode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimelineError {
    /// There must be one fragment more than Joins, and only the last ends without one.
    #[error("every fragment but the last must end with a join, and the last must not")]
    JoinPlacement,
    /// Workers are numbered 0, 1, ... in Fork order.
    #[error("fork of worker `{got}` where worker `{expected}` comes next")]
    ForkOrder {
        /// The next number.
        expected: usize,
        /// The number found.
        got: usize,
    },
    /// A Fork lies beyond its fragment, or before an earlier Fork of it.
    #[error(
        "fork of worker `{worker}` at token {at_tokens} is out of order or beyond its fragment"
    )]
    ForkPlacement {
        /// The worker forked.
        worker: usize,
        /// Its place in the fragment.
        at_tokens: u64,
    },
    /// A Join of a worker that was never forked, or joined before.
    #[error("join of worker `{worker}`, which is not outstanding")]
    UnknownJoin {
        /// The worker joined.
        worker: usize,
    },
    /// More workers at one time than the capacity allows.
    #[error("fork of worker `{worker}` while all worker places are taken: {max_workers}")]
    PoolOverflow {
        /// The worker forked.
        worker: usize,
        /// The number of worker places, `c - 1`.
        max_workers: u32,
    },
    /// There is one token count for each Fork.
    #[error("{num_forks} forks but token counts of {num_workers} workers")]
    WorkerCount {
        /// Forks in the fragments.
        num_forks: usize,
        /// Token counts given.
        num_workers: usize,
    },
    /// The counts do not add up in 64 bits.
    #[error("the token counts overflow 64 bits")]
    TooManyTokens,
}

/// How well an episode used its pool (Eq. 1).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Concurrency {
    /// The critical path `T`, in decoding steps.
    pub latency_tokens: u64,
    /// The mean number of agents decoding over the steps `1..=T`.
    pub eta: f64,
    /// `eta / c`.
    pub eta_ratio: f64,
}

/// Who decoded how many tokens in one episode, and in which order: enough for latency and
/// concurrency. A value always describes a possible episode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TimelineNumbers", into = "TimelineNumbers")]
pub struct Timeline {
    pub(crate) capacity: Capacity,
    pub(crate) fragments: Vec<Fragment>,
    pub(crate) worker_tokens: Vec<u64>,
    is_joined: Vec<bool>,
    overflow: Overflow,
}

/// A timeline as it is written and read; reading checks it.
#[derive(Serialize, Deserialize)]
#[serde(rename = "Timeline")]
struct TimelineNumbers {
    capacity: Capacity,
    overflow: Overflow,
    fragments: Vec<Fragment>,
    worker_tokens: Vec<u64>,
}

impl From<Timeline> for TimelineNumbers {
    fn from(timeline: Timeline) -> Self {
        Self {
            capacity: timeline.capacity,
            overflow: timeline.overflow,
            fragments: timeline.fragments,
            worker_tokens: timeline.worker_tokens,
        }
    }
}

impl TryFrom<TimelineNumbers> for Timeline {
    type Error = TimelineError;

    fn try_from(numbers: TimelineNumbers) -> Result<Self, TimelineError> {
        Self::new(
            numbers.capacity,
            numbers.overflow,
            numbers.fragments,
            numbers.worker_tokens,
        )
    }
}

/// When everything happened, by the recursion.
struct Schedule {
    /// `L_{N+1}`.
    latency: u64,
    /// The step after which each worker began to decode.
    worker_starts: Vec<u64>,
}

impl Timeline {
    /// Checks the numbers of one episode. `worker_tokens` are in Fork order; a worker that was
    /// never joined may have any count, its tokens after the organizer's end are not counted.
    ///
    /// # Errors
    ///
    /// Numbers that no episode of this capacity and overflow rule can have.
    pub fn new(
        capacity: Capacity,
        overflow: Overflow,
        fragments: Vec<Fragment>,
        worker_tokens: Vec<u64>,
    ) -> Result<Self, TimelineError> {
        let is_joined = check(capacity, overflow, &fragments, &worker_tokens)?;
        Ok(Self {
            capacity,
            fragments,
            worker_tokens,
            is_joined,
            overflow,
        })
    }

    /// The critical-path latency `T` in decoding steps.
    ///
    /// ```text
    /// L_i = max(L_{i-1} + n_i, s + w),  L_0 = 0,  T = L_{N+1}
    /// ```
    ///
    /// `s` is the step at which the joined worker began: `L_{f-1} + d`, its Fork's end, or with
    /// [`Overflow::Queue`] the later step at which a place became free. A worker of no tokens needs no place.
    ///
    /// # Paper
    ///
    /// arXiv:2510.26658, Eq. (4).
    pub fn latency(&self) -> u64 {
        self.schedule().latency
    }

    /// Latency and concurrency. With `count_unjoined = false` the steps of workers that were never
    /// joined are left out of `eta` (with [`Overflow::Queue`] it may then be below 1, where the
    /// organizer waits behind such a worker). An episode of no steps at all has `eta = 1`.
    ///
    /// # Paper
    ///
    /// arXiv:2510.26658, Eq. (1).
    pub fn concurrency(&self, count_unjoined: bool) -> Concurrency {
        let schedule = self.schedule();
        let mut num_steps = self.organizer_tokens();
        for (worker, &start) in schedule.worker_starts.iter().enumerate() {
            if count_unjoined || self.is_joined[worker] {
                let num_left = schedule.latency.saturating_sub(start);
                num_steps += self.worker_tokens[worker].min(num_left);
            }
        }
        let eta = match schedule.latency {
            0 => 1.0,
            latency => num_steps as f64 / latency as f64,
        };
        Concurrency {
            latency_tokens: schedule.latency,
            eta,
            eta_ratio: eta / f64::from(self.capacity.get()),
        }
    }

    /// The pool's capacity.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// What a Fork beyond the pool did.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// The organizer's fragments, one more than Joins.
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// The workers' token counts as given, in Fork order.
    pub fn worker_tokens(&self) -> &[u64] {
        &self.worker_tokens
    }

    /// Whether the worker was joined; `false` for a worker that does not exist.
    pub fn is_joined(&self, worker: WorkerIndex) -> bool {
        self.is_joined.get(worker.0).copied().unwrap_or(false)
    }

    /// The number of Forks, hence of workers.
    pub fn num_forks(&self) -> usize {
        self.worker_tokens.len()
    }

    /// The number of Joins.
    pub fn num_joins(&self) -> usize {
        self.fragments.len() - 1
    }

    /// Tokens that the organizer decoded.
    pub fn organizer_tokens(&self) -> u64 {
        self.fragments.iter().map(|part| part.num_tokens).sum()
    }

    /// Tokens decoded by all agents, with the workers' counts as given.
    pub fn decoded_tokens(&self) -> u64 {
        self.organizer_tokens() + self.worker_tokens.iter().sum::<u64>()
    }

    fn schedule(&self) -> Schedule {
        let mut latency = 0;
        let mut worker_starts = Vec::with_capacity(self.worker_tokens.len());
        let mut places = Places::new(self.overflow, self.capacity);
        for fragment in &self.fragments {
            for fork in &fragment.forks {
                let num_tokens = self.worker_tokens[fork.worker.0];
                worker_starts.push(places.start(latency + fork.at_tokens, num_tokens));
            }
            latency += fragment.num_tokens;
            if let Some(WorkerIndex(worker)) = fragment.join {
                latency = latency.max(worker_starts[worker] + self.worker_tokens[worker]);
            }
        }
        Schedule {
            latency,
            worker_starts,
        }
    }
}

/// When workers begin. Forks come in the order of time, so places are given out in that order.
struct Places {
    overflow: Overflow,
    num_unused: usize,
    /// The steps after which the used places become free, the earliest on top.
    free_at: BinaryHeap<Reverse<u64>>,
}

impl Places {
    fn new(overflow: Overflow, capacity: Capacity) -> Self {
        Self {
            overflow,
            num_unused: usize::try_from(capacity.max_workers()).unwrap_or(usize::MAX),
            free_at: BinaryHeap::new(),
        }
    }

    fn start(&mut self, forked_at: u64, num_tokens: u64) -> u64 {
        // A worker without a token to decode is done at its Fork and needs no place.
        if self.overflow == Overflow::Error || num_tokens == 0 {
            return forked_at;
        }
        let start = if self.num_unused > 0 {
            self.num_unused -= 1;
            forked_at
        } else {
            let Reverse(free_at) = self.free_at.pop().unwrap_or(Reverse(forked_at));
            free_at.max(forked_at)
        };
        self.free_at.push(Reverse(start + num_tokens));
        start
    }
}

/// Returns which workers are joined.
fn check(
    capacity: Capacity,
    overflow: Overflow,
    fragments: &[Fragment],
    worker_tokens: &[u64],
) -> Result<Vec<bool>, TimelineError> {
    // No step of an episode is idle, so no sum of the recursion exceeds the sum of all counts.
    fragments
        .iter()
        .map(|fragment| fragment.num_tokens)
        .chain(worker_tokens.iter().copied())
        .try_fold(0_u64, u64::checked_add)
        .ok_or(TimelineError::TooManyTokens)?;
    let Some((last, others)) = fragments.split_last() else {
        return Err(TimelineError::JoinPlacement);
    };
    if last.join.is_some() || others.iter().any(|fragment| fragment.join.is_none()) {
        return Err(TimelineError::JoinPlacement);
    }
    let max_workers = capacity.max_workers();
    let mut is_joined = Vec::with_capacity(worker_tokens.len());
    let mut num_active: u32 = 0;
    for fragment in fragments {
        let mut earliest = 0;
        for &ForkPoint { worker, at_tokens } in &fragment.forks {
            let (expected, got) = (is_joined.len(), worker.0);
            if expected != got {
                return Err(TimelineError::ForkOrder { expected, got });
            }
            if at_tokens < earliest || at_tokens > fragment.num_tokens {
                let worker = got;
                return Err(TimelineError::ForkPlacement { worker, at_tokens });
            }
            earliest = at_tokens;
            let is_full = match overflow {
                Overflow::Error => num_active >= max_workers,
                Overflow::Queue => max_workers == 0,
            };
            if is_full {
                return Err(TimelineError::PoolOverflow {
                    worker: got,
                    max_workers,
                });
            }
            is_joined.push(false);
            num_active = num_active.saturating_add(1);
        }
        if let Some(WorkerIndex(worker)) = fragment.join {
            match is_joined.get_mut(worker) {
                Some(is_joined) if !*is_joined => *is_joined = true,
                _ => return Err(TimelineError::UnknownJoin { worker }),
            }
            num_active = num_active.saturating_sub(1);
        }
    }
    let (num_forks, num_workers) = (is_joined.len(), worker_tokens.len());
    if num_forks != num_workers {
        return Err(TimelineError::WorkerCount {
            num_forks,
            num_workers,
        });
    }
    Ok(is_joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(agents: u32) -> Capacity {
        Capacity::new(agents).expect("positive")
    }

    fn fragment(num_tokens: u64, forks: &[(usize, u64)], join: Option<usize>) -> Fragment {
        Fragment {
            num_tokens,
            forks: forks
                .iter()
                .map(|&(worker, at_tokens)| ForkPoint {
                    worker: WorkerIndex(worker),
                    at_tokens,
                })
                .collect(),
            join: join.map(WorkerIndex),
        }
    }

    fn timeline(
        agents: u32,
        overflow: Overflow,
        fragments: &[Fragment],
        worker_tokens: &[u64],
    ) -> Result<Timeline, TimelineError> {
        Timeline::new(
            capacity(agents),
            overflow,
            fragments.to_vec(),
            worker_tokens.to_vec(),
        )
    }

    fn assert_concurrency(timeline: &Timeline, latency_tokens: u64, eta: f64, eta_ratio: f64) {
        let got = timeline.concurrency(true);
        assert_eq!(got.latency_tokens, latency_tokens);
        assert_eq!((got.eta, got.eta_ratio), (eta, eta_ratio));
        assert_eq!(timeline.simulate().latency_tokens, latency_tokens);
    }

    #[test]
    fn thinking_alone_uses_one_agent() {
        let alone = timeline(4, Overflow::Error, &[fragment(10, &[], None)], &[]).expect("legal");
        assert_concurrency(&alone, 10, 1.0, 0.25);
        assert_eq!((alone.num_forks(), alone.num_joins()), (0, 0));
    }

    #[test]
    fn fork_followed_at_once_by_join_has_the_lowest_ratio() {
        for agents in [2, 4] {
            let fragments = [fragment(5, &[(0, 5)], Some(0)), fragment(3, &[], None)];
            let blocked = timeline(agents, Overflow::Error, &fragments, &[100]).expect("legal");
            assert_concurrency(&blocked, 108, 1.0, 1.0 / f64::from(agents));
        }
    }

    #[test]
    fn the_organizer_waits_only_for_what_is_left() {
        // Worker 0 begins after 4 of 10 tokens and decodes 6: the Join costs nothing.
        let fragments = [fragment(10, &[(0, 4)], Some(0)), fragment(2, &[], None)];
        let overlapped = timeline(2, Overflow::Error, &fragments, &[6]).expect("legal");
        assert_concurrency(&overlapped, 12, 1.5, 0.75);
        // Two more tokens are two more steps.
        let longer = timeline(2, Overflow::Error, &fragments, &[8]).expect("legal");
        assert_concurrency(&longer, 14, 20.0 / 14.0, 20.0 / 28.0);
    }

    #[test]
    fn a_worker_may_be_joined_fragments_later() {
        let fragments = [
            fragment(10, &[(0, 2), (1, 6)], Some(1)),
            fragment(5, &[], Some(0)),
            fragment(1, &[], None),
        ];
        let crossed = timeline(3, Overflow::Error, &fragments, &[40, 10]).expect("legal");
        // L_1 = max(10, 6 + 10) = 16, L_2 = max(21, 2 + 40) = 42, T = 43.
        assert_concurrency(&crossed, 43, 66.0 / 43.0, 22.0 / 43.0);
    }

    #[test]
    fn an_unjoined_worker_counts_up_to_the_end() {
        let fragments = [fragment(10, &[(0, 4)], None)];
        let cancelled = timeline(2, Overflow::Error, &fragments, &[1000]).expect("legal");
        assert_concurrency(&cancelled, 10, 1.6, 0.8);
        let strict = cancelled.concurrency(false);
        assert!((strict.eta - 1.0).abs() < 1e-12);
        let simulated = cancelled.simulate();
        assert_eq!((simulated.agent_steps, simulated.unjoined_steps), (16, 6));
    }

    #[test]
    fn a_queued_worker_starts_when_a_place_is_free() {
        let fragments = [
            fragment(4, &[(0, 2), (1, 4)], Some(1)),
            fragment(1, &[], Some(0)),
            fragment(1, &[], None),
        ];
        let queued = timeline(2, Overflow::Queue, &fragments, &[10, 5]).expect("legal");
        // Worker 1 begins at 12, when worker 0 is done.
        assert_concurrency(&queued, 19, 21.0 / 19.0, 21.0 / 38.0);
        assert_eq!(queued.simulate().max_active, 2);
        assert_eq!(
            timeline(2, Overflow::Error, &fragments, &[10, 5]),
            Err(TimelineError::PoolOverflow {
                worker: 1,
                max_workers: 1
            })
        );
    }

    #[test]
    fn a_worker_of_no_tokens_waits_for_no_place() {
        // Worker 0 holds the only place up to step 12; worker 1 has nothing to decode and is joined at once.
        let fragments = [
            fragment(4, &[(0, 2), (1, 4)], Some(1)),
            fragment(1, &[], Some(0)),
            fragment(1, &[], None),
        ];
        let passed = timeline(2, Overflow::Queue, &fragments, &[10, 0]).expect("legal");
        assert_concurrency(&passed, 13, 16.0 / 13.0, 8.0 / 13.0);
        // Nor does it delay one that comes after it.
        let fragments = [
            fragment(4, &[(0, 1), (1, 2), (2, 4)], Some(2)),
            fragment(1, &[], None),
        ];
        let followed = timeline(3, Overflow::Queue, &fragments, &[10, 0, 5]).expect("legal");
        assert_concurrency(&followed, 10, 1.9, 1.9 / 3.0);
    }

    #[test]
    fn no_steps_at_all_divide_nothing_by_zero() {
        let empty = timeline(2, Overflow::Error, &[fragment(0, &[], None)], &[]).expect("legal");
        assert_concurrency(&empty, 0, 1.0, 0.5);
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let end = || fragment(1, &[], None);
        let two_forks = [fragment(9, &[(0, 5), (1, 4)], None)];
        let cases = [
            (vec![], vec![], TimelineError::JoinPlacement),
            (vec![end(), end()], vec![], TimelineError::JoinPlacement),
            (
                vec![fragment(1, &[(0, 1)], Some(0))],
                vec![1],
                TimelineError::JoinPlacement,
            ),
            (
                vec![fragment(1, &[(1, 1)], None)],
                vec![1],
                TimelineError::ForkOrder {
                    expected: 0,
                    got: 1,
                },
            ),
            (
                vec![fragment(1, &[(0, 2)], None)],
                vec![1],
                TimelineError::ForkPlacement {
                    worker: 0,
                    at_tokens: 2,
                },
            ),
            (
                two_forks.to_vec(),
                vec![1, 1],
                TimelineError::ForkPlacement {
                    worker: 1,
                    at_tokens: 4,
                },
            ),
            (
                vec![fragment(1, &[], Some(0)), end()],
                vec![],
                TimelineError::UnknownJoin { worker: 0 },
            ),
            (
                vec![
                    fragment(1, &[(0, 1)], Some(0)),
                    fragment(1, &[], Some(0)),
                    end(),
                ],
                vec![1],
                TimelineError::UnknownJoin { worker: 0 },
            ),
            (
                vec![end()],
                vec![1],
                TimelineError::WorkerCount {
                    num_forks: 0,
                    num_workers: 1,
                },
            ),
            (
                vec![fragment(u64::MAX, &[(0, 1)], None)],
                vec![1],
                TimelineError::TooManyTokens,
            ),
        ];
        for (fragments, worker_tokens, error) in cases {
            let got = timeline(3, Overflow::Error, &fragments, &worker_tokens);
            assert_eq!(got, Err(error), "{fragments:?}");
        }
        for overflow in [Overflow::Error, Overflow::Queue] {
            let got = timeline(1, overflow, &[fragment(1, &[(0, 1)], None)], &[1]);
            assert!(matches!(got, Err(TimelineError::PoolOverflow { .. })));
        }
    }

    #[test]
    fn reading_checks_the_numbers() {
        let fragments = [fragment(4, &[(0, 3)], Some(0)), fragment(2, &[], None)];
        let timeline = timeline(2, Overflow::Queue, &fragments, &[9]).expect("legal");
        let json = serde_json::to_string(&timeline).expect("plain numbers");
        let read: Timeline = serde_json::from_str(&json).expect("what was written");
        assert_eq!(read, timeline);
        let other = json.replace("[9]", "[9,9]");
        let error = serde_json::from_str::<Timeline>(&other).expect_err("one worker too many");
        assert!(error.to_string().contains("1 forks"), "{error}");
    }
}
