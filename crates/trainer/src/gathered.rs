//! The layers of a decoder in parts, gathered one ahead of the computation.
//!
//! Two buffers hold two layers: the one that is computed with, and the next one, which arrives in the meantime. Two more hold
//! gradients: those that are computed, and those of the layer before, which are being summed over the ranks. The root unit
//! (embedding, final norm, head) is gathered for a whole round. The layer that ends the forward pass begins the backward pass
//! and is gathered once.

use asyncthink_model::{DecoderEnds, ModelConfig, Packing};
use asyncthink_torch::Work;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::flat::{ROOT, signed, stretch, unit_of_layer};
use crate::sharded::ShardedDecoder;
use crate::units::{Pass, Round, Units, UseLayer};

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

pub(crate) struct GatheredUnits<'a> {
    decoder: &'a ShardedDecoder,
    /// f32, each as long as the longest layer.
    layers: [Tensor; 2],
    gradients: Option<[Tensor; 2]>,
    /// The root unit's values and gradients.
    root: Option<(Tensor, Option<Tensor>)>,
    round: Round,
    here: Option<Gathered>,
    next: Option<Gathered>,
    /// The gradients in each buffer that are being summed, and those of the root.
    reducing: [Option<Reduction>; 3],
}

/// Where the root's reduction is kept.
const ROOT_SLOT: usize = 2;

impl<'a> GatheredUnits<'a> {
    pub(crate) fn new(decoder: &'a ShardedDecoder) -> Result<Self> {
        let layers = 0..decoder.config().num_hidden_layers;
        let longest = layers
            .map(|index| decoder.cuts().padded_elements(unit_of_layer(index)))
            .max()
            .unwrap_or(0);
        let buffer = || Tensor::f_zeros([signed(longest)], (Kind::Float, decoder.device()));
        let is_trained = decoder.own_gradients().numel() > 0;
        Ok(Self {
            decoder,
            layers: [buffer()?, buffer()?],
            gradients: if is_trained {
                Some([buffer()?, buffer()?])
            } else {
                None
            },
            root: None,
            round: Round::Score,
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
        let whole = stretch(gradients, &(0..decoder.cuts().padded_elements(unit)))?;
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
        let _ = stretch(self.decoder.own_gradients(), &own)?.f_add_(&sum)?;
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

impl Units for GatheredUnits<'_> {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn device(&self) -> Device {
        self.decoder.device()
    }

    fn packing(&self, segment_lens: &[i64]) -> Result<Packing> {
        Ok(self.decoder.positions().packing(segment_lens)?)
    }

    fn begin(&mut self, round: Round) -> Result<DecoderEnds> {
        self.round = round;
        self.here = None;
        let decoder = self.decoder;
        let buffer = || {
            let size = [signed(decoder.cuts().padded_elements(ROOT))];
            Tensor::f_zeros(size, (Kind::Float, decoder.device()))
        };
        let values = buffer()?;
        let work = decoder.start_gather(ROOT, &values)?;
        if decoder.config().num_hidden_layers > 0 {
            self.next = Some(self.start(0, 0)?);
        }
        decoder.ranks().finish(work)?;
        let gradients = match round {
            Round::Train { .. } => Some(buffer()?),
            Round::Score => None,
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
