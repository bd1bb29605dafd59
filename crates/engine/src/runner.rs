//! Calls of the model: the pending tokens of sequences as flat batches, log-probs of the sampled rows out.

use asyncthink_model::{Decoder, KvCache, StepBatch, at_temperature};
use tch::Kind;

use crate::error::Result;
use crate::sampler::Temperature;
use crate::sequence::Sequence;

/// Rows of one call of the model; a step of more is several calls. It bounds what long prompts of many agents need at a
/// time. One sequence is never cut, so that it may need more alone.
pub(crate) const MAX_CALL_ROWS: usize = 16_384;

/// The type in which log-probs are computed and returned.
const LOGPROBS: Kind = Kind::Float;

/// Log-probs on the host, a row for each running sequence.
#[derive(Debug, Default)]
pub(crate) struct Logprobs {
    values: Vec<f32>,
    vocab: usize,
}

impl Logprobs {
    /// Rows `[vocab]`, in the order of the sequences.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab.max(1))
    }
}

/// Runs a decoder over sequences.
#[derive(Debug)]
pub(crate) struct ModelRunner {
    pub(crate) max_call_rows: usize,
}

impl ModelRunner {
    /// Feeds the pending tokens of `running` to the cache; gives the log-probs of each one's next token.
    pub(crate) fn next_logprobs<'s>(
        &self,
        running: impl Iterator<Item = &'s mut Sequence>,
        decoder: &Decoder,
        cache: &KvCache,
        temperature: Temperature,
    ) -> Result<Logprobs> {
        let mut logprobs = Logprobs::default();
        let mut call = Call::default();
        for sequence in running {
            if !call.ids.is_empty() && call.ids.len() + sequence.pending.len() > self.max_call_rows
            {
                call.run(decoder, cache, temperature, &mut logprobs)?;
                call = Call::default();
            }
            call.add(sequence);
            sequence.cached_tokens += sequence.pending.len();
            sequence.pending.clear();
        }
        if !call.ids.is_empty() {
            call.run(decoder, cache, temperature, &mut logprobs)?;
        }
        Ok(logprobs)
    }
}

/// The rows of one call: whole sequences' pending tokens.
#[derive(Debug, Default)]
struct Call {
    ids: Vec<i64>,
    positions: Vec<i64>,
    slots: Vec<i64>,
    sample_rows: Vec<i64>,
}

impl Call {
    fn add(&mut self, sequence: &Sequence) {
        for (offset, &id) in sequence.pending.iter().enumerate() {
            self.ids.push(id);
            self.positions
                .push(to_size(sequence.cached_tokens + offset));
            self.slots.push(sequence.slot);
        }
        self.sample_rows.push(to_size(self.ids.len()) - 1);
    }

    /// Appends the log-probs of the sampled rows.
    fn run(
        &self,
        decoder: &Decoder,
        cache: &KvCache,
        temperature: Temperature,
        logprobs: &mut Logprobs,
    ) -> Result<()> {
        let Self {
            ids,
            positions,
            slots,
            sample_rows,
        } = self;
        let batch = StepBatch {
            ids,
            positions,
            slots,
            sample_rows,
        };
        let logits = decoder.step(&batch, cache)?;
        logprobs.vocab = usize::try_from(logits.size()[1]).unwrap_or(0);
        let values = at_temperature(logits, temperature.divisor())?.f_log_softmax(-1, LOGPROBS)?;
        let (start, num_values) = (logprobs.values.len(), values.numel());
        logprobs.values.resize(start + num_values, 0.0);
        values
            .f_to_device(tch::Device::Cpu)?
            .f_contiguous()?
            .f_copy_data(&mut logprobs.values[start..], num_values)?;
        Ok(())
    }
}

/// A count as libtorch takes it.
pub(crate) fn to_size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
