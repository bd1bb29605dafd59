//! Scores of rows under weights in any form, by all ranks together.

use asyncthink_data::{TrainingRow, pack};
use asyncthink_model::{Decoder, run_on_replicas};

use crate::accumulate::{part_of_round, rounds_of_ranks};
use crate::error::Result;
use crate::head::HeadSettings;
use crate::layerwise;
use crate::micro_batch::{MicroBatch, to_host};
use crate::score::{score, score_hidden};
use crate::settings::BatchSettings;
use crate::weights::Weights;

/// Log-probabilities of the trained tokens of each of this rank's rows, without gradients; a collective.
///
/// # Errors
/// When libtorch refuses an operation, or a rank is lost.
pub fn score_rows_with(
    weights: &Weights,
    rows: &[TrainingRow],
    settings: &BatchSettings,
) -> Result<Vec<Vec<f64>>> {
    let head = settings.head(weights.config().vocab_size);
    let lengths: Vec<usize> = rows.iter().map(TrainingRow::len).collect();
    let packed = pack(&lengths, settings.micro_batch_tokens);
    let scored = match weights {
        Weights::Whole(decoder) => score_whole(decoder, rows, &packed, head, settings)?,
        Weights::Sharded(decoder) => {
            let round_len = decoder.micro_batches_per_gather();
            let mut layers = weights.layers()?;
            let mut scored = Vec::with_capacity(packed.len());
            for round in 0..rounds_of_ranks(packed.len(), decoder)? {
                let batches = packed[part_of_round(round, round_len, packed.len())]
                    .iter()
                    .map(|members| assemble(rows, members, weights.device()))
                    .collect::<Result<Vec<_>>>()?;
                let batches: Vec<&MicroBatch> = batches.iter().collect();
                scored.extend(layerwise::score(
                    &mut *layers,
                    &batches,
                    &mut |batch, ends, hidden| to_host(&score_hidden(ends, batch, hidden, head)?),
                )?);
            }
            scored
        }
    };
    let mut scores = vec![Vec::new(); rows.len()];
    for (members, logp) in packed.iter().zip(scored) {
        let mut logp = logp.into_iter();
        for &row in members {
            scores[row] = logp.by_ref().take(rows[row].num_trained()).collect();
        }
    }
    Ok(scores)
}

/// Scores of each micro-batch, by several workers.
fn score_whole(
    decoder: &Decoder,
    rows: &[TrainingRow],
    packed: &[Vec<usize>],
    head: HeadSettings,
    settings: &BatchSettings,
) -> Result<Vec<Vec<f64>>> {
    let num_workers = settings.parallelism.workers_for(packed.len());
    let shares = run_on_replicas("scoring", decoder, num_workers, |worker, decoder| {
        packed
            .iter()
            .skip(worker)
            .step_by(num_workers)
            .map(|members| {
                let batch = assemble(rows, members, decoder.device())?;
                to_host(&score(decoder, &batch, head)?)
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let mut shares = shares
        .into_iter()
        .map(|share| Ok(share?.into_iter()))
        .collect::<Result<Vec<_>>>()?;
    Ok((0..packed.len())
        .filter_map(|index| shares[index % num_workers].next())
        .collect())
}

fn assemble(rows: &[TrainingRow], members: &[usize], device: tch::Device) -> Result<MicroBatch> {
    let members: Vec<_> = members.iter().map(|&row| (&rows[row], 1.0)).collect();
    MicroBatch::assemble(&members, device)
}
