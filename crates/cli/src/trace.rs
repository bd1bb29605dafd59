//! The command `trace`: are these episodes legal, and what do they cost?

use std::io::Write;
use std::sync::OnceLock;

use asyncthink_data::Tokenizer;
use asyncthink_protocol::{
    CharCounter, Overflow, RawTrace, RawWorker, TagStyle, TokenCounter, Trace, TraceError,
};
use serde::{Deserialize, Serialize};

use crate::args::{TokenizerArg, TraceArgs};
use crate::failure::Failure;
use crate::lines::{self, Id, Line, Unreadable};

/// A line of the input.
#[derive(Deserialize)]
struct TraceLine {
    #[serde(default)]
    id: Id,
    capacity: u32,
    organizer: String,
    workers: Vec<RawWorker>,
}

/// A line of the output; the numbers are null for an invalid trace.
#[derive(Serialize)]
struct Verdict {
    id: Id,
    valid: bool,
    error: Option<&'static str>,
    latency: Option<u64>,
    eta: Option<f64>,
    eta_ratio: Option<f64>,
    forks: Option<usize>,
    joins: Option<usize>,
    fragments: Option<Vec<u64>>,
    decoded_tokens: Option<u64>,
    answer: Option<String>,
}

pub(crate) fn run(args: &TraceArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let (tags, overflow) = (args.tag_style.into(), args.overflow.into());
    let num_unreadable = match &args.tokenizer {
        TokenizerArg::Char => lines::answer_lines(&args.file, out, |line| {
            verdict(line, tags, overflow, &CharCounter)
        })?,
        TokenizerArg::Dir(dir) => {
            let tokenizer = Tokenizer::from_dir(dir).map_err(|error| {
                Failure::from(error).hint("give `char`, or a folder that holds a `tokenizer.json`")
            })?;
            lines::answer_lines(&args.file, out, |line| {
                let counter = ModelCounter::new(&tokenizer);
                let verdict = verdict(line, tags, overflow, &counter)?;
                match counter.failed.into_inner() {
                    None => Ok(verdict),
                    Some(message) => Err(Unreadable {
                        id: verdict.id,
                        message,
                    }),
                }
            })?
        }
    };
    lines::unreadable_lines(
        &args.file,
        num_unreadable,
        "with `id`, `capacity`, `organizer` and `workers`",
    )
}

fn verdict(
    line: &Line,
    tags: TagStyle,
    overflow: Overflow,
    counter: &dyn TokenCounter,
) -> Result<Verdict, Unreadable> {
    let TraceLine {
        id,
        capacity,
        organizer,
        workers,
    } = lines::parse(line)?;
    let raw = RawTrace {
        capacity,
        organizer,
        workers,
    };
    match Trace::check(&raw, tags, overflow, counter) {
        Ok(trace) => {
            let timeline = trace.timeline();
            let concurrency = timeline.concurrency(true);
            Ok(Verdict {
                id,
                valid: true,
                error: None,
                latency: Some(concurrency.latency_tokens),
                eta: Some(concurrency.eta),
                eta_ratio: Some(concurrency.eta_ratio),
                forks: Some(timeline.num_forks()),
                joins: Some(timeline.num_joins()),
                fragments: Some(timeline.fragments().iter().map(|f| f.num_tokens).collect()),
                decoded_tokens: Some(timeline.decoded_tokens()),
                answer: Some(trace.answer().to_owned()),
            })
        }
        Err(TraceError::Format(error)) => Ok(Verdict {
            id,
            valid: false,
            error: Some(error.code()),
            latency: None,
            eta: None,
            eta_ratio: None,
            forks: None,
            joins: None,
            fragments: None,
            decoded_tokens: None,
            answer: None,
        }),
        Err(error) => Err(Unreadable {
            id,
            message: error.to_string(),
        }),
    }
}

/// Counts with a model's tokenizer. The trait cannot fail, so the first
/// failure is kept aside and makes the line unreadable.
struct ModelCounter<'a> {
    tokenizer: &'a Tokenizer,
    failed: OnceLock<String>,
}

impl<'a> ModelCounter<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            failed: OnceLock::new(),
        }
    }

    fn encode(&self, text: &str) -> Vec<asyncthink_data::TokenId> {
        self.tokenizer.encode(text).unwrap_or_else(|error| {
            self.failed.get_or_init(|| error.to_string());
            Vec::new()
        })
    }
}

impl TokenCounter for ModelCounter<'_> {
    fn count(&self, text: &str) -> u64 {
        self.encode(text).len() as u64
    }

    fn count_prefixes(&self, text: &str, ends: &[usize]) -> Vec<u64> {
        if ends.is_empty() {
            return Vec::new();
        }
        let mut num_tokens = 0;
        let mut at_bytes = 0;
        let ids = self.encode(text);
        let mut ids = ids.iter();
        ends.iter()
            .map(|&end| {
                while at_bytes < end
                    && let Some(id) = ids.next()
                {
                    at_bytes += self.tokenizer.token_bytes(*id).len();
                    num_tokens += 1;
                }
                num_tokens
            })
            .collect()
    }
}
