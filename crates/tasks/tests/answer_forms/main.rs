//! Answers in the forms that models write, right ones and near misses, graded as a reference grades them.
//!
//! The reference knows the tree of every expression before it is written down: it reads no text. `NUM_ANSWERS` sets how many
//! answers are made, for a longer run than the usual one.

mod misses;
mod plain;
mod reference;
mod rng;
mod styles;

use std::collections::{BTreeMap, BTreeSet};

use asyncthink_tasks::mcd::{Problem, Rules, grade};
use proptest::prelude::*;

use misses::near_miss;
use reference::{Key, Puzzle, puzzles};
use rng::Rng;
use styles::{HEADINGS, written};

/// Answers without `NUM_ANSWERS`.
const NUM_ANSWERS: u64 = 10_000;

/// An item as it was written, and what the reference says of it.
struct Written {
    text: String,
    /// The key of a right item; `None` of a wrong one.
    right: Option<Key>,
    form: &'static str,
}

fn item(puzzle: &Puzzle, rng: &mut Rng) -> Written {
    if rng.chance(60) {
        let tree = rng.pick(&puzzle.solutions).shuffled(rng);
        let text = written(puzzle, &tree, rng);
        let right = puzzle.key_if_right(&tree).filter(|_| text.len() <= 512);
        Written {
            text,
            right,
            form: "right",
        }
    } else {
        near_miss(puzzle, rng)
    }
}

#[test]
fn answers_are_graded_as_the_reference_grades_them() {
    let num_answers = std::env::var("NUM_ANSWERS").map_or(NUM_ANSWERS, |text| {
        text.parse().expect("a number of answers")
    });
    let mut rng = Rng::new(29);
    let puzzles = puzzles(&mut rng, 60);
    let mut counts: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for _ in 0..num_answers {
        let puzzle = rng.pick(&puzzles);
        let required = puzzle.problem.required;
        let mut answer = String::new();
        let mut items = Vec::new();
        for _ in 0..=rng.below(required + 2) {
            if rng.chance(25) {
                answer += *rng.pick(&HEADINGS);
                answer += "\n";
            }
            let item = item(puzzle, &mut rng);
            answer += &item.text;
            answer += *rng.pick(&["\n", "\n", "\r\n", "\n\n", ", ", "; ", " \\\\\n", "\\\n"]);
            items.push(item);
        }
        let mut seen = BTreeSet::new();
        let expected: Vec<bool> = items
            .iter()
            .take(required)
            .map(|item| item.right.clone().is_some_and(|key| seen.insert(key)))
            .collect();
        let num_correct = expected.iter().filter(|&&ok| ok).count();

        let graded = grade(&puzzle.problem, &answer);
        let got: Vec<bool> = graded.items.iter().map(|item| item.ok).collect();
        let told = || format!("{answer:?}\n{:?}\n{graded:#?}", puzzle.problem);
        assert_eq!(graded.items.len(), items.len(), "{}", told());
        assert_eq!(got[..expected.len()], expected, "{}", told());
        assert_eq!(graded.num_correct, num_correct, "{}", told());
        let reward = num_correct as f64 / required as f64;
        assert!((graded.reward - reward).abs() < 1e-12, "{}", told());
        for item in items.iter().take(required) {
            counts.entry(item.form).or_default()[usize::from(item.right.is_some())] += 1;
        }
    }
    for (form, [wrong, right]) in &counts {
        println!("{form}: {right} right, {wrong} wrong");
    }
    let [right, wrong] = [1, 0].map(|at| counts.values().map(|count| count[at]).sum::<u64>());
    println!("{num_answers} answers: {right} right and {wrong} wrong items scored");
    assert!(right > num_answers && wrong > num_answers / 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn plain_answers_earn_what_they_always_earned(
        answer in "(([1-9]|12|24|1,000|[-+*/()=,; \n]|= 24|4\\*6|8\\*3|\\*\\*|[$.:!`x\u{d7}]){0,16}[\n,;]){0,5}",
        target in prop::sample::select(vec![24, 1000, 1, -4]),
        min_numbers in 1_usize..3,
    ) {
        let rules = Rules { min_numbers, max_numbers: 4 };
        let pool = vec![1, 2, 3, 4, 6, 8, 8, 12, 24, 1000];
        let problem = Problem::new(target, pool, 3, rules).unwrap();
        plain::check_all_kept(&problem, &answer);
    }
}
