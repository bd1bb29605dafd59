//! The solver: all different solutions of a problem by enumeration.
//!
//! Subsets of the pool are visited one by one, each searched as a whole by `SubsetSolver`.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::expr::Expr;
use super::key::DifferenceKey;
use super::problem::Problem;
use super::rational::Rational;
use super::subset::SubsetSolver;

/// Largest subset that is searched; the work grows so fast that the step limit ends it long before.
const MAX_SUBSET_NUMBERS: usize = 12;

/// Subsets that a shuffled search draws from.
const MAX_SHUFFLED_SUBSETS: usize = 1 << 20;

/// Steps of [`solve`]: twice what every solution of 12 numbers, 3 to 6 used, takes.
const DEFAULT_MAX_STEPS: u64 = 100_000_000;

/// A solution found by the solver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Solution {
    /// The expression as text, without blanks.
    pub text: String,
    /// The expression.
    pub expr: Expr,
    /// What makes it different from others.
    pub key: DifferenceKey,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Solutions {
    /// Different solutions in the order of the search.
    pub solutions: Vec<Solution>,
    /// Whether these are all that exist: no limit ended the search.
    pub is_complete: bool,
}

/// In which order subsets of the pool are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubsetOrder {
    /// Few numbers first, then by the pool in ascending order.
    #[default]
    SmallFirst,
    /// Sizes and subsets mixed by a seed: for solutions that look different from each other.
    Shuffled {
        /// The seed; the same seed gives the same order.
        seed: u64,
    },
}

/// Limits and order of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SolveOptions {
    /// Different solutions after which the search ends.
    pub limit: usize,
    /// Solutions taken from one subset of the pool.
    pub max_per_subset: usize,
    /// Steps after which the search ends; one takes some tenths of a microsecond at most.
    pub max_steps: u64,
    /// The order.
    pub order: SubsetOrder,
}

impl Default for SolveOptions {
    fn default() -> Self {
        Self {
            limit: usize::MAX,
            max_per_subset: usize::MAX,
            max_steps: DEFAULT_MAX_STEPS,
            order: SubsetOrder::SmallFirst,
        }
    }
}

/// Up to `limit` different solutions, those with few numbers first.
///
/// The order is the same in every call. The search is exhaustive up to a step limit that problems of the paper's
/// size stay below; [`solve_with`] tells whether it was reached.
pub fn solve(problem: &Problem, limit: usize) -> Vec<Solution> {
    let options = SolveOptions {
        limit,
        ..SolveOptions::default()
    };
    solve_with(problem, &options).solutions
}

/// Different solutions as the options say.
pub fn solve_with(problem: &Problem, options: &SolveOptions) -> Solutions {
    let mut pool: Vec<i64> = problem
        .available_numbers
        .iter()
        .copied()
        // A negative number cannot be written.
        .filter(|&number| number >= 0)
        .collect();
    pool.sort_unstable();
    let max_numbers = problem.rules.max_numbers.min(pool.len());
    let sizes = problem.rules.min_numbers.max(1)..=max_numbers.min(MAX_SUBSET_NUMBERS);
    let mut search = Search {
        target: Rational::from(problem.target),
        options,
        num_steps: 0,
        found: Vec::new(),
        is_complete: max_numbers <= MAX_SUBSET_NUMBERS,
    };
    match options.order {
        SubsetOrder::SmallFirst => {
            for size in sizes {
                for subset in Subsets::new(&pool, size) {
                    if !search.visit(&subset) {
                        return search.finish();
                    }
                }
            }
        }
        SubsetOrder::Shuffled { seed } => {
            let mut all = Vec::new();
            'sizes: for size in sizes {
                for subset in Subsets::new(&pool, size) {
                    if all.len() == MAX_SHUFFLED_SUBSETS {
                        search.is_complete = false;
                        break 'sizes;
                    }
                    all.push(subset);
                }
            }
            all.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            for subset in &all {
                if !search.visit(subset) {
                    return search.finish();
                }
            }
        }
    }
    search.finish()
}

/// The state of one search over all subsets.
struct Search<'a> {
    target: Rational,
    options: &'a SolveOptions,
    num_steps: u64,
    found: Vec<Solution>,
    is_complete: bool,
}

impl Search<'_> {
    /// Adds the solutions of one subset; `false` ends the search.
    fn visit(&mut self, subset: &[i64]) -> bool {
        if self.found.len() >= self.options.limit || self.num_steps >= self.options.max_steps {
            self.is_complete = false;
            return false;
        }
        let solver = SubsetSolver::new(subset, self.options.max_steps - self.num_steps);
        let hits = solver.solve(self.target);
        self.num_steps += solver.num_steps();
        let mut num_taken = 0;
        for (operators, expr) in hits {
            if self.found.len() >= self.options.limit || num_taken >= self.options.max_per_subset {
                self.is_complete = false;
                break;
            }
            // The search undoes operations; the grader does them. The detour may have dodged an overflow.
            if expr.evaluate() != Ok(self.target) {
                continue;
            }
            num_taken += 1;
            self.found.push(Solution {
                text: expr.to_string(),
                key: DifferenceKey::new(subset.to_vec(), operators),
                expr,
            });
        }
        true
    }

    fn finish(self) -> Solutions {
        Solutions {
            is_complete: self.is_complete && self.num_steps < self.options.max_steps,
            solutions: self.found,
        }
    }
}

/// The different multisets of a given size within a sorted pool, in lexicographic order.
pub(crate) struct Subsets<'a> {
    pool: &'a [i64],
    /// Positions in the pool, ascending; `None` at the end.
    positions: Option<Vec<usize>>,
}

impl<'a> Subsets<'a> {
    pub(crate) fn new(pool: &'a [i64], size: usize) -> Self {
        // The first positions are the smallest choice also when numbers repeat.
        let positions = (size <= pool.len()).then(|| (0..size).collect());
        Self { pool, positions }
    }
}

impl Iterator for Subsets<'_> {
    type Item = Vec<i64>;

    fn next(&mut self) -> Option<Vec<i64>> {
        let positions = self.positions.as_mut()?;
        let subset = positions.iter().map(|&at| self.pool[at]).collect();
        let (size, len) = (positions.len(), self.pool.len());
        // The last position that can move to a larger number, with room for those after it.
        let movable = (0..size).rev().find_map(|index| {
            let number = self.pool[positions[index]];
            let next = positions[index] + 1;
            let next = next + self.pool[next..].partition_point(|&other| other == number);
            (next + (size - index) <= len).then_some((index, next))
        });
        match movable {
            Some((index, next)) => {
                for (offset, position) in positions[index..].iter_mut().enumerate() {
                    *position = next + offset;
                }
            }
            None => self.positions = None,
        }
        Some(subset)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::mcd::{Operator, OperatorCounts, Rules, check_solution};
    use proptest::prelude::*;

    fn problem(target: i64, numbers: &[i64], min_numbers: usize, max_numbers: usize) -> Problem {
        let rules = Rules {
            min_numbers,
            max_numbers,
        };
        Problem::new(target, numbers.to_vec(), 1, rules).unwrap()
    }

    /// Every tree over all of `parts`, the slow and obvious way.
    fn try_all_trees(
        parts: &[(Rational, OperatorCounts)],
        target: Rational,
        found: &mut BTreeSet<OperatorCounts>,
    ) {
        if let [(value, operators)] = parts {
            if *value == target {
                found.insert(*operators);
            }
            return;
        }
        for left in 0..parts.len() {
            for right in (0..parts.len()).filter(|&right| right != left) {
                for operator in Operator::ALL {
                    let Ok(value) = operator.apply(parts[left].0, parts[right].0) else {
                        continue;
                    };
                    let operators =
                        OperatorCounts::combine(parts[left].1, operator, parts[right].1);
                    let mut rest: Vec<_> = (0..parts.len())
                        .filter(|&at| at != left && at != right)
                        .map(|at| parts[at])
                        .collect();
                    rest.push((value, operators));
                    try_all_trees(&rest, target, found);
                }
            }
        }
    }

    fn all_keys(problem: &Problem) -> BTreeSet<DifferenceKey> {
        let mut pool = problem.available_numbers.clone();
        pool.sort_unstable();
        let mut keys = BTreeSet::new();
        for mask in 1u32..1 << pool.len() {
            let subset: Vec<i64> = (0..pool.len())
                .filter(|at| mask >> at & 1 == 1)
                .map(|at| pool[at])
                .collect();
            if !(problem.rules.min_numbers..=problem.rules.max_numbers).contains(&subset.len()) {
                continue;
            }
            let parts: Vec<_> = subset
                .iter()
                .map(|&number| (Rational::from(number), OperatorCounts::default()))
                .collect();
            let mut found = BTreeSet::new();
            try_all_trees(&parts, Rational::from(problem.target), &mut found);
            for operators in found {
                keys.insert(DifferenceKey::new(subset.clone(), operators));
            }
        }
        keys
    }

    /// Solves to the end and checks each solution by the grader.
    fn solved_keys(problem: &Problem, order: SubsetOrder) -> BTreeSet<DifferenceKey> {
        let options = SolveOptions {
            order,
            ..SolveOptions::default()
        };
        let found = solve_with(problem, &options);
        assert!(found.is_complete);
        let mut keys = BTreeSet::new();
        for solution in found.solutions {
            let expr = check_solution(problem, &solution.text).unwrap();
            assert_eq!(DifferenceKey::of(&expr), solution.key);
            assert_eq!(expr, solution.expr);
            assert!(keys.insert(solution.key), "`{}` twice", solution.text);
        }
        keys
    }

    #[test]
    fn five_numbers_agree_with_every_tree() {
        for (target, pool) in [
            (0, [0, 1, 2, 3, 3]),
            (24, [3, 3, 8, 8, 1]),
            (-7, [2, 9, 11, 4, 7]),
        ] {
            let problem = problem(target, &pool, 5, 5);
            let keys = solved_keys(&problem, SubsetOrder::SmallFirst);
            assert_eq!(keys, all_keys(&problem), "{target} {pool:?}");
        }
    }

    #[test]
    fn six_numbers_are_solved_to_the_end() {
        let problem = problem(952, &[3, 6, 25, 50, 75, 100], 1, 6);
        let keys = solved_keys(&problem, SubsetOrder::SmallFirst);
        assert!(!keys.is_empty());
        assert_eq!(
            keys,
            solved_keys(&problem, SubsetOrder::Shuffled { seed: 3 })
        );
    }

    #[test]
    fn twelve_numbers_stop_at_the_limit() {
        let pool = [4, 9, 17, 23, 31, 42, 55, 60, 68, 71, 86, 97];
        let problem = problem(655, &pool, 3, 6);
        let solutions = solve(&problem, 4);
        assert_eq!(solutions.len(), 4);
        assert_eq!(solve(&problem, 4), solutions);
        assert_eq!(solve(&problem, 40)[..4], solutions);
        assert!(solve(&problem, 0).is_empty());
    }

    #[test]
    fn steps_bound_the_search() {
        let numbers: Vec<i64> = (1..=40).collect();
        let problem = problem(i64::MAX, &numbers, 9, 40);
        let options = SolveOptions {
            max_steps: 10_000,
            ..SolveOptions::default()
        };
        let found = solve_with(&problem, &options);
        assert!(found.solutions.is_empty() && !found.is_complete);
        let options = SolveOptions {
            order: SubsetOrder::Shuffled { seed: 1 },
            ..options
        };
        assert!(!solve_with(&problem, &options).is_complete);
    }

    #[test]
    fn shuffled_solutions_come_from_many_subsets() {
        let pool = [4, 9, 17, 23, 31, 42, 55, 60];
        let problem = problem(100, &pool, 3, 4);
        let options = |seed| SolveOptions {
            limit: 8,
            max_per_subset: 1,
            order: SubsetOrder::Shuffled { seed },
            ..SolveOptions::default()
        };
        let solutions = solve_with(&problem, &options(1)).solutions;
        let subsets: BTreeSet<_> = solutions.iter().map(|one| one.key.numbers()).collect();
        assert_eq!(subsets.len(), 8);
        assert_eq!(solve_with(&problem, &options(1)).solutions, solutions);
        assert_ne!(solve_with(&problem, &options(2)).solutions, solutions);
    }

    #[test]
    fn unusable_numbers_are_left_out() {
        assert!(solve(&problem(1, &[-3, 4], 2, 2), 9).is_empty());
        assert_eq!(solve(&problem(4, &[-3, 4], 1, 2), 9).len(), 1);
        assert!(solve(&problem(4, &[4], 2, 2), 9).is_empty());
    }

    #[test]
    fn repeated_numbers_give_each_subset_once() {
        let subsets: Vec<_> = Subsets::new(&[1, 1, 1, 2, 2], 3).collect();
        assert_eq!(subsets, [[1, 1, 1], [1, 1, 2], [1, 2, 2]]);
        assert_eq!(Subsets::new(&[1, 2], 3).count(), 0);
        assert_eq!(Subsets::new(&[1, 2, 3, 4, 5], 2).count(), 10);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn small_problems_agree_with_every_tree(
            pool in prop::collection::vec(0i64..10, 1..5),
            target in -4i64..40,
        ) {
            let problem = problem(target, &pool, 1, 4);
            let expected = all_keys(&problem);
            prop_assert_eq!(&solved_keys(&problem, SubsetOrder::SmallFirst), &expected);
            prop_assert_eq!(&solved_keys(&problem, SubsetOrder::Shuffled { seed: 1 }), &expected);
        }
    }
}
