//! Scores of rows under weights in any form, by all ranks together.

use asyncthink_data::{PackedRows, TrainingRow};
use asyncthink_model::{Decoder, run_on_replicas};

use crate::accumulate::{part_of_round, rounds_of_ranks};
use crate::costs::pack_rows;
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
    let all: Vec<&TrainingRow> = rows.iter().collect();
    let num_workers = match weights {
        Weights::Whole(_) => settings.parallelism.workers_for(rows.len()),
        Weights::Sharded(_) => 1,
    };
    let packed = pack_rows(
        &all,
        weights.config(),
        settings.share_prefixes,
        settings.micro_batch_tokens,
        num_workers,
    );
    let scored = match weights {
        Weights::Whole(decoder) => score_whole(decoder, rows, &packed, head, num_workers)?,
        Weights::Sharded(decoder) => {
            let round_len = decoder.micro_batches_per_gather();
            let mut layers = weights.layers()?;
            let mut scored = Vec::with_capacity(packed.len());
            for round in 0..rounds_of_ranks(packed.len(), decoder)? {
                let batches = packed[part_of_round(round, round_len, packed.len())]
                    .iter()
                    .map(|packed| assemble(rows, packed, weights.device()))
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
    for (packed, logp) in packed.iter().zip(scored) {
        let mut logp = logp.into_iter();
        for &row in &packed.rows {
            scores[row] = logp.by_ref().take(rows[row].num_trained()).collect();
        }
    }
    Ok(scores)
}

/// Scores of each micro-batch, by several workers.
fn score_whole(
    decoder: &Decoder,
    rows: &[TrainingRow],
    packed: &[PackedRows],
    head: HeadSettings,
    num_workers: usize,
) -> Result<Vec<Vec<f64>>> {
    let shares = run_on_replicas("scoring", decoder, num_workers, |worker, decoder| {
        packed
            .iter()
            .filter(|packed| packed.worker == worker)
            .map(|packed| {
                let batch = assemble(rows, packed, decoder.device())?;
                to_host(&score(decoder, &batch, head)?)
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let mut shares = shares
        .into_iter()
        .map(|share| Ok(share?.into_iter()))
        .collect::<Result<Vec<_>>>()?;
    Ok(packed
        .iter()
        .filter_map(|packed| shares[packed.worker].next())
        .collect())
}

fn assemble(rows: &[TrainingRow], packed: &PackedRows, device: tch::Device) -> Result<MicroBatch> {
    let members: Vec<_> = packed.rows.iter().map(|&row| (&rows[row], 1.0)).collect();
    MicroBatch::assemble_shared(&members, &packed.shared, device)
}
