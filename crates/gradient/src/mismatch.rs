//! Trainer against sampler on the rows that no gradient is computed for.

use asyncthink_data::TrainingRow;
use asyncthink_distributed::{Ranks, count_of};
use asyncthink_model::{Decoder, run_on_replicas};

use crate::costs::pack_rows;
use crate::error::Result;
use crate::head::{HeadSettings, chunk_tokens};
use crate::micro_batch::{MicroBatch, to_host};
use crate::score::score;
use crate::settings::BatchSettings;

/// Differences between trainer's and sampler's log-probabilities, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mismatch {
    /// Largest difference.
    pub max_nats: f64,
    /// Sum of all differences.
    pub sum_nats: f64,
    /// Tokens compared.
    pub num_tokens: usize,
}

impl Mismatch {
    pub(crate) fn add(&mut self, other: &Self) {
        // `f64::max` would drop a NaN.
        if other.max_nats > self.max_nats || other.max_nats.is_nan() {
            self.max_nats = other.max_nats;
        }
        self.sum_nats += other.sum_nats;
        self.num_tokens += other.num_tokens;
    }

    /// Differences of all ranks together; a collective.
    ///
    /// # Errors
    /// When a rank is lost.
    pub fn over_ranks(self, ranks: &Ranks) -> Result<Self> {
        let own = [self.max_nats, self.sum_nats, self.num_tokens as f64];
        let mut all = Self::default();
        for values in ranks.gather_values(&own)? {
            all.add(&Self {
                max_nats: values[0],
                sum_nats: values[1],
                num_tokens: count_of(values[2]),
            });
        }
        Ok(all)
    }
}

/// Scores rows that no gradient is computed for before the weights move, so that a bound on the mismatch covers every decoded
/// token.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn mismatch_of_rows(
    decoder: &Decoder,
    rows: &[&TrainingRow],
    settings: &BatchSettings,
) -> Result<Mismatch> {
    let skipped: Vec<&TrainingRow> = rows
        .iter()
        .copied()
        .filter(|row| row.num_trained() > 0)
        .collect();
    let num_workers = settings.parallelism.workers_for(skipped.len());
    let micro_batches = pack_rows(
        &skipped,
        decoder.config(),
        settings.share_prefixes,
        settings.micro_batch_tokens,
        num_workers,
    );
    let parts = run_on_replicas(
        "comparing log-probabilities",
        decoder,
        num_workers,
        |worker, decoder| -> Result<Mismatch> {
            let mut total = Mismatch::default();
            for packed in micro_batches
                .iter()
                .filter(|packed| packed.worker == worker)
            {
                let members: Vec<_> = packed.rows.iter().map(|&row| (skipped[row], 1.0)).collect();
                let batch =
                    MicroBatch::assemble_shared(&members, &packed.shared, decoder.device())?;
                total.add(&mismatch_of(decoder, &batch, settings.temperature)?);
            }
            Ok(total)
        },
    )?;
    let mut total = Mismatch::default();
    for part in parts {
        total.add(&part?);
    }
    Ok(total)
}

fn mismatch_of(decoder: &Decoder, batch: &MicroBatch, temperature: f64) -> Result<Mismatch> {
    let settings = HeadSettings {
        temperature,
        chunk_tokens: chunk_tokens(decoder.config().vocab_size),
        entropy: false,
    };
    let scores = to_host(&score(decoder, batch, settings)?)?;
    let mut total = Mismatch::default();
    for (score, sampled) in scores.iter().zip(to_host(&batch.logp_sampler)?) {
        let difference = (score - sampled).abs();
        total.add(&Mismatch {
            max_nats: difference,
            sum_nats: difference,
            num_tokens: 1,
        });
    }
    Ok(total)
}
