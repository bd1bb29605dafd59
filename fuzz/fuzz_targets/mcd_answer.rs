//! Any answer is graded without a panic and within the stated bounds, an item that counts is a solution, and what is right in
//! the plain language stays right.
//!
//! Input: a byte that chooses the problem, then the answer.

#![no_main]

#[path = "../../crates/tasks/tests/answer_forms/plain.rs"]
mod plain;

use asyncthink_tasks::mcd::{Problem, Rules, check_solution, grade};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [choice, answer @ ..] = data else {
        return;
    };
    let answer = String::from_utf8_lossy(answer);
    let target = [24, 1000, 1, -4, 1_234_567, 0, 7, i64::MIN][usize::from(choice & 7)];
    let rules = Rules {
        min_numbers: 1 + usize::from(choice >> 3 & 1),
        max_numbers: 4,
    };
    let pool = vec![1, 2, 3, 4, 6, 8, 8, 12, 24, 25, 40, 1000];
    let problem =
        Problem::new(target, pool, 1 + usize::from(choice >> 4), rules).expect("a problem");
    let graded = grade(&problem, &answer);
    assert!(graded.items.len() <= problem.required + 64);
    assert_eq!(
        graded.items.iter().filter(|item| item.ok).count(),
        graded.num_correct
    );
    assert!((0.0..=1.0).contains(&graded.reward));
    for item in graded.items.iter().filter(|item| item.ok) {
        // The solution in the plain language is one too, and its numbers stand in the text.
        let expr = check_solution(&problem, &item.text).expect("an item that counts");
        let plain = expr.to_string();
        assert_eq!(check_solution(&problem, &plain).as_ref(), Ok(&expr));
        let mut rest: String = item.text.chars().map(ascii_digit).collect();
        for number in expr.numbers() {
            let digits = number.to_string();
            let at = rest.find(&digits).expect("a number of the text");
            rest.drain(..at + digits.len());
        }
    }
    plain::check_all_kept(&problem, &answer);
});

fn ascii_digit(c: char) -> char {
    match c {
        '\u{ff10}'..='\u{ff19}' => char::from_digit(u32::from(c) - 0xff10, 10).expect("a digit"),
        _ => c,
    }
}
