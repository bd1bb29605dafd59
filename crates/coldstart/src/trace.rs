//! A checked trace, and the pairs that it becomes.

use asyncthink_data::parquet::{Role, SftPair, Span};
use asyncthink_data::{PromptTemplates, Tokenizer};
use asyncthink_protocol::{RawTrace, SpanKind, Trace};
use asyncthink_tasks::Grade;

use crate::error::Result;
use crate::topology::{Event, describe};

/// A legal trace with its provenance.
#[derive(Debug, Clone)]
pub struct SynthTrace {
    /// The trace's number; unique within a run.
    pub trace_id: u64,
    /// The problem, an index into the training problems; a trace may ask for another target than it.
    pub problem_index: usize,
    /// Name of the teacher that wrote it.
    pub teacher: String,
    /// The seed that the trace was drawn with.
    pub seed: u64,
    /// Forks and Joins.
    pub topology: Vec<Event>,
    /// The text.
    pub raw: RawTrace,
    /// The text as checked; counts are in tokens.
    pub trace: Trace,
    /// The query that the organizer starts with.
    pub query: String,
    /// Grade of the answer.
    pub grade: Grade,
    /// Tokens of each pair, prompt and end of sequence included.
    pub pair_tokens: Vec<usize>,
}

impl SynthTrace {
    /// The organizer's pair, then one per worker in Fork order.
    ///
    /// # Errors
    /// The model has no usable chat template where the prompts need one, or it refuses a message.
    pub fn pairs(
        &self,
        templates: &PromptTemplates,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<SftPair>> {
        let injected = self
            .trace
            .spans()
            .iter()
            .filter(|span| matches!(span.kind, SpanKind::Injected(_)));
        // Texts are far shorter than 4 GiB: the budgets bound them.
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let injected = injected
            .map(|span| Span {
                start: offset(span.bytes.start),
                end: offset(span.bytes.end),
            })
            .collect();
        let organizer = SftPair {
            trace_id: self.trace_id,
            role: Role::Organizer,
            worker_index: None,
            problem_index: self.problem_index as u64,
            prompt: templates.organizer_prompt(tokenizer, &self.query)?,
            response: self.raw.organizer.clone(),
            injected,
            teacher: self.teacher.clone(),
            seed: self.seed,
            topology: describe(&self.topology),
        };
        let mut pairs = vec![organizer.clone()];
        for ((text, worker), index) in self.raw.workers.iter().zip(self.trace.workers()).zip(0..) {
            pairs.push(SftPair {
                role: Role::Worker,
                worker_index: Some(index),
                prompt: templates.worker_prompt(tokenizer, &worker.sub_query)?,
                response: text.text.clone(),
                injected: Vec::new(),
                ..organizer.clone()
            });
        }
        Ok(pairs)
    }
}
