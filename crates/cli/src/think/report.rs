//! What is said at the end of an episode.

use std::io::{self, Write};
use std::time::Duration;

use asyncthink_data::Tokenizer;
use asyncthink_protocol::{Concurrency, FormatError, Protocol, RawTrace};
use asyncthink_rollout::{Episode, Outcome};
use serde::Serialize;

use super::text::{visible, visible_json};
use crate::failure::Failure;
use crate::progress::figure;

/// The episode as a line that `trace` reads, with the figures under the names
/// that `trace` has for them.
#[derive(Serialize)]
pub(crate) struct ThinkLine<'a> {
    id: &'static str,
    query: &'a str,
    #[serde(flatten)]
    trace: RawTrace,
    valid: bool,
    error: Option<&'static str>,
    latency: Option<u64>,
    eta: Option<f64>,
    eta_ratio: Option<f64>,
    forks: usize,
    joins: usize,
    fragments: Option<Vec<u64>>,
    decoded_tokens: usize,
    answer: Option<&'a str>,
    seed: u64,
    temperature: f64,
}

impl<'a> ThinkLine<'a> {
    pub(crate) fn of(
        episode: &'a Episode,
        protocol: Protocol,
        tokenizer: &Tokenizer,
        query: &'a str,
        (seed, temperature): (u64, f64),
    ) -> Self {
        let concurrency = concurrency(episode);
        Self {
            id: "think",
            query,
            trace: episode.raw_trace(tokenizer, protocol),
            valid: episode.answer().is_some(),
            error: episode.format_error().map(FormatError::code),
            latency: concurrency.map(|figures| figures.latency_tokens),
            eta: concurrency.map(|figures| figures.eta),
            eta_ratio: concurrency.map(|figures| figures.eta_ratio),
            forks: episode.num_forks(),
            joins: episode.num_joins,
            fragments: episode
                .timeline
                .as_ref()
                .map(|timeline| timeline.fragments().iter().map(|f| f.num_tokens).collect()),
            decoded_tokens: episode.counted_tokens(),
            answer: episode.answer(),
            seed,
            temperature,
        }
    }

    pub(crate) fn write(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let json = serde_json::to_string(self)
            .map_err(|error| Failure::run(format!("cannot write the episode as JSON: {error}")))?;
        Ok(writeln!(out, "{}", visible_json(&json))?)
    }
}

fn concurrency(episode: &Episode) -> Option<Concurrency> {
    episode
        .timeline
        .as_ref()
        .map(|timeline| timeline.concurrency(true))
}

/// Writes the answer or the format error, and the figures.
pub(crate) fn write_summary(episode: &Episode, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out)?;
    match &episode.outcome {
        Outcome::Answered(answer) => {
            for line in answer.trim_matches('\n').split('\n') {
                writeln!(out, "answer | {}", visible(line))?;
            }
        }
        Outcome::Failed(error) => writeln!(out, "format error * {}: {error}", error.code())?,
    }
    let counts = [
        counted(episode.num_forks() as u64, "fork"),
        counted(episode.num_joins as u64, "join"),
        counted(episode.counted_tokens() as u64, "token"),
    ]
    .join(", ");
    match concurrency(episode) {
        Some(figures) => writeln!(
            out,
            "latency {}, eta/c {}, {counts} decoded",
            counted(figures.latency_tokens, "step"),
            figure(figures.eta_ratio),
        ),
        None => writeln!(out, "{counts} decoded"),
    }
}

/// How fast it went, which is of the machine and not of the episode.
pub(crate) fn speed(num_tokens: usize, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    format!(
        "think: {} in {} s, {} tokens/s",
        counted(num_tokens as u64, "token"),
        figure(seconds),
        figure(num_tokens as f64 / seconds.max(1e-9)),
    )
}

/// `1 fork`, `2 forks`.
fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}
