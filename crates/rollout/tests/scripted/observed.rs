//! What an observer is told, and the text form of what was played.

use std::fmt::Write as _;

use asyncthink_data::Tokenizer;
use asyncthink_protocol::{Overflow, RawTrace, TokenCounter, Trace, TraceError};
use asyncthink_rollout::{
    Agent, AgentEvent, Episode, RolloutEvent, RolloutObserver, RolloutProgress, RolloutSettings,
    rollout_observed,
};
use proptest::prelude::*;
use serde_json::json;

use crate::backend::{ScriptedBackend, query, settings, templates, tokenizer};
use crate::{random_scripts, run_one};

/// Writes down every event, a line each.
#[derive(Default)]
struct Log {
    lines: String,
    /// Decoded bytes by agent, the organizer first.
    texts: Vec<Vec<u8>>,
    num_steps: u64,
}

impl RolloutObserver for Log {
    fn event(&mut self, event: &RolloutEvent<'_>) {
        assert_eq!(event.query, 0);
        let (name, index) = match event.agent {
            Agent::Organizer => ("organizer".to_owned(), 0),
            Agent::Worker(worker) => (format!("worker {worker}"), worker.0 + 1),
        };
        self.texts
            .resize(self.texts.len().max(index + 1), Vec::new());
        let what = match event.event {
            AgentEvent::Forked {
                sub_query_id,
                sub_query,
            } => format!("is asked {sub_query_id}: {sub_query}"),
            AgentEvent::Decoded { bytes, .. } => {
                self.texts[index].extend_from_slice(bytes);
                format!("| {}", bytes.escape_ascii())
            }
            AgentEvent::Waiting { worker } => format!("waits for {worker}"),
            AgentEvent::Injected { worker, text } => format!("is given by {worker}: {text}"),
            AgentEvent::Ended(end) => format!("ends {}", end.name()),
            AgentEvent::Finished(outcome) => format!("ends {outcome:?}"),
        };
        writeln!(self.lines, "{name} {what}").unwrap();
    }

    fn step(&mut self, progress: RolloutProgress) -> bool {
        self.num_steps = progress.num_steps;
        true
    }
}

fn run_observed(
    backend: &mut ScriptedBackend<'_>,
    tokenizer: &Tokenizer,
    settings: &RolloutSettings,
) -> (Episode, Log) {
    let mut log = Log::default();
    let episodes = rollout_observed(
        backend,
        tokenizer,
        &templates(),
        settings,
        &[query(tokenizer, 0)],
        &mut log,
    );
    (episodes.unwrap().remove(0), log)
}

fn observe(scripts: &[(&str, &str)], settings: &RolloutSettings) -> (Episode, Log) {
    let tokenizer = tokenizer();
    let slots = settings.protocol.capacity.get() as usize;
    let mut backend = ScriptedBackend::new(&tokenizer, slots, scripts);
    run_observed(&mut backend, &tokenizer, settings)
}

#[test]
fn events_come_as_they_take_effect() {
    let (_, log) = observe(
        &[
            ("main 0", "a<FORK1> one</FORK1> b<JOIN1><ANSWER>7</ANSWER>"),
            ("sub  one", " a c<RETURN>12</RETURN>"),
        ],
        &settings(2, Overflow::Error),
    );
    let expected = "\
organizer | a
organizer | <FORK1>
organizer |  one
organizer | </FORK1>
worker 0 is asked 1:  one
worker 0 |  a
organizer |  b
worker 0 |  c
organizer | <JOIN1>
organizer waits for 0
worker 0 | <RETURN>
worker 0 | 12
worker 0 | </RETURN>
worker 0 | 
worker 0 ends returned
organizer is given by 0: 12</JOIN1>
organizer | <ANSWER>
organizer | 7
organizer | </ANSWER>
organizer | 
organizer ends Answered(\"7\")
";
    assert_eq!(log.lines, expected);
    // The end of sequence of each of the two takes a step.
    assert_eq!(log.num_steps, 14);
}

#[test]
fn running_and_queued_workers_are_cancelled_after_the_end() {
    let (episode, log) = observe(
        &[
            (
                "main 0",
                "<FORK1>a</FORK1><FORK2>b</FORK2><JOIN2> c<ANSWER>",
            ),
            ("sub a", "<RETURN></RETURN>"),
            ("sub b", "<RETURN></RETURN>"),
        ],
        &settings(2, Overflow::Queue),
    );
    assert_eq!(episode.num_cancelled_workers(), 0);
    assert!(log.lines.ends_with("organizer ends Failed(NoAnswer)\n"));
    let (episode, log) = observe(
        &[
            (
                "main 0",
                "<FORK1>a</FORK1><FORK2>b</FORK2><ANSWER></ANSWER>",
            ),
            ("sub a", " c c c c c c c c"),
            ("sub b", " c"),
        ],
        &settings(2, Overflow::Queue),
    );
    assert_eq!(episode.num_cancelled_workers(), 2);
    let end = "organizer ends Answered(\"\")\nworker 0 ends cancelled\nworker 1 ends cancelled\n";
    assert!(log.lines.ends_with(end), "{}", log.lines);
}

/// Counts the tokens of a tokenizer.
struct Counter<'a>(&'a Tokenizer);

impl TokenCounter for Counter<'_> {
    fn count(&self, text: &str) -> u64 {
        self.0.encode_continuation(text, None).unwrap().len() as u64
    }
}

/// The trace of an episode in text, and what the checker says about it.
fn checked(
    episode: &Episode,
    tokenizer: &Tokenizer,
    settings: &RolloutSettings,
) -> (RawTrace, Result<Trace, TraceError>) {
    let protocol = settings.protocol;
    let raw = episode.raw_trace(tokenizer, protocol);
    let verdict = Trace::check(&raw, protocol.tags, protocol.overflow, &Counter(tokenizer));
    (raw, verdict)
}

#[test]
fn a_join_that_does_not_fit_is_not_in_the_text() {
    let tokenizer = tokenizer();
    let settings = settings(2, Overflow::Error);
    let scripts = [
        ("main 0", "<FORK1>a</FORK1><JOIN1> b"),
        ("sub a", "<RETURN>1 1 1</RETURN>"),
    ];
    let mut backend = ScriptedBackend::new(&tokenizer, 2, &scripts);
    backend.max_sequence_tokens = 14;
    let (episode, _) = run_observed(&mut backend, &tokenizer, &settings);
    let (raw, verdict) = checked(&episode, &tokenizer, &settings);
    assert_eq!(raw.organizer, "<FORK1>a</FORK1><JOIN1>");
    assert_eq!(raw.workers[0].text, "<RETURN>1 1 1</RETURN>");
    assert_eq!(verdict.unwrap_err().code(), "no_answer");
}

/// A token for each byte, and one that runs past a tag.
fn byte_tokenizer() -> Tokenizer {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut num_others = 0;
    let vocab: serde_json::Map<_, _> = (0..=255_u8)
        .map(|byte| {
            let written = if is_printable(byte) {
                char::from(byte)
            } else {
                num_others += 1;
                char::from_u32(0x100 + num_others - 1).unwrap()
            };
            (written.to_string(), json!(byte))
        })
        .collect();
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [added(256, "<JOIN1> b", false), added(257, "<eos>", true)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"eos_token": "<eos>"}).to_string();
    std::fs::write(file("tokenizer_config.json"), config).unwrap();
    Tokenizer::from_dir(folder.path()).unwrap()
}

#[test]
fn what_runs_past_a_join_is_written_after_it_and_characters_come_in_parts() {
    let tokenizer = byte_tokenizer();
    let mut settings = settings(2, Overflow::Error);
    settings.worker_max_tokens = 100;
    let scripts = [
        ("main 0", "<FORK1>q</FORK1><JOIN1> b<ANSWER>\u{e9}</ANSWER>"),
        ("sub q", "<RETURN>r</RETURN>"),
    ];
    let mut backend = ScriptedBackend::new(&tokenizer, 2, &scripts);
    let (episode, log) = run_observed(&mut backend, &tokenizer, &settings);
    assert!(
        log.lines.contains("organizer | <JOIN1> b\n"),
        "{}",
        log.lines
    );
    assert!(log.lines.contains("organizer | \\xc3\norganizer | \\xa9\n"));
    let (raw, verdict) = checked(&episode, &tokenizer, &settings);
    assert_eq!(
        raw.organizer,
        "<FORK1>q</FORK1><JOIN1>r</JOIN1> b<ANSWER>\u{e9}</ANSWER>"
    );
    assert_eq!(verdict.unwrap().answer(), "\u{e9}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn watching_changes_nothing_and_the_text_form_has_the_same_figures(
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
        let settings = settings(capacity, overflow);
        let (episode, log) = observe(&scripts, &settings);
        prop_assert_eq!(format!("{episode:?}"), format!("{:?}", run_one(&scripts, &settings)));

        let tokenizer = tokenizer();
        let (raw, verdict) = checked(&episode, &tokenizer, &settings);
        for (worker, text) in raw.workers.iter().zip(&log.texts[1..]) {
            prop_assert_eq!(worker.text.as_bytes(), text.as_slice());
        }
        match (verdict, episode.format_error()) {
            (Ok(trace), None) => {
                let timeline = episode.timeline.as_ref().unwrap();
                prop_assert_eq!(Some(trace.answer()), episode.answer());
                prop_assert_eq!(trace.timeline(), timeline);
            }
            (Err(TraceError::Format(found)), Some(error)) => prop_assert_eq!(&found, error),
            (verdict, error) => prop_assert!(false, "{verdict:?} for {error:?}"),
        }
    }
}
