//! The generator: random problems with proof that they can be solved, train and test apart.

use std::collections::BTreeSet;

use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::grade::grade;
use super::problem::{Problem, Rules};
use super::solve::{SolveOptions, Subsets, solve_with};
use crate::error::Error;

/// What problems to make.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorConfig {
    /// Numbers in a pool, all different.
    pub num_numbers: usize,
    /// Smallest and largest number of a pool.
    pub number_range: (i64, i64),
    /// Smallest and largest target.
    pub target_range: (i64, i64),
    /// How many numbers a solution uses.
    pub rules: Rules,
    /// Different solutions asked for; every problem is proved to have as many.
    pub required: usize,
    /// Problems to train on.
    pub num_train: usize,
    /// Problems to choose settings by.
    pub num_validation: usize,
    /// Problems to test on.
    pub num_test: usize,
    /// Share of the targets kept for validation; no training or test problem has one of them.
    pub validation_target_fraction: f64,
    /// Share of the targets kept for testing; no training problem has one of them.
    pub test_target_fraction: f64,
    /// The seed; equal settings give equal problems on any machine and any number of threads.
    pub seed: u64,
}

/// Generated problems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProblemSet {
    /// Problems to train on.
    pub train: Vec<Problem>,
    /// Problems to choose settings by; their targets occur nowhere else.
    pub validation: Vec<Problem>,
    /// Problems to test on; their targets occur nowhere else.
    pub test: Vec<Problem>,
}

/// Targets beyond this many are refused: the split of the targets is held in memory.
const MAX_TARGETS: u64 = 1 << 20;

/// Remedy when too few problems exist.
const REMEDY: &str =
    "widen `number_range` or `target_range`, ask for fewer problems, or lower `required`";

/// Up to this many combinations of pool and target, all are tried in random order, each once.
const MAX_LISTED_CANDIDATES: u64 = 1 << 20;

/// Pools tried to learn whether a target can be reached at all: enough for targets that one pool in hundreds reaches.
const NUM_PROBES: u64 = 1024;

/// How many of the probes may end for want of steps; they cost most, and tell little.
const MAX_UNSETTLED_PROBES: usize = 64;

/// Steps of the solver per candidate: few of those that are not settled by then have enough solutions.
const MAX_CERTIFY_STEPS: u64 = 100_000;

/// Which part of the targets; also the high bits of the random stream, of which 3 and 4 have other uses.
#[derive(Clone, Copy)]
enum Split {
    Train = 1,
    Test = 2,
    Validation = 5,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Validation => "validation",
        }
    }
}

/// Makes different problems with at least `required` different solutions each.
///
/// Targets that no probed pool can reach are left out, the rest is parted at random: `test_target_fraction` of
/// them (at least one if there are test problems) for testing, `validation_target_fraction` for validation, the others for
/// training. Test problems do not depend on whether there is a validation split. Within a part every target has
/// as many problems as every other, as far as there are pools for it: left to chance, a few easy targets would be most of
/// them.
///
/// # Errors
/// [`Error::InvalidGenerator`] for settings that contradict themselves, [`Error::TooFewProblems`] if the search
/// finds fewer problems than asked for.
pub fn generate(config: &GeneratorConfig) -> Result<ProblemSet, Error> {
    let generator = Generator::new(config)?;
    let targets = generator.split_targets()?;
    let problems = |split, targets: &[i64], wanted| generator.problems(split, targets, wanted);
    Ok(ProblemSet {
        train: problems(Split::Train, &targets.train, config.num_train)?,
        validation: problems(
            Split::Validation,
            &targets.validation,
            config.num_validation,
        )?,
        test: problems(Split::Test, &targets.test, config.num_test)?,
    })
}

/// What the solver says of a candidate.
enum Verdict {
    /// It has enough solutions, and the grader accepts them.
    Certified(Problem),
    /// It has too few.
    Refused,
    /// The solver ran out of steps.
    Unsettled,
}

/// The targets of each split.
struct Targets {
    train: Vec<i64>,
    validation: Vec<i64>,
    test: Vec<i64>,
}

/// Checked settings.
struct Generator<'a> {
    config: &'a GeneratorConfig,
    /// Every pool there is, if they are few enough to list with every target.
    pools: Option<Vec<Vec<i64>>>,
}

impl<'a> Generator<'a> {
    fn new(config: &'a GeneratorConfig) -> Result<Self, Error> {
        check(config)?;
        let (low, high) = config.number_range;
        let num_pools = num_subsets(span(low, high), config.num_numbers as u64);
        let num_targets = span(config.target_range.0, config.target_range.1);
        let is_small = num_pools.saturating_mul(num_targets) <= MAX_LISTED_CANDIDATES;
        let pools = is_small.then(|| {
            let numbers: Vec<i64> = (low..=high).collect();
            Subsets::new(&numbers, config.num_numbers).collect()
        });
        Ok(Self { config, pools })
    }

    /// The random stream of one attempt.
    fn rng(&self, domain: u64, attempt: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream((domain << 56) | attempt);
        rng
    }

    fn random_pool(&self, rng: &mut impl Rng) -> Vec<i64> {
        if let Some(pools) = &self.pools {
            return pools[rng.random_range(0..pools.len())].clone();
        }
        let (low, high) = self.config.number_range;
        let mut pool = BTreeSet::new();
        while pool.len() < self.config.num_numbers {
            pool.insert(rng.random_range(low..=high));
        }
        pool.into_iter().collect()
    }

    /// The problem, if it has enough solutions.
    fn certify(&self, pool: Vec<i64>, target: i64) -> Option<Problem> {
        match self.judge(pool, target) {
            Verdict::Certified(problem) => Some(problem),
            Verdict::Refused | Verdict::Unsettled => None,
        }
    }

    fn judge(&self, pool: Vec<i64>, target: i64) -> Verdict {
        let config = self.config;
        let Ok(problem) = Problem::new(target, pool, config.required, config.rules) else {
            return Verdict::Refused;
        };
        let options = SolveOptions {
            limit: config.required,
            max_steps: MAX_CERTIFY_STEPS,
            ..SolveOptions::default()
        };
        let found = solve_with(&problem, &options);
        let texts: Vec<&str> = found
            .solutions
            .iter()
            .map(|one| one.text.as_str())
            .collect();
        // The grader is what will be asked later, so its word is the proof.
        if grade(&problem, &texts.join("\n")).is_all_correct() {
            Verdict::Certified(problem)
        } else if found.is_complete {
            Verdict::Refused
        } else {
            Verdict::Unsettled
        }
    }

    /// Whether some pool reaches the target.
    fn is_reachable(&self, target: i64) -> bool {
        let mut rng = self.rng(3, target.abs_diff(self.config.target_range.0));
        let mut num_unsettled = 0;
        for _ in 0..NUM_PROBES {
            match self.judge(self.random_pool(&mut rng), target) {
                Verdict::Certified(_) => return true,
                Verdict::Refused => {}
                Verdict::Unsettled => num_unsettled += 1,
            }
            if num_unsettled == MAX_UNSETTLED_PROBES {
                break;
            }
        }
        false
    }

    /// The targets of each split: those for testing first, so that they do not depend on the rest.
    fn split_targets(&self) -> Result<Targets, Error> {
        let config = self.config;
        let (low, high) = config.target_range;
        let mut train: Vec<i64> = (low..=high)
            .into_par_iter()
            .filter(|&target| self.is_reachable(target))
            .collect();
        train.shuffle(&mut self.rng(4, 0));
        let parts = [
            (Split::Train, config.num_train, 0.0),
            (Split::Test, config.num_test, config.test_target_fraction),
            (
                Split::Validation,
                config.num_validation,
                config.validation_target_fraction,
            ),
        ];
        let wanted = || parts.iter().filter(|(_, wanted, _)| *wanted > 0);
        // A target for each, or the last ones named get none.
        let num_parts = wanted().count();
        if num_parts > 1
            && let Some(&(split, wanted, _)) = wanted().nth(train.len())
        {
            return Err(Error::TooFewProblems {
                split: split.name(),
                wanted,
                found: 0,
                num_attempts: span(low, high).saturating_mul(NUM_PROBES),
                remedy: REMEDY,
            });
        }
        let num_targets = train.len();
        let mut take = |wanted: usize, fraction: f64, num_others: usize| {
            let count = match (wanted, num_others) {
                (0, _) => 0,
                (_, 0) => train.len(),
                _ => rounded(num_targets as f64 * fraction).clamp(1, train.len() - num_others),
            };
            let rest = train.split_off(count);
            std::mem::replace(&mut train, rest)
        };
        let used = |count: usize| usize::from(count > 0);
        let (num_train, num_validation) = (used(config.num_train), used(config.num_validation));
        let test = take(
            config.num_test,
            config.test_target_fraction,
            num_train + num_validation,
        );
        let validation = take(
            config.num_validation,
            config.validation_target_fraction,
            num_train,
        );
        Ok(Targets {
            train,
            validation,
            test,
        })
    }

    /// As many problems of each target as there are, up to what is needed to have `wanted` in all.
    fn problems(
        &self,
        split: Split,
        targets: &[i64],
        wanted: usize,
    ) -> Result<Vec<Problem>, Error> {
        let mut searches: Vec<Search> = targets
            .iter()
            .map(|&target| self.search(split, target, wanted))
            .collect();
        let mut rounds: Vec<Vec<Problem>> = Vec::new();
        let mut num_found = 0;
        while num_found < wanted {
            let mut open: Vec<&mut Search> = searches
                .iter_mut()
                .filter(|search| !search.is_exhausted)
                .collect();
            if open.is_empty() {
                break;
            }
            open.sort_by_key(|search| search.num_found);
            open.truncate(wanted - num_found);
            // Every target gives as many; what some cannot give is asked of the others in the next round.
            let share = (wanted - num_found).div_ceil(open.len());
            let found: Vec<Vec<Problem>> = open
                .into_par_iter()
                .map(|search| self.continue_search(search, share))
                .collect();
            num_found += found.iter().map(Vec::len).sum::<usize>();
            rounds.extend(found);
        }
        let mut problems: Vec<Problem> = rounds.into_iter().flatten().collect();
        problems.shuffle(&mut self.rng(split as u64, 0));
        problems.truncate(wanted);
        if problems.len() < wanted {
            return Err(Error::TooFewProblems {
                split: split.name(),
                wanted,
                found: problems.len(),
                num_attempts: searches.iter().map(|search| search.num_attempts).sum(),
                remedy: REMEDY,
            });
        }
        Ok(problems)
    }

    fn search(&self, split: Split, target: i64, wanted: usize) -> Search {
        let low = self.config.target_range.0;
        let mut rng = self.rng(split as u64, 1 + target.abs_diff(low));
        let order = self.pools.as_ref().map(|pools| {
            // Indices of a list that was found small.
            let mut order: Vec<u32> = (0..).take(pools.len()).collect();
            order.shuffle(&mut rng);
            order
        });
        Search {
            target,
            rng,
            order,
            seen: BTreeSet::new(),
            max_attempts: 2_000 + 20 * wanted as u64,
            num_attempts: 0,
            num_found: 0,
            is_exhausted: false,
        }
    }

    /// Up to `share` more problems of a target.
    fn continue_search(&self, search: &mut Search, share: usize) -> Vec<Problem> {
        let mut found = Vec::new();
        while found.len() < share {
            let Some(pool) = self.next_pool(search) else {
                search.is_exhausted = true;
                break;
            };
            search.num_attempts += 1;
            found.extend(self.certify(pool, search.target));
        }
        search.num_found += found.len();
        found
    }

    /// A pool that this search has not tried; `None` when it has tried them all, or enough.
    fn next_pool(&self, search: &mut Search) -> Option<Vec<i64>> {
        if let (Some(pools), Some(order)) = (&self.pools, &mut search.order) {
            return Some(pools[order.pop()? as usize].clone());
        }
        while search.num_attempts < search.max_attempts {
            let pool = self.random_pool(&mut search.rng);
            if search.seen.insert(pool.clone()) {
                return Some(pool);
            }
            search.num_attempts += 1;
        }
        None
    }
}

/// The problems of one target, looked for in pools drawn at random.
struct Search {
    target: i64,
    rng: ChaCha8Rng,
    /// The pools yet to be tried, where they are listed.
    order: Option<Vec<u32>>,
    /// The pools tried, where they are not.
    seen: BTreeSet<Vec<i64>>,
    max_attempts: u64,
    num_attempts: u64,
    num_found: usize,
    is_exhausted: bool,
}

/// Refuses settings that contradict themselves.
fn check(config: &GeneratorConfig) -> Result<(), Error> {
    let invalid = |field, reason: &str, value: String| {
        Err(Error::InvalidGenerator {
            field,
            reason: reason.to_owned(),
            value,
        })
    };
    let (low, high) = config.number_range;
    if low < 0 || high < low {
        let value = format!("[{low}, {high}]");
        return invalid("number_range", "must be ascending from 0 or more", value);
    }
    if config.num_numbers == 0 || config.num_numbers as u64 > span(low, high) {
        let reason = format!(
            "must be between 1 and the {} numbers of `number_range`",
            span(low, high)
        );
        return invalid("num_numbers", &reason, config.num_numbers.to_string());
    }
    let (low, high) = config.target_range;
    if high < low || span(low, high) > MAX_TARGETS {
        let value = format!("[{low}, {high}]");
        return invalid(
            "target_range",
            "must be ascending and hold at most 1048576 targets",
            value,
        );
    }
    let Rules {
        min_numbers,
        max_numbers,
    } = config.rules;
    if min_numbers == 0 || max_numbers < min_numbers || min_numbers > config.num_numbers {
        return invalid(
            "rules",
            "must be ascending from 1 or more and start within `num_numbers`",
            format!("[{min_numbers}, {max_numbers}]"),
        );
    }
    if config.required == 0 {
        return invalid("required", "must be at least 1", "0".to_owned());
    }
    for (field, fraction) in [
        ("test_target_fraction", config.test_target_fraction),
        (
            "validation_target_fraction",
            config.validation_target_fraction,
        ),
    ] {
        if !(0.0..=1.0).contains(&fraction) {
            return invalid(field, "must be between 0 and 1", fraction.to_string());
        }
    }
    // What is left is what a problem itself demands.
    Problem::new(
        0,
        vec![0; config.num_numbers],
        config.required,
        config.rules,
    )
    .map(|_| ())
}

/// The nearest whole number of a share of a length.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a length is no longer than it, and not negative"
)]
fn rounded(share: f64) -> usize {
    share.round() as usize
}

/// Integers in `low..=high`.
fn span(low: i64, high: i64) -> u64 {
    high.abs_diff(low).saturating_add(1)
}

/// Subsets of `size` elements out of `len`; stops growing at `u64::MAX`.
fn num_subsets(len: u64, size: u64) -> u64 {
    let size = size.min(len - size);
    let mut count: u128 = 1;
    for index in 0..size {
        count = count * u128::from(len - index) / u128::from(index + 1);
        if count > u128::from(u64::MAX) {
            return u64::MAX;
        }
    }
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcd::solve;

    fn tiny() -> GeneratorConfig {
        GeneratorConfig {
            num_numbers: 5,
            number_range: (1, 12),
            target_range: (1, 40),
            rules: Rules {
                min_numbers: 2,
                max_numbers: 2,
            },
            required: 2,
            num_train: 300,
            num_validation: 0,
            num_test: 60,
            validation_target_fraction: 0.1,
            test_target_fraction: 0.2,
            seed: 7,
        }
    }

    fn paper() -> GeneratorConfig {
        GeneratorConfig {
            num_numbers: 12,
            number_range: (1, 100),
            target_range: (1, 1000),
            rules: Rules::default(),
            required: 4,
            num_train: 40,
            num_validation: 10,
            num_test: 10,
            validation_target_fraction: 0.1,
            test_target_fraction: 0.1,
            seed: 7,
        }
    }

    /// All that the generator promises.
    fn check_promises(config: &GeneratorConfig, set: &ProblemSet) {
        assert_eq!(set.train.len(), config.num_train);
        assert_eq!(set.test.len(), config.num_test);
        let targets = |problems: &[Problem]| -> BTreeSet<i64> {
            problems.iter().map(|problem| problem.target).collect()
        };
        assert_eq!(set.validation.len(), config.num_validation);
        let (train, validation) = (targets(&set.train), targets(&set.validation));
        let test = targets(&set.test);
        assert!(train.is_disjoint(&test) && train.is_disjoint(&validation));
        assert!(validation.is_disjoint(&test));
        let mut seen = BTreeSet::new();
        for problem in set.train.iter().chain(&set.validation).chain(&set.test) {
            let pool = &problem.available_numbers;
            assert!(seen.insert((problem.target, pool.clone())));
            assert_eq!(pool.len(), config.num_numbers);
            assert!(pool.is_sorted_by(|a, b| a < b));
            assert!(pool[0] >= config.number_range.0);
            assert!(*pool.last().unwrap() <= config.number_range.1);
            assert!((config.target_range.0..=config.target_range.1).contains(&problem.target));
            let texts: Vec<_> = solve(problem, config.required)
                .into_iter()
                .map(|solution| solution.text)
                .collect();
            assert!(grade(problem, &texts.join(",")).is_all_correct());
        }
    }

    #[test]
    fn tiny_problems_keep_every_promise() {
        check_promises(&tiny(), &generate(&tiny()).unwrap());
    }

    #[test]
    fn a_validation_split_leaves_the_test_problems_as_they_are() {
        let config = GeneratorConfig {
            num_validation: 40,
            ..tiny()
        };
        let set = generate(&config).unwrap();
        check_promises(&config, &set);
        assert_eq!(set.test, generate(&tiny()).unwrap().test);
    }

    #[test]
    fn every_split_needs_a_target() {
        let config = GeneratorConfig {
            target_range: (13, 14),
            num_validation: 5,
            ..tiny()
        };
        let error = generate(&config).unwrap_err();
        let Error::TooFewProblems { split, found, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((split, found), ("validation", 0));
    }

    #[test]
    fn targets_are_balanced() {
        let config = GeneratorConfig {
            num_test: 0,
            ..tiny()
        };
        let set = generate(&config).unwrap();
        let mut counts = std::collections::BTreeMap::new();
        for problem in &set.train {
            *counts.entry(problem.target).or_insert(0_usize) += 1;
        }
        // Some 26 targets can be reached; those that few pools reach give less, the others as many as one another.
        assert!(counts.len() >= 25, "{counts:?}");
        let most = *counts.values().max().unwrap();
        let num_full = counts.values().filter(|&&count| count + 1 >= most).count();
        assert!(num_full >= 20 && most <= 14, "{counts:?}");
    }

    #[test]
    fn the_papers_problems_keep_every_promise() {
        check_promises(&paper(), &generate(&paper()).unwrap());
    }

    #[test]
    fn the_seed_decides_and_the_threads_do_not() {
        let with_threads = |num_threads: usize, config: &GeneratorConfig| {
            let threads = rayon::ThreadPoolBuilder::new().num_threads(num_threads);
            let threads = threads.build().unwrap();
            threads.install(|| generate(config)).unwrap()
        };
        let config = tiny();
        let set = with_threads(1, &config);
        assert_eq!(set, with_threads(3, &config));
        let other = GeneratorConfig { seed: 8, ..config };
        assert_ne!(set, with_threads(1, &other));
    }

    #[test]
    fn one_split_alone_takes_every_target() {
        let config = GeneratorConfig {
            num_train: 0,
            ..tiny()
        };
        check_promises(&config, &generate(&config).unwrap());
        let config = GeneratorConfig {
            num_test: 0,
            ..tiny()
        };
        check_promises(&config, &generate(&config).unwrap());
    }

    #[test]
    fn a_lack_of_problems_is_an_error_with_numbers() {
        let config = GeneratorConfig {
            num_numbers: 3,
            number_range: (1, 4),
            target_range: (2, 6),
            ..tiny()
        };
        let error = generate(&config).unwrap_err();
        assert!(
            matches!(error, Error::TooFewProblems { split: "train", wanted: 300, found, .. } if found < 20),
            "{error}"
        );
        let config = GeneratorConfig {
            target_range: (5_000, 5_050),
            ..tiny()
        };
        let error = generate(&config).unwrap_err();
        assert!(
            matches!(error, Error::TooFewProblems { found: 0, .. }),
            "{error}"
        );
    }

    #[test]
    fn contradictions_name_the_field() {
        type Change = fn(&mut GeneratorConfig);
        let changes: [(&str, Change); 13] = [
            ("number_range", |config| config.number_range = (-1, 12)),
            ("number_range", |config| config.number_range = (12, 1)),
            ("num_numbers", |config| config.num_numbers = 13),
            ("num_numbers", |config| config.num_numbers = 0),
            ("target_range", |config| config.target_range = (9, 8)),
            ("target_range", |config| {
                config.target_range = (i64::MIN, i64::MAX);
            }),
            ("rules", |config| config.rules.min_numbers = 0),
            ("rules", |config| config.rules.min_numbers = 3),
            ("rules", |config| {
                config.rules.min_numbers = 6;
                config.rules.max_numbers = 6;
            }),
            ("required", |config| config.required = 0),
            ("required", |config| config.required = 5_000),
            ("test_target_fraction", |config| {
                config.test_target_fraction = 1.5;
            }),
            ("test_target_fraction", |config| {
                config.test_target_fraction = f64::NAN;
            }),
        ];
        for (field, change) in changes {
            let mut config = tiny();
            change(&mut config);
            let message = generate(&config).unwrap_err().to_string();
            assert!(message.contains(&format!("`{field}`")), "{message}");
        }
    }

    #[test]
    fn subsets_are_counted() {
        assert_eq!(num_subsets(12, 5), 792);
        assert_eq!(num_subsets(5, 5), 1);
        assert_eq!(num_subsets(u64::MAX, 9), u64::MAX);
    }
}
