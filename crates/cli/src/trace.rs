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

    /// Keeps the first failure, and counts nothing where there is one.
    fn kept<T: Default>(&self, result: asyncthink_data::Result<T>) -> T {
        result.unwrap_or_else(|error| {
            self.failed.get_or_init(|| error.to_string());
            T::default()
        })
    }
}

/// What an agent writes follows its prompt, or what was put there.
impl TokenCounter for ModelCounter<'_> {
    fn count(&self, text: &str) -> u64 {
        let ids = self.tokenizer.encode_continuation(text, None);
        self.kept(ids).len() as u64
    }

    fn count_prefixes(&self, text: &str, ends: &[usize]) -> Vec<u64> {
        if ends.is_empty() {
            return Vec::new();
        }
        // Several tokens of one character begin where it does; all of them belong to it.
        let starts = self.kept(self.tokenizer.continuation_starts(text));
        let mut num_tokens = 0;
        ends.iter()
            .map(|&end| {
                while starts.get(num_tokens).is_some_and(|&start| start < end) {
                    num_tokens += 1;
                }
                num_tokens as u64
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn tokenizer(name: &str) -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/tokenizers");
        Tokenizer::from_dir(&folder.join(name)).expect("a tokenizer")
    }

    #[test]
    fn fragments_have_the_tokens_of_a_sequence_up_to_each_tag() {
        let texts = [
            "3 5 7<FORK1>3 5</FORK1> the<JOIN1>",
            "15</JOIN1>",
            " 中文 answer\n<ANSWER>15</ANSWER>",
        ];
        let line = json!({"id": 1, "capacity": 2, "organizer": texts.concat(),
            "workers": [{"sub_query_id": 1, "text": "3 * 5<RETURN>15</RETURN>"}]});
        for name in [
            "prepend",
            "metaspace_first",
            "metaspace_never",
            "byte_level",
            "llama",
        ] {
            let tokenizer = tokenizer(name);
            let counter = ModelCounter::new(&tokenizer);
            let line = lines::Line {
                number: 1,
                bytes: line.to_string().into_bytes(),
            };
            let found = verdict(&line, TagStyle::Plain, Overflow::Error, &counter);
            let fragments = found.ok().and_then(|verdict| verdict.fragments);
            // The whole sequence, cut where the text is.
            let prompt = "3 5 7 = 15\n";
            let num_tokens = |text: &str| {
                let ids = tokenizer.encode(&(prompt.to_owned() + text)).expect("ids");
                ids.len() as u64
            };
            let (to_join, to_end) = (texts[..1].concat(), texts[..2].concat());
            let expected = vec![
                num_tokens(&to_join) - num_tokens(""),
                num_tokens(&texts.concat()) - num_tokens(&to_end),
            ];
            assert_eq!(fragments, Some(expected), "{name}");
            let end = to_join.find("</FORK1>").expect("a tag") + "</FORK1>".len();
            let ends = counter.count_prefixes(&to_join, &[end]);
            assert_eq!(
                ends,
                [num_tokens(&to_join[..end]) - num_tokens("")],
                "{name}"
            );
            assert_eq!(counter.failed.get(), None);
        }
    }
}
