//! The layers of a decoder in parts, gathered one ahead of the computation.
//!
//! Two buffers hold two layers: the one that is computed with, and the next one, which arrives in the meantime. Two more hold
//! gradients: those that are computed, and those of the layer before, which are being summed over the ranks. The root unit
//! (embedding, final norm, head) is gathered for a whole round. The layer that ends the forward pass begins the backward pass
//! and is gathered once.

use asyncthink_model::{DecoderEnds, ModelConfig, Packing, Segments};
use asyncthink_torch::Work;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::layers::{LayerSource, Pass, Round, UseLayer};
use asyncthink_distributed::ShardedDecoder;
use asyncthink_distributed::flat::{ROOT, narrow, signed, unit_of_layer};

/// A sum of gradients under way.
struct Reduction {
    unit: usize,
    /// This rank's part of the sum, f32.
    sum: Tensor,
    work: Work<'static>,
}

/// A layer that is gathered, or on its way.
struct Gathered {
    index: usize,
    /// Which of the buffers it is in.
    slot: usize,
    /// `None` once it is there.
    work: Option<Work<'static>>,
}

pub(crate) struct ShardedLayers<'a> {
    decoder: &'a ShardedDecoder,
    /// Of the weights' type, each as long as the longest layer.
    layers: [Tensor; 2],
    /// f32, each as long as the longest layer.
    gradients: Option<[Tensor; 2]>,
    /// The root unit's values, and its gradients in f32.
    root: Option<(Tensor, Option<Tensor>)>,
    here: Option<Gathered>,
    next: Option<Gathered>,
    /// The gradients in each buffer that are being summed, and those of the root.
    reducing: [Option<Reduction>; 3],
}

/// Where the root's reduction is kept.
const ROOT_SLOT: usize = 2;

impl<'a> ShardedLayers<'a> {
    pub(crate) fn new(decoder: &'a ShardedDecoder) -> Result<Self> {
        let layers = 0..decoder.config().num_hidden_layers;
        let longest = layers
            .map(|index| decoder.cuts().padded_elements(unit_of_layer(index)))
            .max()
            .unwrap_or(0);
        let buffer = |kind| Tensor::f_zeros([signed(longest)], (kind, decoder.device()));
        let is_trained = decoder.own_gradients().numel() > 0;
        Ok(Self {
            decoder,
            layers: [buffer(decoder.kind())?, buffer(decoder.kind())?],
            gradients: if is_trained {
                Some([buffer(Kind::Float)?, buffer(Kind::Float)?])
            } else {
                None
            },
            root: None,
            here: None,
            next: None,
            reducing: [None, None, None],
        })
    }

    /// The layer that is asked for after `index`.
    fn after(&self, index: usize, pass: Pass) -> Option<usize> {
        match pass {
            Pass::Forward => {
                Some(index + 1).filter(|&next| next < self.decoder.config().num_hidden_layers)
            }
            Pass::Backward => index.checked_sub(1),
        }
    }

    fn start(&mut self, index: usize, slot: usize) -> Result<Gathered> {
        let work = self
            .decoder
            .start_gather(unit_of_layer(index), &self.layers[slot])?;
        Ok(Gathered {
            index,
            slot,
            work: Some(work),
        })
    }

    /// Waits for the layer `index` and starts to gather the one after it. Returns its slot.
    fn fetch(&mut self, index: usize, pass: Pass) -> Result<usize> {
        let mut here = match (self.here.take(), self.next.take()) {
            (Some(here), next) if here.index == index => {
                self.next = next;
                here
            }
            (_, Some(next)) if next.index == index => next,
            (None, None) => self.start(index, 0)?,
            _ => {
                return Err(Error::stage(
                    "gathering the weights",
                    format!("layer {index} was asked for out of turn"),
                ));
            }
        };
        if let Some(work) = here.work.take() {
            self.decoder.ranks().finish(work)?;
        }
        let slot = here.slot;
        self.here = Some(here);
        if let (Some(after), None) = (self.after(index, pass), &self.next) {
            self.next = Some(self.start(after, 1 - slot)?);
        }
        Ok(slot)
    }

    /// Starts to sum a unit's gradients over the ranks.
    fn start_reduction(&mut self, unit: usize, slot: usize, gradients: &Tensor) -> Result<()> {
        let decoder = self.decoder;
        let whole = narrow(gradients, &(0..decoder.cuts().padded_elements(unit)))?;
        let size = [signed(decoder.cuts().owned(unit).len())];
        let sum = Tensor::f_empty(size, (Kind::Float, decoder.device()))?;
        let work = decoder.ranks().reduce_scatter(&whole, &sum)?;
        self.reducing[slot] = Some(Reduction { unit, sum, work });
        Ok(())
    }

    /// Waits for a sum and adds it to what this rank owns.
    fn finish_reduction(&mut self, slot: usize) -> Result<()> {
        let Some(Reduction { unit, sum, work }) = self.reducing[slot].take() else {
            return Ok(());
        };
        self.decoder.ranks().finish(work)?;
        let own = self.decoder.cuts().owned(unit);
        let _no_grad = tch::no_grad_guard();
        let _ = narrow(self.decoder.own_gradients(), &own)?.f_add_(&sum)?;
        Ok(())
    }

    /// An empty buffer for a layer's gradients.
    fn gradient_buffer(&mut self, slot: usize) -> Result<Option<Tensor>> {
        self.finish_reduction(slot)?;
        let Some(buffers) = &mut self.gradients else {
            return Ok(None);
        };
        let _ = buffers[slot].f_zero_()?;
        Ok(Some(buffers[slot].shallow_clone()))
    }
}

impl LayerSource for ShardedLayers<'_> {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn packing(&self, segments: &Segments) -> Result<Packing> {
        Ok(self.decoder.positions().packing(segments)?)
    }

    fn begin(&mut self, round: Round) -> Result<DecoderEnds> {
        self.here = None;
        let decoder = self.decoder;
        let buffer = |kind| {
            let size = [signed(decoder.cuts().padded_elements(ROOT))];
            Tensor::f_zeros(size, (kind, decoder.device()))
        };
        let values = buffer(decoder.kind())?;
        let work = decoder.start_gather(ROOT, &values)?;
        if decoder.config().num_hidden_layers > 0 {
            self.next = Some(self.start(0, 0)?);
        }
        decoder.ranks().finish(work)?;
        let gradients = match round {
            Round::Train { .. } if self.gradients.is_some() => Some(buffer(Kind::Float)?),
            _ => None,
        };
        let ends = decoder.ends(&values, gradients.as_ref())?;
        self.root = Some((values, gradients));
        Ok(ends)
    }

    fn with_layer(&mut self, index: usize, pass: Pass, with: UseLayer<'_>) -> Result<()> {
        let slot = self.fetch(index, pass)?;
        let gradients = match pass {
            Pass::Forward => None,
            Pass::Backward => self.gradient_buffer(slot)?,
        };
        let layer = self
            .decoder
            .layer(index, &self.layers[slot], gradients.as_ref())?;
        with(&layer)?;
        match gradients {
            Some(gradients) => self.start_reduction(unit_of_layer(index), slot, &gradients),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        self.here = None;
        if let Some((_, Some(gradients))) = self.root.take() {
            self.start_reduction(ROOT, ROOT_SLOT, &gradients)?;
        }
        (0..self.reducing.len()).try_for_each(|slot| self.finish_reduction(slot))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    use asyncthink_data::{TokenId, TrainingRow};
    use asyncthink_model::{Decoder, ModelSizes};
    use asyncthink_torch::{GroupOptions, ProcessGroup, Store, StoreOptions};

    use tch::Device;

    use super::*;
    use crate::layers::ReplicatedLayers;
    use crate::layerwise::{Keep, add_gradients, score};
    use crate::micro_batch::MicroBatch;
    use asyncthink_distributed::Ranks;
    use asyncthink_distributed::Sharding;
    use asyncthink_distributed::{AdamW, AdamWSettings, StateOptions};

    const SEED: u64 = 5;
    const SETTINGS: AdamWSettings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-3,
        weight_decay: 0.1,
    };

    fn config() -> ModelConfig {
        ModelConfig::new(&ModelSizes {
            vocab_size: 30,
            hidden_size: 24,
            intermediate_size: 40,
            num_layers: 5,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 12,
            rope_theta: 10_000.0,
            max_position_embeddings: 64,
            tie_word_embeddings: true,
            eos_token_id: 0,
        })
        .unwrap()
    }

    /// The micro-batches of a rank: a third rank has fewer.
    fn batches(share: std::ops::Range<usize>) -> Vec<MicroBatch> {
        let row = |index: usize| {
            let token =
                |position: usize| TokenId(u32::try_from((index * 7 + position) % 30).unwrap());
            let ids: Vec<TokenId> = (0..6 + index).map(token).collect();
            TrainingRow::sft(&ids[..2], &ids[2..]).unwrap()
        };
        share
            .map(|index| MicroBatch::assemble(&[(&row(index), 1.0)], Device::Cpu).unwrap())
            .collect()
    }

    fn loss(ends: &DecoderEnds, batch: &MicroBatch, hidden: &Tensor) -> Tensor {
        let logits = ends.lm_head(hidden).unwrap();
        let logp = logits.log_softmax(-1, Kind::Float);
        -logp
            .gather(-1, &batch.targets.unsqueeze(-1), false)
            .sum(Kind::Float)
    }

    /// Adds the gradient of the head, and returns that of `hidden`.
    fn loss_gradient(ends: &DecoderEnds, batch: &MicroBatch, hidden: &Tensor) -> Tensor {
        let leaf = hidden.detach().set_requires_grad(true);
        loss(ends, batch, &leaf).backward();
        leaf.grad()
    }

    /// One pass over `batches` in rounds of two; returns the loss of each.
    fn pass(layers: &mut dyn LayerSource, batches: &[MicroBatch], num_rounds: usize) -> Vec<f64> {
        let mut losses = Vec::new();
        for round in 0..num_rounds {
            let cut = |index: usize| (index * 2).min(batches.len());
            let batches: Vec<_> = batches[cut(round)..cut(round + 1)].iter().collect();
            let scores = score(layers, &batches, &mut |batch, ends, hidden| {
                Ok(loss(ends, batch, hidden).double_value(&[]))
            });
            losses.extend(scores.unwrap());
            let is_last = round + 1 == num_rounds;
            add_gradients(
                layers,
                &batches,
                Keep::Inputs,
                is_last,
                &mut |index, ends, hidden| Ok(loss_gradient(ends, batches[index], hidden)),
            )
            .unwrap();
        }
        losses
    }

    /// Two updates; returns norms, losses of the rank's share, all weights, and the bytes of weights and moments it holds.
    fn two_updates(ranks: &Arc<Ranks>) -> (Vec<f64>, Vec<f64>, Vec<Tensor>, [usize; 2]) {
        let sharding = Sharding {
            ranks: Arc::clone(ranks),
            device: Device::Cpu,
            micro_batches_per_gather: 2,
            kind: Kind::Float,
        };
        let decoder = Rc::new(ShardedDecoder::init(&config(), SEED, sharding).unwrap());
        let mut optimizer = AdamW::of_sharded(
            &decoder,
            SETTINGS,
            Arc::clone(ranks),
            StateOptions::default(),
        )
        .unwrap();
        let own = batches(ranks.share_of(7));
        let (mut norms, mut losses) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            optimizer.zero_grad();
            let mut layers = ShardedLayers::new(&decoder).unwrap();
            losses = pass(
                &mut layers,
                &own,
                7_usize.div_ceil(ranks.world_size()).div_ceil(2),
            );
            norms.push(optimizer.clip_grad_norm(1.0).unwrap());
            optimizer.step(0.01).unwrap();
        }
        assert_eq!(decoder.first_non_finite().unwrap(), None);
        assert_eq!(optimizer.first_non_finite().unwrap(), None);
        let on_first = decoder.own_on_first_rank().unwrap();
        assert_eq!(on_first.is_some(), ranks.is_first());
        let weights_of = |decoder: &Decoder| -> Vec<Tensor> {
            let named = decoder.named_parameters().iter();
            named.map(|(_, tensor)| tensor.copy()).collect()
        };
        let weights = weights_of(&decoder.gather().unwrap());
        if let Some(first) = on_first {
            assert_eq!(weights_of(&first), weights);
        }
        let held = [decoder.held_bytes(), optimizer.moment_bytes()];
        (norms, losses, weights, held)
    }

    fn whole_updates() -> (Vec<f64>, Vec<f64>, Vec<Tensor>) {
        let mut decoder = Decoder::init(&config(), Device::Cpu, SEED).unwrap();
        decoder.set_requires_grad(true);
        let parameters = decoder.trained_parameters();
        let mut optimizer = AdamW::new(parameters, SETTINGS, Arc::default(), 1 << 20).unwrap();
        let (mut norms, mut losses) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            optimizer.zero_grad();
            losses = pass(
                &mut ReplicatedLayers::new(&decoder, None),
                &batches(0..7),
                4,
            );
            norms.push(optimizer.clip_grad_norm(1.0).unwrap());
            optimizer.step(0.01).unwrap();
        }
        let named = decoder.named_parameters().iter();
        (
            norms,
            losses,
            named.map(|(_, tensor)| tensor.detach().copy()).collect(),
        )
    }

    fn in_world<T: Send>(world_size: usize, run: impl Fn(&Arc<Ranks>) -> T + Sync) -> Vec<T> {
        let store = Store::serve("127.0.0.1", 0, &StoreOptions::default()).unwrap();
        let (port, run) = (store.port(), &run);
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..world_size)
                .map(|rank| {
                    scope.spawn(move || {
                        let options = StoreOptions::default();
                        let store = Store::connect("127.0.0.1", port, &options).unwrap();
                        let options = GroupOptions {
                            rank,
                            world_size,
                            timeout: Duration::from_mins(1),
                            name: "parts".to_owned(),
                            store_rank: None,
                        };
                        let group = ProcessGroup::new(&store, Device::Cpu, &options).unwrap();
                        let ranks = Arc::new(Ranks::new(group));
                        let result = run(&ranks);
                        ranks.part().unwrap();
                        result
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn parts_compute_what_the_whole_computes_in_a_share_of_the_memory() {
        let (norms, losses, weights) = whole_updates();
        let all_bytes = 4 * usize::try_from(config().num_parameters()).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs();
        for world_size in [1, 2, 3] {
            let results = in_world(world_size, two_updates);
            let all_losses = results.iter().flat_map(|(_, losses, ..)| losses);
            assert_eq!(all_losses.clone().count(), losses.len());
            assert!(all_losses.zip(&losses).all(|(a, b)| close(*a, *b)));
            for (rank_norms, _, rank_weights, [weight_bytes, moment_bytes]) in &results {
                assert!(rank_norms.iter().zip(&norms).all(|(a, b)| close(*a, *b)));
                for (a, b) in rank_weights.iter().zip(&weights) {
                    assert!(a.allclose(b, 1e-4, 1e-6, false));
                }
                // Up to the padding: less than 64 bytes of each parameter, and 64 of each rank's part of a unit.
                let padding_bytes = 64 * (weights.len() + 6 * world_size);
                assert_eq!(*moment_bytes, 2 * weight_bytes);
                assert!(*weight_bytes >= all_bytes / world_size);
                assert!(*weight_bytes <= (all_bytes + padding_bytes) / world_size + 1);
            }
        }
    }

    #[test]
    fn layers_out_of_turn_are_refused() {
        let sharding = Sharding {
            ranks: Arc::default(),
            device: Device::Cpu,
            micro_batches_per_gather: 1,
            kind: Kind::Float,
        };
        let decoder = ShardedDecoder::init(&config(), SEED, sharding).unwrap();
        let mut layers = ShardedLayers::new(&decoder).unwrap();
        layers.begin(Round::Score).unwrap();
        let mut nothing = |_: &asyncthink_model::DecoderLayer| Ok(());
        layers.with_layer(0, Pass::Forward, &mut nothing).unwrap();
        let error = layers
            .with_layer(3, Pass::Forward, &mut nothing)
            .unwrap_err();
        assert!(error.to_string().contains("layer 3"), "{error}");
    }
}
