//! Laws of the language on random and hostile input.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use asyncthink_protocol::{
    Action, Capacity, CharCounter, ForkPoint, FormatError, Fragment, MalformedKind,
    OrganizerMachine, Overflow, Protocol, RawTrace, RawWorker, SpanKind, Step, SubQueryId,
    TagStyle, Timeline, Trace, TraceBuilder, WorkerIndex, WorkerMachine, returned_text,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn protocol(tags: TagStyle, capacity: u32, overflow: Overflow) -> Protocol {
    Protocol {
        tags,
        capacity: Capacity::new(capacity).expect("positive"),
        overflow,
        max_forks: None,
    }
}

fn any_tags() -> impl Strategy<Value = TagStyle> {
    prop_oneof![Just(TagStyle::Plain), Just(TagStyle::Hyphen)]
}

fn any_overflow() -> impl Strategy<Value = Overflow> {
    prop_oneof![Just(Overflow::Error), Just(Overflow::Queue)]
}

/// Text made of whole tags, halves of tags and single characters: a small alphabet finds the
/// collisions.
fn tagged_text(max_pieces: usize) -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "<FORK1>",
        "</FORK1>",
        "<FORK2>",
        "</FORK2>",
        "<JOIN1>",
        "<JOIN2>",
        "</JOIN1>",
        "<ANSWER>",
        "</ANSWER>",
        "<RETURN>",
        "</RETURN>",
        "<FORK-1>",
        "</FORK-1>",
        "<JOIN-1>",
        "<",
        "</",
        ">",
        "<FORK",
        "JOIN",
        "1",
        "-1>",
        "<JO",
        "x",
        "\u{e9}",
        " ",
    ]);
    prop::collection::vec(piece, 0..max_pieces).prop_map(|pieces| pieces.concat())
}

/// Events of one organizer, fed in pieces that end at `cuts`.
fn events(
    rules: Protocol,
    bytes: &[u8],
    cuts: &[usize],
) -> (
    Vec<Action>,
    Result<(), FormatError>,
    Result<(), FormatError>,
) {
    let mut machine = OrganizerMachine::new(rules);
    let mut actions = Vec::new();
    let mut pushed = Ok(());
    let mut start = 0;
    for end in pieces(bytes.len(), cuts) {
        pushed = machine.push_into(&bytes[start..end], &mut actions);
        start = end;
    }
    let finished = machine.finish();
    (actions, pushed, finished)
}

/// Piece ends for a text of `len` bytes.
fn pieces(len: usize, cuts: &[usize]) -> Vec<usize> {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (len + 1)).collect();
    ends.sort_unstable();
    ends.push(len);
    ends
}

/// The same language by searching whole text: slow, and written in another way.
fn naive(rules: Protocol, text: &str) -> (Vec<Action>, Result<(), FormatError>) {
    let ids: Vec<_> = (1..=2).map(SubQueryId).collect();
    let mut outstanding = BTreeMap::new();
    let mut num_forks = 0;
    let mut actions = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let forked = ids
            .iter()
            .find(|id| rest.starts_with(&rules.tags.fork_open(**id)));
        let joined = ids
            .iter()
            .find(|id| rest.starts_with(&rules.tags.join_open(**id)));
        if let Some(&id) = joined {
            at += rules.tags.join_open(id).len();
            let Some(worker) = outstanding.remove(&id) else {
                return (actions, Err(FormatError::UnknownJoin { id }));
            };
            actions.push(Action::Join {
                id,
                worker,
                end: at,
            });
        } else if let Some(&id) = forked {
            if outstanding.contains_key(&id) {
                return (actions, Err(FormatError::DuplicateSubQuery { id }));
            }
            let max_workers = rules.capacity.max_workers();
            let is_full = outstanding.len() >= max_workers as usize;
            if is_full && (rules.overflow == Overflow::Error || max_workers == 0) {
                return (actions, Err(FormatError::PoolOverflow { id, max_workers }));
            }
            at += rules.tags.fork_open(id).len();
            let rest = &text[at..];
            let close = rest.find(&rules.tags.fork_close(id));
            let inside = &rest[..close.unwrap_or(rest.len())];
            let first = |open: fn(TagStyle, SubQueryId) -> String| {
                ids.iter()
                    .filter_map(|&id| Some((inside.find(&open(rules.tags, id))?, id)))
                    .min()
            };
            let (fork, join) = (first(TagStyle::fork_open), first(TagStyle::join_open));
            let kind = match (fork, join, close) {
                (Some((fork_at, inner)), join, _)
                    if join.is_none_or(|(join_at, _)| fork_at < join_at) =>
                {
                    MalformedKind::NestedFork { outer: id, inner }
                }
                (_, Some((_, join)), _) => MalformedKind::JoinInsideFork { fork: id, join },
                (_, None, None) => MalformedKind::UnclosedFork { id },
                (_, None, Some(close)) => {
                    at += close + rules.tags.fork_close(id).len();
                    let worker = WorkerIndex(num_forks);
                    num_forks += 1;
                    outstanding.insert(id, worker);
                    let sub_query = inside.to_owned();
                    actions.push(Action::Fork {
                        id,
                        worker,
                        sub_query,
                        end: at,
                    });
                    continue;
                }
            };
            return (actions, Err(FormatError::Malformed(kind)));
        } else if let Some(content) = rest.strip_prefix("<ANSWER>") {
            let Some(close) = content.find("</ANSWER>") else {
                return (actions, Err(FormatError::NoAnswer));
            };
            let end = at + "<ANSWER></ANSWER>".len() + close;
            let text = content[..close].to_owned();
            actions.push(Action::Answer { text, end });
            return (actions, Ok(()));
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    (actions, Err(FormatError::NoAnswer))
}

/// Legal steps from a list of choices, with what the workers decode.
fn legal_steps(rules: Protocol, choices: &[(u8, u8, String, String)]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut outstanding: Vec<SubQueryId> = Vec::new();
    for (choice, pick, text, other) in choices {
        let max_workers = rules.capacity.max_workers() as usize;
        let is_open = match rules.overflow {
            Overflow::Error => outstanding.len() < max_workers,
            Overflow::Queue => max_workers > 0,
        };
        match choice % 3 {
            0 => steps.push(Step::Think(text.clone())),
            1 if is_open => {
                let id = (u32::from(*pick)..1000)
                    .map(SubQueryId)
                    .find(|id| !outstanding.contains(id))
                    .expect("some id is free");
                outstanding.push(id);
                steps.push(Step::Fork {
                    id,
                    sub_query: text.clone(),
                    worker_text: other.clone(),
                });
            }
            2 if !outstanding.is_empty() => {
                let id = outstanding.remove(usize::from(*pick) % outstanding.len());
                steps.push(Step::Join(id));
            }
            _ => {}
        }
    }
    steps.push(Step::Answer("42".to_owned()));
    steps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_recogniser_reads_what_a_search_reads(
        tags in any_tags(), capacity in 1_u32..4, overflow in any_overflow(), text in tagged_text(25),
    ) {
        let rules = protocol(tags, capacity, overflow);
        let (actions, _, verdict) = events(rules, text.as_bytes(), &[]);
        prop_assert_eq!((actions, verdict), naive(rules, &text));
    }

    #[test]
    fn any_split_gives_the_same_events(
        tags in any_tags(), capacity in 1_u32..4, text in tagged_text(25),
        cuts in prop::collection::vec(0_usize..1000, 0..12),
    ) {
        let rules = protocol(tags, capacity, Overflow::Error);
        let whole = events(rules, text.as_bytes(), &[]);
        prop_assert_eq!(&events(rules, text.as_bytes(), &cuts), &whole);
        let bytewise: Vec<_> = (0..text.len()).collect();
        prop_assert_eq!(&events(rules, text.as_bytes(), &bytewise), &whole);
    }

    #[test]
    fn any_split_gives_the_same_return(
        text in tagged_text(25), cuts in prop::collection::vec(0_usize..1000, 0..12),
    ) {
        let mut machine = WorkerMachine::new();
        let mut returned = Vec::new();
        let mut start = 0;
        for end in pieces(text.len(), &cuts) {
            returned.extend(machine.push(&text.as_bytes()[start..end]));
            start = end;
        }
        prop_assert_eq!(returned.concat(), returned_text(&text));
        prop_assert!(returned.len() <= 1);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in any::<usize>()) {
        let rules = protocol(TagStyle::Plain, 3, Overflow::Error);
        prop_assert_eq!(events(rules, &bytes, &[cut]), events(rules, &bytes, &[]));
        WorkerMachine::new().push(&bytes);
    }

    #[test]
    fn arbitrary_traces_never_panic(
        capacity in 0_u32..4, organizer in tagged_text(20), overflow in any_overflow(),
        workers in prop::collection::vec((0_u32..3, tagged_text(5)), 0..4),
    ) {
        let workers = workers
            .into_iter()
            .map(|(sub_query_id, text)| RawWorker { sub_query_id, text })
            .collect();
        let raw = RawTrace { capacity, organizer, workers };
        if let Ok(trace) = Trace::check(&raw, TagStyle::Plain, overflow, &CharCounter) {
            assert_laws(trace.timeline());
        }
    }

    #[test]
    fn what_is_written_reads_back(
        tags in any_tags(), capacity in 1_u32..5, overflow in any_overflow(),
        choices in prop::collection::vec(
            (any::<u8>(), 0_u8..3, "[a-z0-9 +\u{e9}]{0,8}", tagged_text(6)), 0..30,
        ),
    ) {
        let rules = protocol(tags, capacity, overflow);
        let steps = legal_steps(rules, &choices);
        let raw = TraceBuilder::from_steps(rules, steps.clone()).build().expect("legal steps");
        let trace = Trace::check(&raw, tags, overflow, &CharCounter).expect("it was built");

        let read: Vec<_> = trace
            .actions()
            .iter()
            .map(|action| match action {
                Action::Fork { id, sub_query, .. } => (Some(*id), sub_query.clone()),
                Action::Join { id, .. } => (Some(*id), String::new()),
                Action::Answer { text, .. } => (None, text.clone()),
            })
            .collect();
        let written: Vec<_> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Think(_) => None,
                Step::Fork { id, sub_query, .. } => Some((Some(*id), sub_query.clone())),
                Step::Join(id) => Some((Some(*id), String::new())),
                Step::Answer(text) => Some((None, text.clone())),
            })
            .collect();
        prop_assert_eq!(read, written);

        // Spans cover the text; the decoded ones are what a machine sees at run time.
        let mut end = 0;
        let mut decoded = String::new();
        for span in trace.spans() {
            prop_assert_eq!(span.bytes.start, end);
            end = span.bytes.end;
            let text = &raw.organizer[span.bytes.clone()];
            if span.kind == SpanKind::Decoded {
                decoded.push_str(text);
            }
        }
        prop_assert_eq!(end, raw.organizer.len());
        let (actions, _, verdict) = events(rules, decoded.as_bytes(), &[]);
        prop_assert_eq!(actions.as_slice(), trace.actions());
        prop_assert_eq!(verdict, Ok(()));
        let num_chars = decoded.chars().count() as u64;
        prop_assert_eq!(trace.timeline().organizer_tokens(), num_chars);
        assert_laws(trace.timeline());
    }
}

/// A random legal episode; small counts make ties frequent.
fn random_timeline(rng: &mut ChaCha8Rng, capacity: u32, overflow: Overflow) -> Timeline {
    let max_tokens = *[1_u64, 4, 30]
        .get(rng.random_range(0..3))
        .expect("in range");
    let mut fragments = Vec::new();
    let mut worker_tokens = Vec::new();
    let mut outstanding: Vec<usize> = Vec::new();
    let mut current = Fragment {
        num_tokens: 0,
        forks: Vec::new(),
        join: None,
    };
    for _ in 0..rng.random_range(0..20) {
        current.num_tokens += rng.random_range(0..=max_tokens);
        let max_workers = capacity as usize - 1;
        let is_open = match overflow {
            Overflow::Error => outstanding.len() < max_workers,
            Overflow::Queue => max_workers > 0,
        };
        if rng.random_bool(0.5) && is_open {
            let worker = worker_tokens.len();
            outstanding.push(worker);
            worker_tokens.push(rng.random_range(0..=3 * max_tokens));
            current.forks.push(ForkPoint {
                worker: WorkerIndex(worker),
                at_tokens: current.num_tokens,
            });
        } else if !outstanding.is_empty() {
            let joined = outstanding.swap_remove(rng.random_range(0..outstanding.len()));
            current.num_tokens += rng.random_range(0..=max_tokens);
            current.join = Some(WorkerIndex(joined));
            let next = Fragment {
                num_tokens: 0,
                forks: Vec::new(),
                join: None,
            };
            fragments.push(std::mem::replace(&mut current, next));
        }
    }
    current.num_tokens += rng.random_range(0..=max_tokens);
    fragments.push(current);
    let capacity = Capacity::new(capacity).expect("positive");
    Timeline::new(capacity, overflow, fragments, worker_tokens).expect("legal by construction")
}

/// What holds for every episode: the recursion and the simulation agree, the path is no longer
/// than all tokens and no shorter than the organizer's, and `1/c <= eta/c <= 1`.
fn assert_laws(timeline: &Timeline) {
    let simulation = timeline.simulate();
    let latency = timeline.latency();
    assert_eq!(latency, simulation.latency_tokens, "{timeline:?}");
    assert!(latency <= timeline.decoded_tokens(), "{timeline:?}");
    assert!(latency >= timeline.organizer_tokens(), "{timeline:?}");
    let capacity = timeline.capacity().get();
    assert!(simulation.max_active <= capacity as usize, "{timeline:?}");

    let all = timeline.concurrency(true);
    let joined = timeline.concurrency(false);
    assert_eq!(all.latency_tokens, latency);
    if latency > 0 {
        let steps = simulation.agent_steps;
        let is_close = |eta: f64, steps: u64| (eta * latency as f64 - steps as f64).abs() < 1e-6;
        assert!(is_close(all.eta, steps), "{timeline:?}");
        assert!(
            is_close(joined.eta, steps - simulation.unjoined_steps),
            "{timeline:?}"
        );
    }
    assert!(joined.eta <= all.eta, "{timeline:?}");
    assert!(all.eta >= 1.0 && all.eta_ratio <= 1.0, "{timeline:?}");
    assert!(all.eta_ratio >= 1.0 / f64::from(capacity), "{timeline:?}");
    if timeline.overflow() == Overflow::Error {
        assert!(joined.eta >= 1.0, "{timeline:?}");
    }
}

#[test]
fn the_recursion_is_the_simulation() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for capacity in 1..=4 {
        for overflow in [Overflow::Error, Overflow::Queue] {
            for _ in 0..2500 {
                assert_laws(&random_timeline(&mut rng, capacity, overflow));
            }
        }
    }
}

#[test]
fn where_nothing_overflows_a_queue_changes_nothing() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for _ in 0..1000 {
        let strict = random_timeline(&mut rng, 3, Overflow::Error);
        let queued = Timeline::new(
            strict.capacity(),
            Overflow::Queue,
            strict.fragments().to_vec(),
            strict.worker_tokens().to_vec(),
        )
        .expect("legal");
        assert_eq!(queued.latency(), strict.latency());
    }
}

/// Megabytes of almost-tags and of Forks take a time in which a quadratic reader would not end.
#[test]
fn hostile_text_takes_linear_time() {
    let rules = protocol(TagStyle::Plain, u32::MAX, Overflow::Error);
    for piece in [
        "<",
        "<FORK1",
        "</FORK429496729",
        "<FORK1>",
        "<ANSWER></ANSWE",
    ] {
        let bytes = piece.repeat(4_000_000 / piece.len());
        let mut machine = OrganizerMachine::new(rules);
        for chunk in bytes.as_bytes().chunks(3) {
            if machine.push(chunk).is_err() {
                break;
            }
        }
        WorkerMachine::new().push(bytes.as_bytes());
    }
    let mut forks = String::new();
    for id in 0..100_000 {
        write!(forks, "<FORK{id}></FORK{id}>").expect("a string takes everything");
    }
    let mut machine = OrganizerMachine::new(rules);
    let actions = machine.push(forks.as_bytes()).expect("the pool is large");
    assert_eq!(actions.len(), 100_000);
}
