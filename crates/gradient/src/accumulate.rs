//! The gradient of one batch, micro-batch by micro-batch.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use asyncthink_algorithms::{BatchTotals, RowCount, Scope};
use asyncthink_data::{TrainingRow, costs_of_workers};
use asyncthink_distributed::{AdamW, Ranks, ShardedDecoder, count_of};
use asyncthink_model::{Decoder, run_workers};
use asyncthink_recipe::OldPolicy;
use asyncthink_torch::set_grad;
use tch::{Kind, Tensor};

use crate::costs::pack_rows;
use crate::error::Result;
use crate::head;
use crate::layers::{LayerSource, ReplicatedLayers};
use crate::layerwise::{self, Keep};
use crate::metrics::{BatchMetrics, Totals};
use crate::micro_batch::MicroBatch;
use crate::redistribute::redistribute;
use crate::score::{score, score_hidden};
use crate::settings::BatchSettings;
use crate::sharded_layers::ShardedLayers;
use crate::token_loss::{MicroBatchLoss, OldLogp};
use crate::weights::Weights;

/// Computes the gradient of `rows` once; see [`PackedBatch`].
///
/// # Errors
/// When libtorch refuses an operation, or a rank is lost.
pub fn accumulate_gradient(
    weights: &Weights,
    reference: Option<&Weights>,
    rows: &[TrainingRow],
    settings: &BatchSettings,
    optimizer: &AdamW,
    on_micro_batch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<BatchMetrics>> {
    PackedBatch::new(weights, rows, settings, optimizer.ranks())?.accumulate_gradient(
        weights,
        reference,
        optimizer,
        on_micro_batch,
    )
}

/// Rows of one step as micro-batches on the device: packed and assembled once, for all updates of the step.
#[derive(Debug)]
pub struct PackedBatch<'a> {
    settings: &'a BatchSettings,
    micro_batches: Vec<PackedMicroBatch>,
    num_workers: usize,
    /// Predicted cost of each worker's micro-batches.
    worker_costs: Vec<f64>,
    /// Micro-batches that go through the layers together.
    round_len: usize,
    /// Rounds of a worker; of all ranks equally many where they gather the layers together.
    num_rounds: usize,
    /// Whether the log-probabilities of the reference model are known.
    is_reference_scored: bool,
}

/// A micro-batch with what is known of it.
#[derive(Debug)]
struct PackedMicroBatch {
    index: usize,
    /// Which of the threads computes it.
    worker: usize,
    batch: MicroBatch,
    /// Log-probabilities under the reference model, f32 `[trained]`.
    logp_reference: Option<Tensor>,
    /// Log-probabilities under the trainer before the first update, f32 `[trained]`, where the ratio is against these.
    logp_old: Option<Tensor>,
}

impl PackedMicroBatch {
    fn logp_old(&self, old_policy: OldPolicy) -> OldLogp<'_> {
        match (old_policy, &self.logp_old) {
            (OldPolicy::Sampler, _) => OldLogp::Given(&self.batch.logp_sampler),
            (OldPolicy::Trainer, Some(logp_old)) => OldLogp::Given(logp_old),
            (OldPolicy::Trainer, None) => OldLogp::Current,
        }
    }
}

impl<'a> PackedBatch<'a> {
    /// Packs this rank's rows; a collective.
    ///
    /// The loss is one number over the rows of all ranks. Its gradient, summed over ranks, is equal up to rounding for every
    /// `micro_batch_tokens` and every number of ranks: token weights come from all rows first, from rows as they were sampled, all rows
    /// of an episode on one rank; after that any rank may compute a row. Rows without a gradient under the loss count in the
    /// normaliser and are not computed.
    ///
    /// # Errors
    /// When the device refuses the memory, or a rank is lost.
    pub fn new(
        weights: &Weights,
        rows: &[TrainingRow],
        settings: &'a BatchSettings,
        ranks: &Ranks,
    ) -> Result<Self> {
        let counts: Vec<RowCount> = rows
            .iter()
            .map(|row| RowCount {
                episode: row.episode().0,
                num_trained: row.num_trained(),
            })
            .collect();
        let batch_totals = totals_of_ranks(BatchTotals::of(&counts), ranks)?;
        let row_weights = settings.aggregation.weights(&counts, batch_totals);
        let own: Vec<(&TrainingRow, f64)> = rows
            .iter()
            .zip(row_weights)
            .filter(|(row, _)| settings.has_gradient(row))
            .collect();
        let config = weights.config();
        let exchanged = if settings.redistribute_rows && !ranks.is_alone() {
            Some(redistribute(&own, config, settings.share_prefixes, ranks)?)
        } else {
            None
        };
        let computed = match &exchanged {
            Some(rows) => rows.iter().map(|(row, weight)| (row, *weight)).collect(),
            None => own,
        };
        let num_workers = match weights {
            Weights::Whole(_) => settings.parallelism.workers_for(computed.len()),
            Weights::Sharded(_) => 1,
        };
        let device = weights.device();
        let computed_rows: Vec<&TrainingRow> = computed.iter().map(|(row, _)| *row).collect();
        let packed = pack_rows(
            &computed_rows,
            config,
            settings.share_prefixes,
            settings.micro_batch_tokens,
            num_workers,
        );
        let worker_costs = costs_of_workers(&packed, num_workers);
        let micro_batches = packed
            .iter()
            .enumerate()
            .map(|(index, packed)| {
                let members: Vec<_> = packed.rows.iter().map(|&row| computed[row]).collect();
                Ok(PackedMicroBatch {
                    index,
                    worker: packed.worker,
                    batch: MicroBatch::assemble_shared(&members, &packed.shared, device)?,
                    logp_reference: None,
                    logp_old: None,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let (round_len, num_rounds) = match weights {
            Weights::Whole(_) => (1, micro_batches.len().div_ceil(num_workers)),
            Weights::Sharded(decoder) => (
                decoder.micro_batches_per_gather(),
                rounds_of_ranks(micro_batches.len(), decoder)?,
            ),
        };
        Ok(Self {
            settings,
            micro_batches,
            num_workers,
            worker_costs,
            round_len,
            num_rounds,
            is_reference_scored: false,
        })
    }

    /// Adds the gradient to that of `weights`, sums it over all ranks into what `optimizer` owns, and reports what all ranks
    /// measured; a collective.
    ///
    /// `on_micro_batch` is called with this rank's micro-batches done and in total. Returning `false` on any rank abandons the
    /// batch on all, and `None` is returned with gradients in an undefined state. The reference model is scored in the first call
    /// only.
    ///
    /// # Errors
    /// When libtorch refuses an operation, or a rank is lost.
    pub fn accumulate_gradient(
        &mut self,
        weights: &Weights,
        reference: Option<&Weights>,
        optimizer: &AdamW,
        on_micro_batch: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<BatchMetrics>> {
        let is_abandoned = AtomicBool::new(false);
        let num_micro_batches = self.micro_batches.len();
        let run = Run {
            settings: self.settings,
            round_len: self.round_len,
            num_micro_batches,
            is_abandoned: &is_abandoned,
        };
        let reference = reference.filter(|_| !self.is_reference_scored);
        let mut exchange = optimizer.exchange();
        let mut all: Vec<&mut PackedMicroBatch> = self.micro_batches.iter_mut().collect();
        let mut totals = match weights {
            Weights::Whole(decoder) if self.num_workers == 1 => {
                let mut layers = ReplicatedLayers::new(decoder, exchange.as_mut());
                let keep = self.settings.keep();
                let num_rounds = self.num_rounds;
                run.rounds(
                    &mut layers,
                    &mut all,
                    num_rounds,
                    keep,
                    reference,
                    on_micro_batch,
                )?
            }
            Weights::Whole(decoder) => {
                run.in_threads(decoder, all, self.num_workers, reference, on_micro_batch)?
            }
            Weights::Sharded(decoder) => {
                let mut layers = ShardedLayers::new(decoder)?;
                let num_rounds = self.num_rounds;
                run.rounds(
                    &mut layers,
                    &mut all,
                    num_rounds,
                    Keep::Inputs,
                    reference,
                    on_micro_batch,
                )?
            }
        };
        if let Some(exchange) = exchange {
            exchange.finish()?;
        }
        self.is_reference_scored = true;
        totals.num_micro_batches = num_micro_batches;
        totals.worker_costs.clone_from(&self.worker_costs);
        let names = self.settings.loss.metric_names();
        let totals =
            totals.over_ranks(is_abandoned.into_inner(), names.len(), optimizer.ranks())?;
        Ok(totals.map(|totals| totals.means(names)))
    }
}

impl PackedBatch<'_> {
    /// Scores the rows under `weights`, for updates that take the probability ratio against the trainer before other updates; a
    /// collective. A batch whose first update is the first of all needs no such pass.
    ///
    /// # Errors
    /// When libtorch refuses an operation, or a rank is lost.
    pub fn score_old(&mut self, weights: &Weights) -> Result<()> {
        let head_settings = self.settings.head(weights.config().vocab_size);
        let score_each = |decoder: &Decoder, share: &mut [&mut PackedMicroBatch]| -> Result<()> {
            for packed in share {
                packed.logp_old = Some(score(decoder, &packed.batch, head_settings)?);
            }
            Ok(())
        };
        match weights {
            Weights::Whole(decoder) => {
                let all = self.micro_batches.iter_mut().collect();
                let mut shares = shares_of_workers(all, self.num_workers).into_iter();
                let mut own = shares.next().unwrap_or_default();
                let inputs = shares
                    .map(|share| Ok((decoder.replica()?, share)))
                    .collect::<Result<Vec<_>>>()?;
                let (own, others) = run_workers(
                    "scoring",
                    inputs,
                    || score_each(decoder, &mut own),
                    |_, (replica, mut share)| score_each(&replica, &mut share),
                )?;
                others.into_iter().try_fold((), |(), other| other)?;
                own
            }
            Weights::Sharded(_) => {
                let mut layers = weights.layers()?;
                for round in 0..self.num_rounds {
                    let range = part_of_round(round, self.round_len, self.micro_batches.len());
                    let packed = &mut self.micro_batches[range];
                    let batches: Vec<&MicroBatch> =
                        packed.iter().map(|packed| &packed.batch).collect();
                    let scores =
                        layerwise::score(&mut *layers, &batches, &mut |batch, ends, hidden| {
                            score_hidden(ends, batch, hidden, head_settings)
                        })?;
                    for (packed, scores) in packed.iter_mut().zip(scores) {
                        packed.logp_old = Some(scores);
                    }
                }
                Ok(())
            }
        }
    }
}

/// Micro-batches of each worker.
fn shares_of_workers(
    all: Vec<&mut PackedMicroBatch>,
    num_workers: usize,
) -> Vec<Vec<&mut PackedMicroBatch>> {
    let mut shares: Vec<Vec<&mut PackedMicroBatch>> =
        (0..num_workers).map(|_| Vec::new()).collect();
    for packed in all {
        shares[packed.worker].push(packed);
    }
    shares
}

/// Micro-batches of a round; the last rounds may be empty.
pub(crate) fn part_of_round(round: usize, round_len: usize, count: usize) -> Range<usize> {
    let start = (round * round_len).min(count);
    start..(start + round_len).min(count)
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

/// Rounds of micro-batches through gathered layers, in which all ranks take part; the last ones of a rank may be empty.
pub(crate) fn rounds_of_ranks(num_micro_batches: usize, decoder: &ShardedDecoder) -> Result<usize> {
    let own = num_micro_batches.div_ceil(decoder.micro_batches_per_gather());
    let all = decoder.ranks().gather_values(&[own as f64])?;
    let most = all.iter().map(|of_rank| count_of(of_rank[0])).max();
    Ok(most.unwrap_or(0))
}

/// One pass over the micro-batches of a rank.
#[derive(Clone, Copy)]
struct Run<'a> {
    settings: &'a BatchSettings,
    round_len: usize,
    num_micro_batches: usize,
    is_abandoned: &'a AtomicBool,
}

impl Run<'_> {
    /// Sends micro-batches through the layers, round by round. A batch that is abandoned goes on without micro-batches: other
    /// ranks wait for this one's part of the layers.
    fn rounds(
        &self,
        layers: &mut dyn LayerSource,
        own: &mut [&mut PackedMicroBatch],
        num_rounds: usize,
        keep: Keep,
        reference: Option<&Weights>,
        on_micro_batch: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Totals> {
        let mut totals = Totals::default();
        let mut reference = reference.map(Weights::layers).transpose()?;
        for round in 0..num_rounds {
            let range = part_of_round(round, self.round_len, own.len());
            let round_batches = &mut own[range];
            let mut num_active = 0;
            for packed in &*round_batches {
                if !on_micro_batch(packed.index, self.num_micro_batches) {
                    self.is_abandoned.store(true, Ordering::SeqCst);
                }
                if !self.is_abandoned.load(Ordering::SeqCst) {
                    num_active += 1;
                }
            }
            let is_last = round + 1 == num_rounds;
            let reference = reference.as_deref_mut();
            let active = &mut round_batches[..num_active];
            totals.add(&self.round(layers, reference, active, keep, is_last)?);
        }
        Ok(totals)
    }

    /// The micro-batches in several threads, each with a replica of the decoder. Gradients of the replicas are added in a fixed
    /// order, so that a run repeats bit for bit.
    fn in_threads(
        &self,
        decoder: &Decoder,
        all: Vec<&mut PackedMicroBatch>,
        num_workers: usize,
        reference: Option<&Weights>,
        on_micro_batch: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Totals> {
        let keep = self.settings.keep();
        let mut shares = shares_of_workers(all, num_workers);
        let mut own = shares.remove(0);
        let reference_decoder = match reference {
            Some(Weights::Whole(decoder)) => Some(&**decoder),
            _ => None,
        };
        let inputs = shares
            .into_iter()
            .map(|share| {
                let reference = reference_decoder.map(Decoder::replica).transpose()?;
                Ok((replica_to_train(decoder)?, reference, share))
            })
            .collect::<Result<Vec<_>>>()?;
        let (own_totals, others) = run_workers(
            "computing a gradient",
            inputs,
            || {
                let mut layers = ReplicatedLayers::new(decoder, None);
                let num_rounds = own.len();
                self.rounds(
                    &mut layers,
                    &mut own,
                    num_rounds,
                    keep,
                    reference,
                    on_micro_batch,
                )
            },
            |_, (replica, reference, mut share)| -> Result<_> {
                let reference = reference.map(|decoder| Weights::Whole(Box::new(decoder)));
                let mut layers = ReplicatedLayers::new(&replica, None);
                let num_rounds = share.len();
                let totals = self.rounds(
                    &mut layers,
                    &mut share,
                    num_rounds,
                    keep,
                    reference.as_ref(),
                    &mut |_, _| true,
                )?;
                Ok((totals, replica))
            },
        )?;
        let mut totals = own_totals?;
        // All workers score at the same time: the first one's seconds stand for all.
        let reference_seconds = totals.reference_seconds;
        for other in others {
            let (part, replica) = other?;
            totals.add(&part);
            add_gradients_of(decoder, &replica)?;
        }
        totals.reference_seconds = reference_seconds;
        Ok(totals)
    }

    fn round(
        &self,
        layers: &mut dyn LayerSource,
        reference: Option<&mut (dyn LayerSource + '_)>,
        packed: &mut [&mut PackedMicroBatch],
        keep: Keep,
        is_last: bool,
    ) -> Result<Totals> {
        let settings = self.settings;
        let loss = &*settings.loss;
        let head_settings = settings.head(layers.config().vocab_size);
        let score = |layers: &mut dyn LayerSource, batches: &[&MicroBatch]| {
            layerwise::score(layers, batches, &mut |batch, ends, hidden| {
                score_hidden(ends, batch, hidden, head_settings)
            })
        };
        let mut totals = Totals::default();
        if let Some(reference) = reference {
            let started = Instant::now();
            let batches: Vec<&MicroBatch> = packed.iter().map(|packed| &packed.batch).collect();
            let scores = score(reference, &batches)?;
            for (packed, scores) in packed.iter_mut().zip(scores) {
                packed.logp_reference = Some(scores);
            }
            totals.reference_seconds = started.elapsed().as_secs_f64();
        }
        let batches: Vec<&MicroBatch> = packed.iter().map(|packed| &packed.batch).collect();
        let logp = match loss.scope() {
            Scope::Token => None,
            Scope::Sequence => Some(score(layers, &batches)?),
        };
        let losses = packed
            .iter()
            .enumerate()
            .map(|(index, packed)| {
                let logp = logp.as_ref().map(|scores| &scores[index]);
                MicroBatchLoss::new(
                    loss,
                    &packed.batch,
                    packed.logp_old(settings.old_policy),
                    packed.logp_reference.as_ref(),
                    logp,
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let entropy_coefficient = loss.entropy_coefficient();
        let mut computed = Vec::with_capacity(packed.len());
        layerwise::add_gradients(
            layers,
            &batches,
            keep,
            is_last,
            &mut |index, ends, hidden| {
                let (batch, logp_reference) =
                    (batches[index], packed[index].logp_reference.as_ref());
                let entropy_weights = if entropy_coefficient > 0.0 {
                    Some(batch.weights.f_mul_scalar(-entropy_coefficient)?)
                } else {
                    None
                };
                let mut gradients = Vec::new();
                let (gradient, output) = head::backward(
                    ends.head(head_settings.temperature),
                    hidden,
                    &batch.targets,
                    head_settings,
                    entropy_weights.as_ref(),
                    &mut |range, logp| {
                        let chunk = losses[index].chunk(&range, logp)?;
                        gradients.push(chunk.gradient.shallow_clone());
                        Ok(chunk)
                    },
                )?;
                let mut part = Totals {
                    loss: output.loss,
                    num_tokens: batch.num_row_tokens(),
                    num_computed_tokens: batch.num_tokens(),
                    num_trained: batch.num_trained(),
                    ..Totals::default()
                };
                if settings.measures_policy && !gradients.is_empty() {
                    let coefficients = Tensor::f_cat(&gradients, 0)?;
                    let logp_old = packed[index]
                        .logp_old(settings.old_policy)
                        .resolve(&output.logp);
                    part.measure_policy(
                        batch,
                        &output,
                        &coefficients,
                        logp_old,
                        logp_reference,
                        loss,
                    )?;
                }
                totals.add(&part);
                computed.push(output.logp);
                Ok(gradient)
            },
        )?;
        if settings.old_policy == OldPolicy::Trainer {
            for (packed, logp) in packed.iter_mut().zip(computed) {
                packed.logp_old.get_or_insert(logp);
            }
        }
        Ok(totals)
    }
}

/// A replica whose gradients are summed in f32, whatever it computes in.
fn replica_to_train(decoder: &Decoder) -> Result<Decoder> {
    let replica = decoder.replica()?;
    for (_, parameter) in replica.trained_parameters() {
        if parameter.kind() != Kind::Float {
            let options = (Kind::Float, parameter.device());
            set_grad(parameter, &Tensor::f_zeros(parameter.size(), options)?)?;
        }
    }
    Ok(replica)
}

/// Adds the gradients of a replica to those of the decoder.
fn add_gradients_of(decoder: &Decoder, replica: &Decoder) -> Result<()> {
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
