//! The gradient of one batch, micro-batch by micro-batch.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use asyncthink_data::{TrainingRow, pack};
use asyncthink_model::Decoder;
use asyncthink_torch::num_workers;
use tch::{Kind, Tensor};

use crate::batch::{MicroBatch, to_host};
use crate::error::{Error, Result};
use crate::figures::{BatchFigures, Totals};
use crate::head::{self, HeadSettings, chunk_tokens};
use crate::loss::{Aggregation, BatchTotals, Clip, RowCount, k3, policy_loss, sft_loss};
use crate::ranks::{Ranks, count_of};

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Causal-LM loss of the trained tokens.
    Sft,
    /// Clipped policy loss plus `kl_beta` times k3 against a frozen reference.
    Policy {
        /// Limits of the probability ratio.
        clip: Clip,
        /// Weight of the KL term; 0 needs no reference model.
        kl_beta: f64,
    },
}

/// How a batch is cut and weighed.
#[derive(Clone, Copy, Debug)]
pub struct BatchSettings {
    /// What is minimised.
    pub objective: Objective,
    /// How per-token losses become one number.
    pub aggregation: Aggregation,
    /// Temperature that the rows were sampled at; 1 for supervised rows.
    pub temperature: f64,
    /// Most tokens in memory at a time.
    pub micro_batch_tokens: usize,
}

/// Adds the gradient of this rank's `rows` to the parameters of `decoder` and reports what all ranks saw.
///
/// The loss is one number over the rows of all ranks. It is the same, and the sum over ranks of its gradient is the same up
/// to rounding, for every `micro_batch_tokens` and every number of ranks: weights come from all rows first. The rows of an
/// episode are on one rank. Policy rows whose advantage is zero have no gradient without a KL term; they count in the
/// normaliser and are not computed. `on_micro_batch` is called with this rank's micro-batches done and in total; returning
/// `false` on any rank abandons the batch on all, and `None` is returned with gradients in an undefined state.
///
/// # Errors
/// When libtorch refuses an operation, or a rank is lost.
pub fn accumulate_gradient(
    decoder: &Decoder,
    reference: Option<&Decoder>,
    rows: &[TrainingRow],
    settings: &BatchSettings,
    ranks: &Ranks,
    on_micro_batch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<BatchFigures>> {
    let counts: Vec<RowCount> = rows
        .iter()
        .map(|row| RowCount {
            episode: row.episode().0,
            num_trained: row.num_trained(),
        })
        .collect();
    let totals = totals_of_ranks(BatchTotals::of(&counts), ranks)?;
    let weights = match settings.objective {
        Objective::Sft => Aggregation::TokenMean.weights(&counts, totals),
        Objective::Policy { .. } => settings.aggregation.weights(&counts, totals),
    };
    let computed: Vec<usize> = (0..rows.len())
        .filter(|&row| has_gradient(&rows[row], settings.objective))
        .collect();
    let lengths: Vec<usize> = computed.iter().map(|&row| rows[row].len()).collect();
    let num_workers = num_workers().min(computed.len()).max(1);
    let micro_batches: Vec<Members<'_>> =
        pack(&lengths, share_of_budget(&lengths, num_workers, settings))
            .iter()
            .map(|members| {
                members
                    .iter()
                    .map(|&m| (&rows[computed[m]], weights[computed[m]]))
                    .collect()
            })
            .collect();
    let is_abandoned = AtomicBool::new(false);
    let worker = Worker {
        settings,
        micro_batches: &micro_batches,
        num_workers,
        is_abandoned: &is_abandoned,
    };
    let mut totals = Totals::default();
    std::thread::scope(|scope| -> Result<()> {
        // The first share is computed here, on the decoder itself; the others on replicas, whose gradients are added in
        // a fixed order, so that a run repeats bit for bit.
        let others: Vec<_> = (1..num_workers)
            .map(|share| {
                let replica = decoder.replica()?;
                let reference = reference.map(Decoder::replica).transpose()?;
                Ok(scope.spawn(move || {
                    let totals =
                        worker.run(share, &replica, reference.as_ref(), &mut |_, _| true)?;
                    Ok::<_, Error>((totals, replica))
                }))
            })
            .collect::<Result<_>>()?;
        let own = worker.run(0, decoder, reference, on_micro_batch);
        let others: Vec<_> = others.into_iter().map(ScopedJoinHandle::join).collect();
        totals.add(&own?);
        // All workers score at the same time: the first one's seconds stand for all.
        let reference_seconds = totals.reference_seconds;
        for other in others {
            let (part, replica) =
                other.map_err(|_| Error::stage("computing a gradient", "a thread panicked"))??;
            totals.add(&part);
            add_gradients(decoder, &replica)?;
        }
        totals.reference_seconds = reference_seconds;
        Ok(())
    })?;
    totals.num_micro_batches = micro_batches.len();
    let Some(totals) = totals.over_ranks(is_abandoned.into_inner(), ranks)? else {
        return Ok(None);
    };
    Ok(Some(totals.figures()))
}

fn totals_of_ranks(own: BatchTotals, ranks: &Ranks) -> Result<BatchTotals> {
    // Counts are exact in f64.
    let mut sums = [own.num_trained as f64, own.num_episodes as f64];
    ranks.sum(&mut sums)?;
    Ok(BatchTotals {
        num_trained: count_of(sums[0]),
        num_episodes: count_of(sums[1]),
    })
}

/// Rows of a micro-batch with the weight of each row's trained tokens.
type Members<'a> = Vec<(&'a TrainingRow, f64)>;

/// The micro-batch budget at which all workers get the same number of micro-batches, as few as memory allows.
fn share_of_budget(lengths: &[usize], num_workers: usize, settings: &BatchSettings) -> usize {
    if num_workers == 1 {
        return settings.micro_batch_tokens;
    }
    let total: usize = lengths.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let num_rounds = total
        .div_ceil(num_workers * settings.micro_batch_tokens)
        .max(1);
    // Room for rows that do not fill a share exactly.
    let share = total.div_ceil(num_workers * num_rounds) + longest / 2;
    share.max(longest).min(settings.micro_batch_tokens)
}

/// One thread's part of a batch: every `num_workers`-th micro-batch.
#[derive(Clone, Copy)]
struct Worker<'a> {
    settings: &'a BatchSettings,
    micro_batches: &'a [Members<'a>],
    num_workers: usize,
    is_abandoned: &'a AtomicBool,
}

impl Worker<'_> {
    fn run(
        &self,
        share: usize,
        decoder: &Decoder,
        reference: Option<&Decoder>,
        on_micro_batch: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Totals> {
        let mut totals = Totals::default();
        for index in (share..self.micro_batches.len()).step_by(self.num_workers) {
            if !on_micro_batch(index, self.micro_batches.len()) {
                self.is_abandoned.store(true, Ordering::SeqCst);
            }
            if self.is_abandoned.load(Ordering::SeqCst) {
                break;
            }
            let batch = MicroBatch::assemble(&self.micro_batches[index], decoder.device())?;
            totals.add(&micro_batch_gradient(
                decoder,
                reference,
                &batch,
                self.settings,
            )?);
        }
        Ok(totals)
    }
}

/// Adds the gradients of a replica to those of the decoder.
fn add_gradients(decoder: &Decoder, replica: &Decoder) -> Result<()> {
    for ((_, parameter), (_, copy)) in decoder
        .trained_parameters()
        .iter()
        .zip(replica.trained_parameters())
    {
        let (mut gradient, part) = (parameter.grad(), copy.grad());
        if gradient.defined() && part.defined() {
            let _ = gradient.f_add_(&part)?;
        }
    }
    Ok(())
}

pub(crate) fn has_gradient(row: &TrainingRow, objective: Objective) -> bool {
    let is_weighed = match objective {
        Objective::Sft => true,
        Objective::Policy { kl_beta, .. } => kl_beta > 0.0 || row.advantage() != 0.0,
    };
    row.num_trained() > 0 && is_weighed
}

fn micro_batch_gradient(
    decoder: &Decoder,
    reference: Option<&Decoder>,
    batch: &MicroBatch,
    settings: &BatchSettings,
) -> Result<Totals> {
    let head_settings = HeadSettings {
        temperature: settings.temperature,
        chunk_tokens: chunk_tokens(decoder.config().vocab_size),
        entropy: settings.objective != Objective::Sft,
    };
    let started = Instant::now();
    let logp_reference = match reference {
        Some(reference) => Some(score(reference, batch, head_settings)?),
        None => None,
    };
    let reference_seconds = if reference.is_some() {
        started.elapsed().as_secs_f64()
    } else {
        0.0
    };
    let hidden = batch.select_trained(&decoder.hidden_packed(&batch.ids, &batch.segment_lens)?)?;
    let lm_head = |hidden: &Tensor| Ok(decoder.lm_head(hidden)?);
    let mut chunk_loss = |range: Range<i64>, logp: &Tensor| {
        chunk_loss(
            batch,
            logp_reference.as_ref(),
            settings.objective,
            &range,
            logp,
        )
    };
    let output = head::backward(
        &lm_head,
        &hidden,
        &batch.targets,
        head_settings,
        &mut chunk_loss,
    )?;
    let mut totals = Totals {
        loss: output.loss,
        num_tokens: batch.num_tokens(),
        num_row_tokens: batch.num_row_tokens(),
        num_trained: batch.num_trained(),
        reference_seconds,
        ..Totals::default()
    };
    if let Objective::Policy { clip, .. } = settings.objective {
        totals.measure_policy(batch, &output, logp_reference.as_ref(), clip)?;
    }
    Ok(totals)
}

/// Log-probabilities of a micro-batch's trained tokens, without gradients; f32 `[trained]`.
pub(crate) fn score(
    decoder: &Decoder,
    batch: &MicroBatch,
    settings: HeadSettings,
) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let hidden = batch.select_trained(&decoder.hidden_packed(&batch.ids, &batch.segment_lens)?)?;
    head::score(
        &|hidden: &Tensor| Ok(decoder.lm_head(hidden)?),
        &hidden,
        &batch.targets,
        settings,
    )
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
) -> Result<Vec<Vec<f64>>> {
    let settings = HeadSettings {
        temperature,
        chunk_tokens: chunk_tokens(decoder.config().vocab_size),
        entropy: false,
    };
    let lengths: Vec<usize> = rows.iter().map(TrainingRow::len).collect();
    let mut scores = vec![Vec::new(); rows.len()];
    for members in pack(&lengths, micro_batch_tokens) {
        let batch: Vec<(&TrainingRow, f64)> =
            members.iter().map(|&row| (&rows[row], 1.0)).collect();
        let batch = MicroBatch::assemble(&batch, decoder.device())?;
        let mut logp = to_host(&score(decoder, &batch, settings)?)?.into_iter();
        for row in members {
            scores[row] = logp.by_ref().take(rows[row].num_trained()).collect();
        }
    }
    Ok(scores)
}

/// The weighted loss of a chunk of trained tokens, a scalar.
///
/// ```text
/// sft      sum_t w_t * -logp_t
/// policy   sum_t w_t * (-min(r_t A_t, clip(r_t) A_t) + kl_beta * k3_t)
/// ```
pub(crate) fn chunk_loss(
    batch: &MicroBatch,
    logp_reference: Option<&Tensor>,
    objective: Objective,
    range: &Range<i64>,
    logp: &Tensor,
) -> Result<Tensor> {
    let weights = MicroBatch::part(&batch.weights, range)?;
    match objective {
        Objective::Sft => Ok(sft_loss(logp, &weights)?),
        Objective::Policy { clip, kl_beta } => {
            let logp_old = MicroBatch::part(&batch.logp_old, range)?;
            let advantages = MicroBatch::part(&batch.advantages, range)?;
            let mut losses = policy_loss(logp, &logp_old, &advantages, clip)?;
            if let Some(reference) = logp_reference {
                let penalty = k3(logp, &MicroBatch::part(reference, range)?)?;
                losses = losses.f_add(&penalty.f_mul_scalar(kl_beta)?)?;
            }
            Ok(losses.f_mul(&weights)?.f_sum(Kind::Float)?)
        }
    }
}
