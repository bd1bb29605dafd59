//! The gradient of one batch, micro-batch by micro-batch.

use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use asyncthink_data::{TrainingRow, pack};
use asyncthink_model::{Decoder, DecoderEnds, ModelConfig};
use asyncthink_torch::num_workers;
use tch::{Kind, Tensor};

use crate::batch::{MicroBatch, to_host};
use crate::error::{Error, Result};
use crate::figures::{BatchFigures, Totals};
use crate::gathered::GatheredUnits;
use crate::head::{self, HeadSettings, chunk_tokens};
use crate::layerwise::{self, Keep};
use crate::loss::{Aggregation, BatchTotals, Clip, RowCount, k3, policy_loss, sft_loss};
use crate::optimizer::AdamW;
use crate::ranks::{Ranks, count_of};
use crate::sharded::ShardedDecoder;
use crate::units::{Units, WholeUnits};

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
    /// Whether layers are computed again in the backward pass, so that only their inputs are kept.
    pub activation_checkpointing: bool,
}

impl BatchSettings {
    fn keep(&self) -> Keep {
        if self.activation_checkpointing {
            Keep::Inputs
        } else {
            Keep::Graphs
        }
    }
}

/// A decoder as a rank holds it.
#[derive(Debug)]
pub enum Weights {
    /// All of it.
    Whole(Box<Decoder>),
    /// A part; the other ranks have the rest.
    Sharded(Rc<ShardedDecoder>),
}

impl Weights {
    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Whole(decoder) => decoder.config(),
            Self::Sharded(decoder) => decoder.config(),
        }
    }
}

/// Adds the gradient of this rank's `rows` to that of `weights`, sums it over all ranks into what `optimizer` owns, and reports
/// what all ranks saw.
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
    weights: &Weights,
    reference: Option<&Weights>,
    rows: &[TrainingRow],
    settings: &BatchSettings,
    optimizer: &AdamW,
    on_micro_batch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<BatchFigures>> {
    let ranks = optimizer.ranks();
    let counts: Vec<RowCount> = rows
        .iter()
        .map(|row| RowCount {
            episode: row.episode().0,
            num_trained: row.num_trained(),
        })
        .collect();
    let batch_totals = totals_of_ranks(BatchTotals::of(&counts), ranks)?;
    let row_weights = match settings.objective {
        Objective::Sft => Aggregation::TokenMean.weights(&counts, batch_totals),
        Objective::Policy { .. } => settings.aggregation.weights(&counts, batch_totals),
    };
    let computed: Vec<usize> = (0..rows.len())
        .filter(|&row| has_gradient(&rows[row], settings.objective))
        .collect();
    let lengths: Vec<usize> = computed.iter().map(|&row| rows[row].len()).collect();
    let num_workers = match weights {
        Weights::Whole(_) => num_workers().min(computed.len()).max(1),
        Weights::Sharded(_) => 1,
    };
    let micro_batches: Vec<Members<'_>> =
        pack(&lengths, share_of_budget(&lengths, num_workers, settings))
            .iter()
            .map(|members| {
                members
                    .iter()
                    .map(|&m| (&rows[computed[m]], row_weights[computed[m]]))
                    .collect()
            })
            .collect();
    let is_abandoned = AtomicBool::new(false);
    let batch = Batch {
        settings,
        micro_batches: &micro_batches,
        is_abandoned: &is_abandoned,
    };
    let mut exchange = optimizer.exchange();
    let mut totals = match weights {
        Weights::Whole(decoder) if num_workers == 1 => {
            let mut units = WholeUnits::new(decoder, exchange.as_mut());
            let rounds = (0..micro_batches.len()).map(|index| index..index + 1);
            let keep = settings.keep();
            batch.run(rounds, &mut units, keep, reference, on_micro_batch)?
        }
        Weights::Whole(decoder) => {
            batch.run_in_threads(num_workers, decoder, reference, on_micro_batch)?
        }
        Weights::Sharded(decoder) => {
            let mut units = GatheredUnits::new(decoder)?;
            let rounds = rounds_of_ranks(&micro_batches, decoder)?;
            batch.run(rounds, &mut units, Keep::Inputs, reference, on_micro_batch)?
        }
    };
    if let Some(exchange) = exchange {
        exchange.finish()?;
    }
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

/// Which micro-batches go through the layers together. All ranks have equally many rounds, because all take part in gathering
/// the layers; the last ones of a rank may be empty.
fn rounds_of_ranks(
    micro_batches: &[Members<'_>],
    decoder: &ShardedDecoder,
) -> Result<impl Iterator<Item = Range<usize>> + use<>> {
    let length = decoder.micro_batches_per_gather();
    let num_own = micro_batches.len();
    let all = decoder
        .ranks()
        .gather_values(&[num_own.div_ceil(length) as f64])?;
    let num_rounds = all.iter().map(|of_rank| count_of(of_rank[0])).max();
    Ok((0..num_rounds.unwrap_or(0)).map(move |round| {
        let start = (round * length).min(num_own);
        start..(start + length).min(num_own)
    }))
}

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

/// The micro-batches of a rank.
#[derive(Clone, Copy)]
struct Batch<'a> {
    settings: &'a BatchSettings,
    micro_batches: &'a [Members<'a>],
    is_abandoned: &'a AtomicBool,
}

impl Batch<'_> {
    /// Sends `rounds` of micro-batches through the layers. A batch that is abandoned goes on without micro-batches: other ranks
    /// wait for this one's part of the layers.
    fn run(
        &self,
        rounds: impl Iterator<Item = Range<usize>>,
        units: &mut dyn Units,
        keep: Keep,
        reference: Option<&Weights>,
        on_micro_batch: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Totals> {
        let mut totals = Totals::default();
        let mut reference = match reference {
            None => None,
            Some(Weights::Whole(decoder)) => {
                Some(Box::new(WholeUnits::new(decoder, None)) as Box<dyn Units>)
            }
            Some(Weights::Sharded(decoder)) => Some(Box::new(GatheredUnits::new(decoder)?) as _),
        };
        let mut rounds = rounds.peekable();
        while let Some(round) = rounds.next() {
            let mut batches = Vec::with_capacity(round.len());
            for index in round {
                if !on_micro_batch(index, self.micro_batches.len()) {
                    self.is_abandoned.store(true, Ordering::SeqCst);
                }
                if !self.is_abandoned.load(Ordering::SeqCst) {
                    let members = &self.micro_batches[index];
                    batches.push(MicroBatch::assemble(members, units.device())?);
                }
            }
            let is_last = rounds.peek().is_none();
            let reference = reference.as_deref_mut();
            totals.add(&self.round_gradient(units, reference, &batches, keep, is_last)?);
        }
        Ok(totals)
    }

    /// The same in several threads, each with a replica of the decoder.
    fn run_in_threads(
        &self,
        num_workers: usize,
        decoder: &Decoder,
        reference: Option<&Weights>,
        on_micro_batch: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Totals> {
        let keep = self.settings.keep();
        let rounds_of = |share: usize| {
            let all = share..self.micro_batches.len();
            all.step_by(num_workers).map(|index| index..index + 1)
        };
        let reference_decoder = match reference {
            Some(Weights::Whole(decoder)) => Some(&**decoder),
            _ => None,
        };
        std::thread::scope(|scope| -> Result<Totals> {
            // The first share is computed here, on the decoder itself; the others on replicas, whose gradients are added in
            // a fixed order, so that a run repeats bit for bit.
            let others: Vec<_> = (1..num_workers)
                .map(|share| {
                    let replica = decoder.replica()?;
                    let reference = reference_decoder.map(Decoder::replica).transpose()?;
                    let batch = *self;
                    let rounds = rounds_of(share);
                    Ok(scope.spawn(move || {
                        let reference = reference.map(|decoder| Weights::Whole(Box::new(decoder)));
                        let mut units = WholeUnits::new(&replica, None);
                        let totals = batch.run(
                            rounds,
                            &mut units,
                            keep,
                            reference.as_ref(),
                            &mut |_, _| true,
                        )?;
                        Ok::<_, Error>((totals, replica))
                    }))
                })
                .collect::<Result<_>>()?;
            let mut units = WholeUnits::new(decoder, None);
            let own = self.run(rounds_of(0), &mut units, keep, reference, on_micro_batch);
            let others: Vec<_> = others.into_iter().map(ScopedJoinHandle::join).collect();
            let mut totals = own?;
            // All workers score at the same time: the first one's seconds stand for all.
            let reference_seconds = totals.reference_seconds;
            for other in others {
                let (part, replica) = other
                    .map_err(|_| Error::stage("computing a gradient", "a thread panicked"))??;
                totals.add(&part);
                add_gradients_of(decoder, &replica)?;
            }
            totals.reference_seconds = reference_seconds;
            Ok(totals)
        })
    }

    fn round_gradient(
        &self,
        units: &mut dyn Units,
        reference: Option<&mut (dyn Units + '_)>,
        batches: &[MicroBatch],
        keep: Keep,
        is_last: bool,
    ) -> Result<Totals> {
        let head_settings = HeadSettings {
            temperature: self.settings.temperature,
            chunk_tokens: chunk_tokens(units.config().vocab_size),
            entropy: self.settings.objective != Objective::Sft,
        };
        let mut totals = Totals::default();
        let logp_reference = match reference {
            Some(reference) => {
                let started = Instant::now();
                let scores = layerwise::score(reference, batches, &mut |batch, ends, hidden| {
                    score_hidden(ends, batch, hidden, head_settings)
                })?;
                totals.reference_seconds = started.elapsed().as_secs_f64();
                Some(scores)
            }
            None => None,
        };
        let objective = self.settings.objective;
        layerwise::add_gradients(units, batches, keep, is_last, &mut |index, ends, hidden| {
            let batch = &batches[index];
            let logp_reference = logp_reference.as_ref().map(|scores| &scores[index]);
            let output = head::backward(
                &|hidden: &Tensor| Ok(ends.lm_head(hidden)?),
                hidden,
                &batch.targets,
                head_settings,
                &mut |range, logp| chunk_loss(batch, logp_reference, objective, &range, logp),
            )?;
            let mut part = Totals {
                loss: output.loss,
                num_tokens: batch.num_tokens(),
                num_row_tokens: batch.num_row_tokens(),
                num_trained: batch.num_trained(),
                ..Totals::default()
            };
            if let Objective::Policy { clip, .. } = objective {
                part.measure_policy(batch, &output, logp_reference, clip)?;
            }
            totals.add(&part);
            Ok(())
        })?;
        Ok(totals)
    }
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

pub(crate) fn has_gradient(row: &TrainingRow, objective: Objective) -> bool {
    let is_weighed = match objective {
        Objective::Sft => true,
        Objective::Policy { kl_beta, .. } => kl_beta > 0.0 || row.advantage() != 0.0,
    };
    row.num_trained() > 0 && is_weighed
}

/// Log-probabilities of a micro-batch's trained tokens, without gradients; f32 `[trained]`.
pub(crate) fn score(
    decoder: &Decoder,
    batch: &MicroBatch,
    settings: HeadSettings,
) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let hidden = batch.select_trained(&decoder.hidden_packed(&batch.ids, &batch.segment_lens)?)?;
    score_hidden(decoder.ends(), batch, &hidden, settings)
}

/// The same of hidden states at the trained positions, `[trained, hidden]`.
fn score_hidden(
    ends: &DecoderEnds,
    batch: &MicroBatch,
    hidden: &Tensor,
    settings: HeadSettings,
) -> Result<Tensor> {
    let lm_head = |hidden: &Tensor| Ok(ends.lm_head(hidden)?);
    head::score(&lm_head, hidden, &batch.targets, settings)
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
