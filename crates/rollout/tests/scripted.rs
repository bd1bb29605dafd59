//! Episodes over a backend that plays written scripts: what the driver makes of every action, checked against the
//! text form of the same episode and against the steps that the backend took.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "a panic is a failed test, and the numbers are small"
)]

#[path = "scripted/backend.rs"]
mod backend;
#[path = "scripted/chat.rs"]
mod chat;
#[path = "scripted/observed.rs"]
mod observed;
#[path = "scripted/seams.rs"]
mod seams;

use asyncthink_data::{PromptTemplates, PromptText};
use asyncthink_protocol::{Overflow, Timeline};
use asyncthink_rollout::{Episode, Outcome, Query, RolloutSettings, WorkerEnd, rollout};
use proptest::prelude::*;

use crate::backend::{Delivery, ScriptedBackend, query, query_of, settings, templates, tokenizer};

fn run_one(scripts: &[(&str, &str)], settings: &RolloutSettings) -> Episode {
    run_delivered(scripts, settings, Delivery::LockStep).0
}

/// An episode, and how often the backend was polled: the steps that were taken, in lock-step.
fn run_delivered(
    scripts: &[(&str, &str)],
    settings: &RolloutSettings,
    delivery: Delivery,
) -> (Episode, u64) {
    let tokenizer = tokenizer();
    let slots = settings.protocol.capacity.get() as usize;
    let mut backend = ScriptedBackend::new(&tokenizer, slots, scripts).with_delivery(delivery);
    let mut episodes = rollout(
        &mut backend,
        &tokenizer,
        &templates(),
        settings,
        &[query(&tokenizer, 0)],
        &mut |_| true,
    )
    .unwrap();
    assert!(backend.agents.is_empty(), "every agent is freed");
    (episodes.remove(0), backend.num_polls)
}

/// The organizer's ids as text, decoded ids plain and injected ones in `{}`.
fn marked(episode: &Episode) -> String {
    let tokenizer = tokenizer();
    let record = &episode.organizer;
    let mut text = String::new();
    for index in record.prompt_tokens()..record.ids().len() {
        let piece = tokenizer.decode(&record.ids()[index..=index]);
        if record.decoded()[index] {
            text.push_str(&piece);
        } else {
            text.push('{');
            text.push_str(&piece);
            text.push('}');
        }
    }
    text
}

#[test]
fn the_organizer_goes_on_while_its_worker_runs_and_waits_at_the_join() {
    let (episode, num_steps) = run_delivered(
        &[
            (
                "main 0",
                "a<FORK1> one</FORK1> b b<JOIN1> c<ANSWER>7</ANSWER>",
            ),
            ("sub  one", " a a a a a a<RETURN>12</RETURN>"),
        ],
        &settings(2, Overflow::Error),
        Delivery::LockStep,
    );
    assert_eq!(episode.answer(), Some("7"));
    assert_eq!(
        marked(&episode),
        "a<FORK1> one</FORK1> b b<JOIN1>{12}{</JOIN1>} c<ANSWER>7</ANSWER>"
    );
    let timeline = episode.timeline.as_ref().unwrap();
    // Fork complete at 4, the worker decodes 9, so the Join (at 7) is served at 13; then 4 tokens more. Each of the two ends
    // its sequence in a step that is not counted.
    assert_eq!(timeline.latency(), 17);
    assert_eq!(num_steps, 19);
    assert_eq!(episode.decoded_tokens(), 12 + 10);
    let concurrency = timeline.concurrency(true);
    assert!((concurrency.eta - 20.0 / 17.0).abs() < 1e-12);
    assert!((episode.join_wait_share().unwrap() - 6.0 / 17.0).abs() < 1e-12);
    assert_eq!(episode.num_completed_agents(), 2);
    assert_eq!(episode.num_missing_eos(), 0);
    assert_eq!(episode.workers[0].end, WorkerEnd::Returned("12".into()));
    let record = &episode.workers[0].record;
    assert_eq!(
        record.logprobs()[record.prompt_tokens()..],
        (1..=10).map(|n| -(n as f32)).collect::<Vec<_>>()
    );
}

#[test]
fn tags_inside_returned_text_are_data() {
    let episode = run_one(
        &[
            ("main 0", "<FORK1>a</FORK1><JOIN1><ANSWER>1</ANSWER>"),
            (
                "sub a",
                "<RETURN><JOIN2></JOIN1><ANSWER>no</ANSWER></RETURN>",
            ),
        ],
        &settings(2, Overflow::Error),
    );
    assert_eq!(episode.answer(), Some("1"));
    assert_eq!(episode.num_joins, 1);
}

#[test]
fn unjoined_workers_are_cancelled_at_the_organizers_last_step() {
    let episode = run_one(
        &[
            ("main 0", "<FORK1>a</FORK1> b<ANSWER>1</ANSWER>"),
            ("sub a", " c c c c c c c c c c c c c c"),
        ],
        &settings(2, Overflow::Error),
    );
    assert_eq!(episode.workers[0].end, WorkerEnd::Cancelled);
    assert_eq!(
        episode.workers[0].record.num_decoded(),
        5,
        "it decodes while the organizer does"
    );
    let concurrency = episode.timeline.unwrap().concurrency(true);
    assert!((concurrency.eta - 11.0 / 7.0).abs() < 1e-12);
}

#[test]
fn one_token_follows_an_answer_and_a_return_whatever_it_is() {
    let scripts = [
        ("main 0", "<FORK1>a</FORK1><JOIN1><ANSWER>1</ANSWER> b b"),
        ("sub a", "<RETURN>1</RETURN> c c"),
    ];
    let episode = run_one(&scripts, &settings(2, Overflow::Error));
    assert_eq!(episode.answer(), Some("1"));
    assert_eq!(
        marked(&episode),
        "<FORK1>a</FORK1><JOIN1>{1}{</JOIN1>}<ANSWER>1</ANSWER> b"
    );
    assert_eq!(episode.workers[0].end, WorkerEnd::Returned("1".into()));
    assert_eq!(episode.workers[0].record.num_decoded(), 4);
    assert_eq!(
        (episode.num_missing_eos(), episode.num_completed_agents()),
        (2, 2)
    );
}

#[test]
fn an_answer_or_return_that_uses_up_its_budget_is_whole_without_an_end_of_sequence() {
    let mut settings = settings(2, Overflow::Error);
    settings.worker_max_tokens = 3;
    settings.organizer_max_tokens = 4;
    let scripts = [
        ("main 0", "<FORK1>a</FORK1><JOIN1> b<ANSWER>1</ANSWER> b"),
        ("sub a", "<RETURN>1</RETURN> c c"),
    ];
    let episode = run_one(&scripts, &settings);
    assert_eq!(episode.answer(), Some("1"));
    assert_eq!(episode.organizer.num_decoded(), 8);
    assert_eq!(episode.workers[0].record.num_decoded(), 3);
    assert_eq!(episode.num_missing_eos(), 2);
}

#[test]
fn copied_sub_queries_and_workers_that_add_nothing_are_counted() {
    let scripts = [
        (
            "main 0",
            "<FORK1>0</FORK1><FORK2>a</FORK2><JOIN1><JOIN2><FORK1> 0 </FORK1><ANSWER>1</ANSWER>",
        ),
        ("sub 0", "<RETURN> </RETURN>"),
        ("sub  0 ", "<RETURN>1</RETURN>"),
        ("sub a", " c"),
    ];
    let episode = run_one(&scripts, &settings(3, Overflow::Error));
    assert_eq!(episode.num_forks(), 3);
    assert_eq!(episode.num_copied_sub_queries(), 2);
    assert_eq!(episode.num_idle_workers(), 2);
    assert_eq!(episode.num_unread_workers(), 1);
}

#[test]
fn a_worker_without_return_hands_over_nothing() {
    for script in [
        " c c",
        " c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c c",
    ] {
        let episode = run_one(
            &[
                ("main 0", "<FORK1>a</FORK1><JOIN1><ANSWER>1</ANSWER>"),
                ("sub a", script),
            ],
            &settings(2, Overflow::Error),
        );
        assert_eq!(episode.workers[0].end, WorkerEnd::Empty);
        assert!(episode.workers[0].record.num_decoded() <= 40);
        assert_eq!(
            marked(&episode),
            "<FORK1>a</FORK1><JOIN1>{</JOIN1>}<ANSWER>1</ANSWER>"
        );
    }
}

#[test]
fn format_errors_end_the_episode_at_once() {
    let endless = " a".repeat(100);
    for (script, code) in [
        (
            "<FORK1>a</FORK1><FORK1>a</FORK1> b b",
            "duplicate_sub_query",
        ),
        ("<FORK1>a</FORK1><FORK2>a</FORK2> b b", "pool_overflow"),
        ("<JOIN1> b b", "unknown_join"),
        ("<FORK1>a</FORK1><JOIN1><JOIN1> b", "unknown_join"),
        (" b b", "no_answer"),
        (endless.as_str(), "no_answer"),
        ("<FORK1>a", "malformed"),
        ("<FORK1>a<JOIN1>", "malformed"),
    ] {
        let episode = run_one(
            &[("main 0", script), ("sub a", "<RETURN></RETURN>")],
            &settings(2, Overflow::Error),
        );
        assert_eq!(
            episode
                .format_error()
                .map(asyncthink_protocol::FormatError::code),
            Some(code),
            "{script}"
        );
        assert!(episode.timeline.is_none());
        assert!(episode.organizer.num_decoded() <= 60);
    }
}

#[test]
fn a_join_resets_the_organizers_budget() {
    let think = " a".repeat(50);
    let script = format!("{think}<FORK1>a</FORK1><JOIN1>{think}<ANSWER>1</ANSWER>");
    let episode = run_one(
        &[("main 0", &script), ("sub a", "<RETURN></RETURN>")],
        &settings(2, Overflow::Error),
    );
    assert_eq!(episode.outcome, Outcome::Answered("1".into()));
    let script = format!("<FORK1>a</FORK1><JOIN1>{think} a a a a a a a a a a<ANSWER>1</ANSWER>");
    let episode = run_one(
        &[("main 0", &script), ("sub a", "<RETURN></RETURN>")],
        &settings(2, Overflow::Error),
    );
    assert_eq!(episode.format_error().unwrap().code(), "no_answer");
}

#[test]
fn queued_workers_wait_for_a_slot() {
    let (episode, num_steps) = run_delivered(
        &[
            (
                "main 0",
                "<FORK1>a</FORK1><FORK2>b</FORK2><JOIN2><JOIN1><ANSWER>1</ANSWER>",
            ),
            ("sub a", " c c c c c c<RETURN>1</RETURN>"),
            ("sub b", " c<RETURN>2</RETURN>"),
        ],
        &settings(2, Overflow::Queue),
        Delivery::LockStep,
    );
    assert_eq!(
        marked(&episode),
        "<FORK1>a</FORK1><FORK2>b</FORK2><JOIN2>{2}{</JOIN2>}<JOIN1>{1}{</JOIN1>}<ANSWER>1</ANSWER>"
    );
    let timeline = episode.timeline.unwrap();
    // Worker 1 runs steps 4 to 12, worker 2 steps 13 to 16; the second Join is one token later, the Answer three. Three ends of
    // a sequence are not counted.
    assert_eq!(timeline.latency(), 20);
    assert_eq!(num_steps, 23);
}

#[test]
fn a_worker_whose_prompt_fills_the_context_waits_for_no_slot() {
    let tokenizer = tokenizer();
    // The worker reads its sub-query three times, so that it runs out of context before the organizer does.
    let preamble = " c".repeat(30);
    let worker = format!("sub{preamble} {{sub_query}} {{sub_query}} {{sub_query}}");
    let first = format!("sub{preamble} a a a");
    let organizer = format!(
        "<FORK1>a</FORK1><FORK2>{}</FORK2><JOIN2><JOIN1><ANSWER>1</ANSWER>",
        " b".repeat(10)
    );
    let busy = format!("{}<RETURN>1</RETURN>", " c".repeat(15));
    let scripts = [
        ("main 0", organizer.as_str()),
        (first.as_str(), busy.as_str()),
    ];
    let text = PromptText {
        organizer: "main {query}".into(),
        worker,
        query: "ask".into(),
    };
    let templates = PromptTemplates::new(text, 1).unwrap();
    let settings = settings(2, Overflow::Queue);
    let mut backend = ScriptedBackend::new(&tokenizer, 2, &scripts);
    backend.max_sequence_tokens = tokenizer
        .encode(&format!("{first}{}", " b".repeat(24)))
        .unwrap()
        .len();
    let mut episodes = rollout(
        &mut backend,
        &tokenizer,
        &templates,
        &settings,
        &[query_of(&tokenizer, &templates, 0, "0").unwrap()],
        &mut |_| true,
    )
    .unwrap();
    let episode = episodes.remove(0);
    assert_eq!(episode.outcome, Outcome::Answered("1".to_owned()));
    assert_eq!(
        (
            &episode.workers[1].end,
            episode.workers[1].record.num_decoded()
        ),
        (&WorkerEnd::Empty, 0)
    );
    assert!(matches!(episode.workers[0].end, WorkerEnd::Returned(_)));
    // The end of sequence of the worker and of the organizer.
    assert_eq!(episode.timeline.unwrap().latency() + 2, backend.num_polls);
}

#[test]
fn results_keep_the_order_of_the_queries_and_the_backend_is_never_overfull() {
    let tokenizer = tokenizer();
    let scripts: Vec<(String, String)> = (0..7)
        .map(|n| {
            (
                format!("main {n}"),
                format!(
                    "<FORK1>{n}</FORK1>{}<JOIN1><ANSWER>{n}</ANSWER>",
                    " b".repeat(7 - n)
                ),
            )
        })
        .chain((0..7).map(|n| (format!("sub {n}"), "<RETURN>1</RETURN>".to_owned())))
        .collect();
    let scripts: Vec<(&str, &str)> = scripts
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    let queries: Vec<Query> = (0..7).map(|index| query(&tokenizer, index)).collect();
    for slots in [2, 5, 14] {
        let mut backend = ScriptedBackend::new(&tokenizer, slots, &scripts);
        let episodes = rollout(
            &mut backend,
            &tokenizer,
            &templates(),
            &settings(2, Overflow::Error),
            &queries,
            &mut |_| true,
        )
        .unwrap();
        let answers: Vec<_> = episodes
            .iter()
            .map(|episode| episode.answer().unwrap().to_owned())
            .collect();
        assert_eq!(answers, ["0", "1", "2", "3", "4", "5", "6"]);
        assert!(backend.max_held <= slots);
    }
}

#[test]
fn agents_are_expected_to_decode_what_those_of_earlier_episodes_decoded() {
    let tokenizer = tokenizer();
    let scripts = [
        (
            "main 0",
            "<FORK1>a</FORK1> b b b b<JOIN1><ANSWER>1</ANSWER>",
        ),
        ("main 1", "<FORK1>a</FORK1><JOIN1><ANSWER>1</ANSWER>"),
        ("main 2", "<ANSWER>1</ANSWER>"),
        ("sub a", " c c<RETURN>1</RETURN>"),
    ];
    let mut backend = ScriptedBackend::new(&tokenizer, 2, &scripts);
    let queries: Vec<Query> = (0..3).map(|index| query(&tokenizer, index)).collect();
    let settings = settings(2, Overflow::Error);
    let rules = &templates();
    let progress = &mut |_| true;
    rollout(
        &mut backend,
        &tokenizer,
        rules,
        &settings,
        &queries,
        progress,
    )
    .unwrap();
    // Organizer, worker, organizer and so on; each with its end of sequence.
    assert_eq!(backend.expected_tokens, [0, 0, 12, 6, 10]);
}

#[test]
fn a_stopped_rollout_frees_its_agents() {
    let tokenizer = tokenizer();
    let scripts = [
        ("main 0", "<FORK1>a</FORK1> b b b b b"),
        ("sub a", " c c c c c c c c"),
    ];
    let mut backend = ScriptedBackend::new(&tokenizer, 2, &scripts);
    let settings = settings(2, Overflow::Error);
    let episodes = rollout(
        &mut backend,
        &tokenizer,
        &templates(),
        &settings,
        &[query(&tokenizer, 0)],
        &mut |state| state.num_steps < 5,
    );
    assert!(episodes.unwrap().is_empty());
    assert!(backend.agents.is_empty());
}

/// Organizer text and worker texts of a random legal or illegal episode over three sub-query ids.
fn random_scripts() -> impl Strategy<Value = (String, Vec<String>)> {
    let piece = prop_oneof![
        3 => Just(" b".to_owned()),
        2 => (1u32..4).prop_map(|id| format!("<FORK{id}>{id}</FORK{id}>")),
        2 => (1u32..4).prop_map(|id| format!("<JOIN{id}>")),
    ];
    let organizer = prop::collection::vec(piece, 0..14)
        .prop_map(|pieces| pieces.concat() + "<ANSWER>1</ANSWER>");
    let worker = (0usize..12).prop_map(|n| " c".repeat(n) + "<RETURN>2</RETURN>");
    (organizer, prop::collection::vec(worker, 3))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn latency_is_the_number_of_steps_but_for_ends_of_sequence(
        (organizer, workers) in random_scripts(),
        capacity in 2u32..5,
        queue in any::<bool>(),
    ) {
        let overflow = if queue { Overflow::Queue } else { Overflow::Error };
        let scripts = [
            ("main 0", organizer.as_str()),
            ("sub 1", workers[0].as_str()),
            ("sub 2", workers[1].as_str()),
            ("sub 3", workers[2].as_str()),
        ];
        let (episode, num_steps) = run_delivered(&scripts, &settings(capacity, overflow), Delivery::LockStep);
        let ids = episode.organizer.ids().len();
        prop_assert_eq!(ids, episode.organizer.decoded().len());
        prop_assert_eq!(ids, episode.organizer.logprobs().len());
        if let Some(timeline) = &episode.timeline {
            let latency = timeline.latency();
            prop_assert_eq!(timeline.simulate().latency_tokens, latency);
            // The organizer's takes a step; that of a worker does only where a Join or a queued worker waits for it.
            let bounds = latency + 1..=latency + 1 + episode.num_forks() as u64;
            prop_assert!(bounds.contains(&num_steps), "{num_steps} steps, latency {latency}");
            let ratio = timeline.concurrency(true).eta_ratio;
            prop_assert!(ratio <= 1.0 + 1e-12);
        }
    }

    #[test]
    fn episodes_do_not_depend_on_how_tokens_are_delivered(
        (organizer, workers) in random_scripts(),
        capacity in 2u32..5,
        queue in any::<bool>(),
        seed: u64,
    ) {
        let overflow = if queue { Overflow::Queue } else { Overflow::Error };
        let scripts = [
            ("main 0", organizer.as_str()),
            ("sub 1", workers[0].as_str()),
            ("sub 2", workers[1].as_str()),
            ("sub 3", workers[2].as_str()),
        ];
        let settings = settings(capacity, overflow);
        let (expected, _) = run_delivered(&scripts, &settings, Delivery::LockStep);
        let (episode, _) = run_delivered(&scripts, &settings, Delivery::Bursts(seed));
        let latency = |episode: &Episode| episode.timeline.as_ref().map(Timeline::latency);
        prop_assert_eq!(latency(&episode), latency(&expected));
        prop_assert_eq!(episode, expected);
    }
}
