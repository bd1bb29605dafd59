//! Any text as a trace is answered without a panic, and the numbers of a legal one obey the laws.
//!
//! Input: two bytes of settings (rules, capacity), then the organizer's text and the workers' texts,
//! separated by zero bytes. A worker's first byte is its sub-query.

#![no_main]

use asyncthink_protocol::{CharCounter, Overflow, RawTrace, RawWorker, TagStyle, Trace};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [flags, agents, bytes @ ..] = data else {
        return;
    };
    let mut texts = bytes.split(|&byte| byte == 0);
    let organizer = String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
    let workers = texts
        .map(|text| RawWorker {
            sub_query_id: text.first().map_or(0, |&id| u32::from(id % 4)),
            text: String::from_utf8_lossy(text.get(1..).unwrap_or_default()).into_owned(),
        })
        .collect();
    let raw = RawTrace {
        capacity: u32::from(agents % 5),
        organizer,
        workers,
    };
    let tags = [TagStyle::Plain, TagStyle::Hyphen][usize::from(flags & 1)];
    let overflow = [Overflow::Error, Overflow::Queue][usize::from(flags >> 1 & 1)];
    let Ok(trace) = Trace::check(&raw, tags, overflow, &CharCounter) else {
        return;
    };
    let timeline = trace.timeline();
    let concurrency = timeline.concurrency(true);
    assert_eq!(
        concurrency.latency_tokens,
        timeline.simulate().latency_tokens
    );
    assert!(concurrency.eta >= 1.0 && concurrency.eta_ratio <= 1.0);
    let covered: usize = trace.spans().iter().map(|span| span.bytes.len()).sum();
    assert_eq!(covered, raw.organizer.len());
});
