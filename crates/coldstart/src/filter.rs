//! The rule filter: a draft becomes a trace, or a rule refuses it.

use asyncthink_data::{PromptTemplates, Tokenizer};
use asyncthink_protocol::{Protocol, TokenCounter, Trace};
use asyncthink_recipe::ProtocolSection;

use crate::settings::ColdstartSettings;
use crate::teacher::Draft;
use crate::topology::Event;
use crate::trace::SynthTrace;

/// Provenance of a draft.
#[derive(Debug, Clone)]
pub(crate) struct Provenance {
    pub(crate) trace_id: u64,
    pub(crate) problem_index: usize,
    pub(crate) seed: u64,
    pub(crate) topology: Vec<Event>,
}

/// The rules, which know no task: the trace language, the budgets, the length of sequences.
pub(crate) struct RuleFilter<'a> {
    teacher: &'a str,
    budgets: &'a ProtocolSection,
    max_sequence_tokens: Option<usize>,
    protocol: Protocol,
    templates: &'a PromptTemplates,
    tokenizer: &'a Tokenizer,
}

impl<'a> RuleFilter<'a> {
    pub(crate) fn new(
        settings: &'a ColdstartSettings,
        templates: &'a PromptTemplates,
        tokenizer: &'a Tokenizer,
    ) -> Self {
        Self {
            teacher: settings.teacher.name(),
            budgets: &settings.protocol,
            max_sequence_tokens: settings.max_sequence_tokens(),
            protocol: settings.rules(),
            templates,
            tokenizer,
        }
    }

    /// Checks a draft; the error is the name of the rule that refuses it.
    pub(crate) fn check(
        &self,
        provenance: Provenance,
        draft: Draft,
    ) -> Result<SynthTrace, &'static str> {
        let counter = TokenizerCounter(self.tokenizer);
        let (tags, overflow) = (self.protocol.tags, self.protocol.overflow);
        let trace =
            Trace::check(&draft.text, tags, overflow, &counter).map_err(|error| error.code())?;
        let grade = draft.problem.grade(trace.answer());
        let trace = SynthTrace {
            trace_id: provenance.trace_id,
            problem_index: provenance.problem_index,
            teacher: self.teacher.to_owned(),
            seed: provenance.seed,
            topology: provenance.topology,
            raw: draft.text,
            trace,
            query: draft.query,
            grade,
            pair_tokens: Vec::new(),
        };
        self.check_budgets(&trace)?;
        self.with_pair_tokens(trace)
    }

    /// A trace that the runtime would cut must not be taught.
    fn check_budgets(&self, trace: &SynthTrace) -> Result<(), &'static str> {
        let timeline = trace.trace.timeline();
        let fragment_tokens = timeline
            .fragments()
            .iter()
            .map(|fragment| fragment.num_tokens)
            .max()
            .unwrap_or(0);
        if fragment_tokens > u64::from(self.budgets.organizer_max_tokens) {
            return Err("organizer_max_tokens");
        }
        if self
            .budgets
            .organizer_total_tokens
            .is_some_and(|limit| timeline.organizer_tokens() > u64::from(limit))
        {
            return Err("organizer_total_tokens");
        }
        let worker_tokens = timeline.worker_tokens().iter().max().copied().unwrap_or(0);
        if worker_tokens > u64::from(self.budgets.worker_max_tokens) {
            return Err("worker_max_tokens");
        }
        Ok(())
    }

    /// Counts each pair as it will be trained.
    fn with_pair_tokens(&self, mut trace: SynthTrace) -> Result<SynthTrace, &'static str> {
        let pairs = trace.pairs(self.templates, self.tokenizer);
        for pair in pairs.map_err(|_| "chat template")? {
            let row = pair
                .tokenize(self.tokenizer, self.templates.form())
                .map_err(|_| "tokenizer")?;
            if self
                .max_sequence_tokens
                .is_some_and(|limit| row.len() > limit)
            {
                return Err("max_position_embeddings");
            }
            trace.pair_tokens.push(row.len());
        }
        Ok(trace)
    }
}

/// Counts tokens by the run's tokenizer.
struct TokenizerCounter<'a>(&'a Tokenizer);

impl TokenCounter for TokenizerCounter<'_> {
    fn count(&self, text: &str) -> u64 {
        // What cannot be encoded is refused when the pair is tokenised.
        let ids = self.0.encode_continuation(text, None);
        ids.map_or(0, |ids| ids.len() as u64)
    }

    fn count_prefixes(&self, text: &str, ends: &[usize]) -> Vec<u64> {
        let starts = self.0.continuation_starts(text).unwrap_or_default();
        let num_before = |end: &usize| starts.iter().filter(|start| *start < end).count();
        ends.iter().map(|end| num_before(end) as u64).collect()
    }
}
