//! How long a large trace file takes, JSON included.

use std::time::Instant;

use asyncthink_protocol::{
    Capacity, CharCounter, Overflow, Protocol, RawTrace, SubQueryId, TagStyle, Trace, TraceBuilder,
};

const NUM_LINES: usize = 100_000;

/// A legal trace of about a kilobyte.
fn line() -> String {
    let tags = TagStyle::Plain;
    let mut builder = TraceBuilder::new(Protocol {
        tags,
        capacity: Capacity::new(3).expect("positive"),
        overflow: Overflow::Error,
        max_forks: None,
    });
    for id in [1, 2, 1] {
        let worker = format!(
            "{}<RETURN>3 + {id} = 7 < 8</RETURN>",
            "4 * 5 - 2 = 18\n".repeat(8)
        );
        builder = builder
            .think("Let me split the search. ".repeat(3))
            .fork(SubQueryId(id), "solutions that begin with 3 or 4", worker)
            .join(SubQueryId(id));
    }
    let raw = builder.answer("3 + 4\n8 - 1").build().expect("legal");
    serde_json::to_string(&raw).expect("plain data")
}

#[test]
#[ignore = "a measurement: run it alone, in release"]
fn a_hundred_thousand_lines_take_less_than_five_seconds() {
    let line = line();
    assert!((900..1300).contains(&line.len()), "{}", line.len());
    let lines = vec![line; NUM_LINES];
    let started = Instant::now();
    let mut latency_tokens = 0;
    for line in &lines {
        let raw: RawTrace = serde_json::from_str(line).expect("one record");
        let trace = Trace::check(&raw, TagStyle::Plain, Overflow::Error, &CharCounter);
        let concurrency = trace.expect("legal").timeline().concurrency(true);
        latency_tokens += concurrency.latency_tokens;
    }
    let elapsed = started.elapsed();
    println!("{NUM_LINES} lines in {elapsed:?}, {latency_tokens} tokens");
    assert!(elapsed.as_secs_f64() < 5.0, "{elapsed:?}");
}
