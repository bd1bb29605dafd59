use std::path::Path;

use serde::{Deserialize, Serialize};

use super::table::{self, Columns};
use crate::{Error, PromptForm, Result, Tokenizer, TrainingRow};

const KIND: &str = "sft_pairs";

/// Who wrote a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The agent that forks, joins and answers.
    Organizer,
    /// An agent that works on one sub-query.
    Worker,
}

impl Role {
    /// The role's name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Organizer => "organizer",
            Self::Worker => "worker",
        }
    }

    /// The role of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Organizer, Self::Worker]
            .into_iter()
            .find(|role| role.name() == name)
    }
}

/// A range of bytes in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// One query-response pair of the cold start, with where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SftPair {
    /// The trace; its organizer pair and its worker pairs share it.
    pub trace_id: u64,
    /// Who writes the response.
    pub role: Role,
    /// Which worker of the trace in Fork order; `None` for the organizer.
    pub worker_index: Option<u32>,
    /// The problem, an index into the training problems.
    pub problem_index: u64,
    /// The context that the agent starts with, as [`Tokenizer::encode_prompt`] takes it.
    pub prompt: String,
    /// What the agent's context holds after it, without the end of sequence.
    pub response: String,
    /// Parts of the response that the runtime put there (returned text and closing Join tags), ascending; never trained.
    pub injected: Vec<Span>,
    /// Who wrote the trace.
    pub teacher: String,
    /// The seed of the trace.
    pub seed: u64,
    /// The sequence of Forks and Joins, for instance `F1 J1 F1 J1`.
    pub topology: String,
}

impl SftPair {
    /// Turns the pair into a training row, cut where the runtime cuts: prompt, decoded spans and injected spans are encoded
    /// apart, as they are at run time, and the token that ends a response follows. `form` is that of the prompt.
    ///
    /// # Errors
    /// A text cannot be encoded, or a span is outside the response.
    pub fn tokenize(&self, tokenizer: &Tokenizer, form: PromptForm) -> Result<TrainingRow> {
        let mut ids = tokenizer.encode_prompt(&self.prompt, form)?;
        let mut mask = vec![false; ids.len()];
        // What agents write brings no special tokens, at run time or here.
        let mut push = |text: &str, decoded: bool| -> Result<()> {
            ids.extend(tokenizer.encode_continuation(text, ids.last().copied())?);
            mask.resize(ids.len(), decoded);
            Ok(())
        };
        let mut from = 0;
        for span in &self.injected {
            let (start, end) = (span.start as usize, span.end as usize);
            push(self.text(from, start)?, true)?;
            push(self.text(start, end)?, false)?;
            from = end;
        }
        push(self.text(from, self.response.len())?, true)?;
        ids.extend(tokenizer.response_end_id(form));
        mask.resize(ids.len(), true);
        TrainingRow::sft_masked(ids, mask)
    }

    fn text(&self, start: usize, end: usize) -> Result<&str> {
        self.response.get(start..end).ok_or_else(|| Error::Encode {
            num_bytes: self.response.len(),
            message: format!("no text at bytes {start}..{end}"),
        })
    }
}

/// Writes pairs, in order.
///
/// # Errors
/// The file cannot be written.
pub fn write_sft_pairs(path: &Path, pairs: &[SftPair]) -> Result<()> {
    let spans = |bound: fn(&Span) -> u32| {
        pairs
            .iter()
            .map(move |pair| pair.injected.iter().map(bound).collect())
    };
    Columns::new()
        .u64s("trace_id", pairs.iter().map(|pair| pair.trace_id))
        .strings("role", pairs.iter().map(|pair| pair.role.name()))
        .optional_u32s("worker_index", pairs.iter().map(|pair| pair.worker_index))
        .u64s("problem_index", pairs.iter().map(|pair| pair.problem_index))
        .strings("prompt", pairs.iter().map(|pair| pair.prompt.as_str()))
        .strings("response", pairs.iter().map(|pair| pair.response.as_str()))
        .u32_lists("injected_start", spans(|span| span.start))
        .u32_lists("injected_end", spans(|span| span.end))
        .strings("teacher", pairs.iter().map(|pair| pair.teacher.as_str()))
        .u64s("seed", pairs.iter().map(|pair| pair.seed))
        .strings("topology", pairs.iter().map(|pair| pair.topology.as_str()))
        .write(path, KIND)
}

/// Reads pairs, in order.
///
/// # Errors
/// The file cannot be read, is damaged, or holds other rows.
pub fn read_sft_pairs(path: &Path) -> Result<Vec<SftPair>> {
    table::read(path, KIND, |batch| {
        let mut role = batch.strings("role")?.into_iter();
        let mut trace_id = batch.u64s("trace_id")?.into_iter();
        let mut worker_index = batch.optional_u32s("worker_index")?.into_iter();
        let mut problem_index = batch.u64s("problem_index")?.into_iter();
        let mut prompt = batch.strings("prompt")?.into_iter();
        let mut response = batch.strings("response")?.into_iter();
        let mut starts = batch.u32_lists("injected_start")?.into_iter();
        let mut ends = batch.u32_lists("injected_end")?.into_iter();
        let mut teacher = batch.strings("teacher")?.into_iter();
        let mut seed = batch.u64s("seed")?.into_iter();
        let mut topology = batch.strings("topology")?.into_iter();
        let mut next = || {
            Some(Row {
                role: role.next()?,
                starts: starts.next()?,
                ends: ends.next()?,
                pair: SftPair {
                    trace_id: trace_id.next()?,
                    role: Role::Organizer,
                    worker_index: worker_index.next()?,
                    problem_index: problem_index.next()?,
                    prompt: prompt.next()?,
                    response: response.next()?,
                    injected: Vec::new(),
                    teacher: teacher.next()?,
                    seed: seed.next()?,
                    topology: topology.next()?,
                },
            })
        };
        let rows: Vec<Row> = std::iter::from_fn(&mut next).collect();
        rows.into_iter()
            .enumerate()
            .map(|(index, row)| {
                row.check()
                    .map_err(|message| batch.row_error(index, message))
            })
            .collect()
    })
}

/// A pair as it lies in the file, before its role and spans are checked.
struct Row {
    role: String,
    starts: Vec<u32>,
    ends: Vec<u32>,
    pair: SftPair,
}

impl Row {
    fn check(self) -> Result<SftPair, String> {
        let Self {
            role,
            starts,
            ends,
            mut pair,
        } = self;
        pair.role = Role::from_name(&role).ok_or_else(|| format!("unknown role `{role}`"))?;
        if starts.len() != ends.len() {
            return Err("unequal numbers of span starts and ends".to_owned());
        }
        pair.injected = starts
            .into_iter()
            .zip(ends)
            .map(|(start, end)| Span { start, end })
            .collect();
        let mut from = 0;
        for span in &pair.injected {
            if span.start < from
                || pair
                    .response
                    .get(span.start as usize..span.end as usize)
                    .is_none()
            {
                return Err(format!(
                    "span {}..{} is not inside the response",
                    span.start, span.end
                ));
            }
            from = span.end;
        }
        Ok(pair)
    }
}
