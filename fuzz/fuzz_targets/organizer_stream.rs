//! Any bytes, in any pieces, give the same actions and the same verdict, and never a panic.
//!
//! Input: three bytes of settings (rules, capacity, piece length), then the organizer's bytes.

#![no_main]

use asyncthink_protocol::{
    Action, Capacity, FormatError, OrganizerMachine, Overflow, Protocol, TagStyle, WorkerMachine,
};
use libfuzzer_sys::fuzz_target;

fn read(rules: Protocol, bytes: &[u8], piece: usize) -> (Vec<Action>, Result<(), FormatError>) {
    let mut machine = OrganizerMachine::new(rules);
    let mut actions = Vec::new();
    for chunk in bytes.chunks(piece) {
        // The error stays and is the verdict of `finish`.
        if machine.push_into(chunk, &mut actions).is_err() {
            break;
        }
    }
    (actions, machine.finish())
}

fn returned(bytes: &[u8], piece: usize) -> Vec<String> {
    let mut machine = WorkerMachine::new();
    bytes
        .chunks(piece)
        .filter_map(|chunk| machine.push(chunk))
        .collect()
}

fuzz_target!(|data: &[u8]| {
    let [flags, agents, piece, bytes @ ..] = data else {
        return;
    };
    let Some(capacity) = Capacity::new(u32::from(agents % 5)) else {
        return;
    };
    let rules = Protocol {
        tags: [TagStyle::Plain, TagStyle::Hyphen][usize::from(flags & 1)],
        capacity,
        overflow: [Overflow::Error, Overflow::Queue][usize::from(flags >> 1 & 1)],
        max_forks: (flags & 4 != 0).then_some(u32::from(flags >> 3)),
    };
    let piece = usize::from(*piece).max(1);
    let whole = bytes.len().max(1);
    assert_eq!(read(rules, bytes, piece), read(rules, bytes, whole));
    assert_eq!(returned(bytes, piece), returned(bytes, whole));
});
