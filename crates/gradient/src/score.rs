//! Log-probabilities of given tokens.

use asyncthink_data::{TokenId, TrainingRow, pack};
use asyncthink_model::{Decoder, DecoderEnds, Parallelism, Segments, run_on_replicas};
use tch::{Device, Tensor};

use crate::costs::pack_rows;
use crate::error::Result;
use crate::head::{self, HeadSettings, chunk_tokens};
use crate::micro_batch::{MicroBatch, to_host};

/// Natural logarithms of the probabilities that `decoder` gives to each token of each sequence but the first, given those
/// before it: `n - 1` values for `n` tokens, and none for no token.
///
/// Sequences are packed end to end into batches of at most `batch_tokens` tokens, or one longer sequence; how they are
/// packed changes the rounding of sums and nothing else. Logits and softmax are f32. Every id must be in the vocabulary.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn score_sequences(
    decoder: &Decoder,
    sequences: &[Vec<TokenId>],
    batch_tokens: usize,
    parallelism: Parallelism,
) -> Result<Vec<Vec<f32>>> {
    // Nothing is asked of what follows the last token, so it is not computed.
    let (rows, lengths): (Vec<usize>, Vec<usize>) = sequences
        .iter()
        .enumerate()
        .filter(|(_, sequence)| sequence.len() > 1)
        .map(|(row, sequence)| (row, sequence.len() - 1))
        .unzip();
    let num_workers = parallelism.workers_for(rows.len());
    let batches: Vec<Vec<usize>> = pack(&lengths, batch_tokens / num_workers)
        .into_iter()
        .map(|members| members.into_iter().map(|member| rows[member]).collect())
        .collect();
    // Every `num_workers`-th batch is a worker's share.
    let shares = run_on_replicas("scoring", decoder, num_workers, |worker, decoder| {
        batches
            .iter()
            .skip(worker)
            .step_by(num_workers)
            .map(|rows| score_batch(decoder, sequences, rows))
            .collect::<Result<Vec<_>>>()
    })?;
    let mut shares = shares
        .into_iter()
        .map(|share| Ok(share?.into_iter()))
        .collect::<Result<Vec<_>>>()?;
    let mut scores = vec![Vec::new(); sequences.len()];
    for (batch, rows) in batches.iter().enumerate() {
        let mut logprobs = shares[batch % num_workers].next().unwrap_or_default();
        // From the back, so that each sequence takes the end of what is left.
        for &row in rows.iter().rev() {
            let start = logprobs.len().saturating_sub(sequences[row].len() - 1);
            scores[row] = logprobs.split_off(start);
        }
    }
    Ok(scores)
}

/// The log-probabilities of a batch, sequence after sequence.
fn score_batch(decoder: &Decoder, sequences: &[Vec<TokenId>], rows: &[usize]) -> Result<Vec<f32>> {
    let (mut ids, mut targets, mut segment_lens) = (Vec::new(), Vec::new(), Vec::new());
    for &row in rows {
        let sequence = &sequences[row];
        let id = |token: &TokenId| i64::from(token.0);
        ids.extend(sequence[..sequence.len() - 1].iter().map(id));
        targets.extend(sequence[1..].iter().map(id));
        segment_lens.push(i64::try_from(sequence.len() - 1).unwrap_or(i64::MAX));
    }
    let on_device = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(decoder.device());
    let hidden = decoder.hidden_scored(&on_device(&ids)?, &Segments::separate(&segment_lens)?)?;
    let logprobs = head::score(
        decoder.ends().head(1.0),
        &hidden,
        &on_device(&targets)?,
        chunk_tokens(decoder.config().vocab_size),
    )?;
    Ok(Vec::<f32>::try_from(logprobs.f_to_device(Device::Cpu)?)?)
}

/// Log-probabilities of a micro-batch's trained tokens, without gradients; f32 `[trained]`.
pub(crate) fn score(
    decoder: &Decoder,
    batch: &MicroBatch,
    settings: HeadSettings,
) -> Result<Tensor> {
    let hidden = batch.select_trained(&decoder.hidden_scored(&batch.ids, &batch.segments)?)?;
    score_hidden(decoder.ends(), batch, &hidden, settings)
}

/// Log-probabilities of the trained tokens from their hidden states, `[trained, hidden]`.
pub(crate) fn score_hidden(
    ends: &DecoderEnds,
    batch: &MicroBatch,
    hidden: &Tensor,
    settings: HeadSettings,
) -> Result<Tensor> {
    let head = ends.head(settings.temperature);
    head::score(head, hidden, &batch.targets, settings.chunk_tokens)
}

/// Log-probabilities of the trained tokens of `rows`, row by row, without gradients.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn score_rows(
    decoder: &Decoder,
    rows: &[TrainingRow],
    temperature: f64,
    micro_batch_tokens: usize,
    share_prefixes: bool,
) -> Result<Vec<Vec<f64>>> {
    let settings = HeadSettings {
        temperature,
        chunk_tokens: chunk_tokens(decoder.config().vocab_size),
        entropy: false,
    };
    let mut scores = vec![Vec::new(); rows.len()];
    let all: Vec<&TrainingRow> = rows.iter().collect();
    for packed in pack_rows(
        &all,
        decoder.config(),
        share_prefixes,
        micro_batch_tokens,
        1,
    ) {
        let batch: Vec<_> = packed.rows.iter().map(|&row| (&rows[row], 1.0)).collect();
        let batch = MicroBatch::assemble_shared(&batch, &packed.shared, decoder.device())?;
        let mut logp = to_host(&score(decoder, &batch, settings)?)?.into_iter();
        for row in packed.rows {
            scores[row] = logp.by_ref().take(rows[row].num_trained()).collect();
        }
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use asyncthink_model::{ModelConfig, ModelSizes};
    use tch::Kind;

    use super::*;

    const VOCAB_SIZE: u32 = 29;

    fn decoder() -> Decoder {
        let config = ModelConfig::new(&ModelSizes {
            vocab_size: i64::from(VOCAB_SIZE),
            hidden_size: 16,
            intermediate_size: 24,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 8,
            rope_theta: 10_000.0,
            max_position_embeddings: 128,
            tie_word_embeddings: true,
            eos_token_id: 0,
        });
        Decoder::init(&config.unwrap(), Device::Cpu, 3).unwrap()
    }

    fn sequence(len: u32) -> Vec<TokenId> {
        (0..len)
            .map(|index| TokenId((index * index * 7 + index * 3 + len) % VOCAB_SIZE))
            .collect()
    }

    /// By the definition: all logits of one sequence.
    fn plainly(decoder: &Decoder, sequence: &[TokenId]) -> Vec<f64> {
        let ids: Vec<i64> = sequence.iter().map(|token| i64::from(token.0)).collect();
        let num_tokens = i64::try_from(ids.len()).unwrap();
        let hidden = decoder
            .hidden_packed(
                &Tensor::from_slice(&ids),
                &Segments::separate(&[num_tokens]).unwrap(),
            )
            .unwrap();
        let logits = decoder.lm_head(&hidden).unwrap();
        let all = logits.log_softmax(-1, Kind::Float);
        (1..num_tokens)
            .zip(&ids[1..])
            .map(|(position, &id)| all.double_value(&[position - 1, id]))
            .collect()
    }

    #[test]
    fn scores_are_those_of_each_sequence_alone_however_they_are_packed() {
        let decoder = decoder();
        let lengths = [5, 1, 60, 2, 0, 17, 17, 33, 3, 128, 2, 9, 1, 41, 8, 26];
        let sequences: Vec<_> = lengths.map(sequence).into();
        for batch_tokens in [1, 2, 16, 100, 1000, usize::MAX] {
            let scores =
                score_sequences(&decoder, &sequences, batch_tokens, Parallelism::SINGLE).unwrap();
            assert_eq!(scores.len(), sequences.len());
            for (sequence, scores) in sequences.iter().zip(scores) {
                assert_eq!(scores.len(), sequence.len().saturating_sub(1));
                if sequence.is_empty() {
                    continue;
                }
                for (ours, expected) in scores.iter().zip(plainly(&decoder, sequence)) {
                    let difference = (f64::from(*ours) - expected).abs();
                    assert!(
                        difference <= 1e-6,
                        "{} tokens, budget {batch_tokens}: {difference}",
                        sequence.len()
                    );
                }
            }
        }
        assert!(
            score_sequences(&decoder, &[], 8, Parallelism::SINGLE)
                .unwrap()
                .is_empty()
        );
    }
}
