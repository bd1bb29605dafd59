//! An answer of a megabyte is graded in bounded time, whatever it holds.

use std::time::{Duration, Instant};

use asyncthink_tasks::mcd::{Problem, Rules, grade};

const NUM_BYTES: usize = 1 << 20;

/// The product's bound in release; unoptimised code on a busy machine gets room.
const BOUND: Duration = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 50 });

fn repeat(unit: &str) -> String {
    unit.repeat(NUM_BYTES / unit.len())
}

#[test]
fn a_megabyte_of_anything_is_graded_in_time() {
    let numbers: Vec<i64> = (1..=12).collect();
    let answers = [
        repeat("("),
        repeat("1"),
        repeat("1+"),
        repeat("9*"),
        repeat("((1+2)*"),
        repeat("1,"),
        repeat(","),
        repeat("\n \r\n\t;"),
        repeat("="),
        repeat("\u{1f9ee}"),
        repeat("1+2+3=6\n"),
        repeat(&format!("{}1{};", "(".repeat(32), ")".repeat(32))),
        repeat(&format!("{}1;", "1/".repeat(255))),
        repeat(&format!("{}1;", "9*".repeat(255))),
        repeat(&format!("{};", "9".repeat(511))),
        repeat(&format!("1{}2;", " ".repeat(509))),
        repeat("<FORK1>\u{0}"),
        repeat("$"),
        repeat("1$"),
        repeat("**1"),
        repeat("Solution 1:\n"),
        repeat("\\frac{1}{"),
        repeat("- > 1. `$**\"1"),
        repeat(&format!("{}1;", "$".repeat(510))),
        repeat(&format!("{}1;", "\\(".repeat(255))),
        repeat(&format!("{}1;", "1=".repeat(255))),
    ];
    // The second problem makes the grader look at as many items as any problem may.
    for required in [4, 1024] {
        let problem = Problem::new(6, numbers.clone(), required, Rules::default()).unwrap();
        for answer in &answers {
            // The fastest of three: what is measured is the grader, not the machine's other work.
            let fastest = (0..3).map(|_| {
                let start = Instant::now();
                let graded = grade(&problem, answer);
                assert!(graded.num_correct <= 1 && graded.items.len() <= required + 64);
                start.elapsed()
            });
            let fastest = fastest.min().unwrap();
            let head: String = answer.chars().take(20).collect();
            println!("{fastest:?} for {required} items of {head:?}");
            assert!(fastest < BOUND, "{fastest:?} for `{head}...`");
        }
    }
}
