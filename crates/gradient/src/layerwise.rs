//! Forward and backward pass of micro-batches, layer by layer.
//!
//! Each layer has a forward and a backward pass of its own. So gradients of a layer are complete at a known moment, when the exchange
//! between ranks can begin with them, and a layer's parameters are needed for a known time, which is when they are gathered. The
//! gradient is that of one backward pass through all layers.
//!
//! Layers are the outer loop and micro-batches the inner one, so that what is gathered serves a whole round.

use asyncthink_model::{DecoderEnds, DecoderLayer, Packing, SavedActivations};
use tch::Tensor;

use crate::error::{Error, Result};
use crate::layers::{LayerSource, Pass, Round};
use crate::micro_batch::MicroBatch;

/// A micro-batch on its way through the layers.
struct Activations<'a> {
    batch: &'a MicroBatch,
    packing: Packing,
    /// Whether the embedding is trained: below the first layer of a model whose embedding is not, nothing asks for a gradient.
    trains_embedding: bool,
    /// Hidden states after the layers so far, `[tokens, hidden]`.
    hidden: Tensor,
    /// What the layers so far need for their backward pass.
    saved: Vec<Saved>,
    /// Gradient of `hidden` on the way back; `None` where nothing below is trained.
    gradient: Option<Tensor>,
}

/// What a layer's backward pass needs.
enum Saved {
    Activations(SavedActivations),
    /// The layer's input, from which the rest is computed again.
    Input(Tensor),
}

/// What is kept of the forward pass for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Every layer's activations.
    Activations,
    /// Every layer's input; the layer is computed again (activation checkpointing).
    Inputs,
    /// Nothing: there is no backward pass.
    Nothing,
}

impl<'a> Activations<'a> {
    fn new(layers: &dyn LayerSource, ends: &DecoderEnds, batch: &'a MicroBatch) -> Result<Self> {
        Ok(Self {
            packing: layers.packing(&batch.segments)?,
            hidden: ends.embed(&batch.ids)?,
            trains_embedding: ends.trains_embedding(),
            batch,
            saved: Vec::new(),
            gradient: None,
        })
    }

    fn wants_input(&self, layer: usize) -> bool {
        layer > 0 || self.trains_embedding
    }

    fn forward(&mut self, index: usize, layer: &DecoderLayer, keep: Keep) -> Result<()> {
        let saved = match keep {
            Keep::Activations => {
                let wants_input = self.wants_input(index);
                let (output, saved) =
                    layer.forward_saving(&self.hidden, &self.packing, wants_input)?;
                self.hidden = output;
                Saved::Activations(saved)
            }
            Keep::Inputs | Keep::Nothing => {
                let output = layer.forward(&self.hidden, &self.packing)?;
                Saved::Input(std::mem::replace(&mut self.hidden, output))
            }
        };
        if keep != Keep::Nothing {
            self.saved.push(saved);
        }
        Ok(())
    }

    fn backward(&mut self, index: usize, layer: &DecoderLayer) -> Result<()> {
        let (Some(saved), Some(gradient)) = (self.saved.pop(), self.gradient.take()) else {
            return Err(Error::stage(
                "going back through the layers",
                format!("nothing was kept of layer {index}"),
            ));
        };
        let wants_input = self.wants_input(index);
        let saved = match saved {
            Saved::Activations(saved) => saved,
            Saved::Input(input) => layer.forward_saving(&input, &self.packing, wants_input)?.1,
        };
        self.gradient = layer.backward(saved, &self.packing, &gradient, wants_input)?;
        Ok(())
    }

    /// Hidden states at the trained positions, before the final norm, `[trained, hidden]`.
    fn selected(&self) -> Result<Tensor> {
        self.batch.select_trained(&self.hidden)
    }

    /// The way back from the ends: `gradient` `[trained, hidden]` is that of [`Self::selected`].
    fn begin_backward(&mut self, gradient: &Tensor) -> Result<()> {
        let mut all = self.hidden.f_zeros_like()?;
        // A hidden state may predict tokens of several rows.
        let _ = all.f_index_add_(0, &self.batch.positions, gradient)?;
        self.hidden = Tensor::new();
        self.gradient = Some(all);
        Ok(())
    }
}

/// Adds the gradients of micro-batches to those of the parameters.
///
/// `head` gets the place of a micro-batch, the ends, and its hidden states at the trained positions after the final norm, `[trained,
/// hidden]`; it computes the loss, adds the gradient of the output head, and returns that of the hidden states.
///
/// # Errors
/// When libtorch refuses an operation, a rank is lost, or `head` fails.
pub(crate) fn add_gradients(
    layers: &mut dyn LayerSource,
    batches: &[&MicroBatch],
    keep: Keep,
    is_last: bool,
    head: &mut dyn FnMut(usize, &DecoderEnds, &Tensor) -> Result<Tensor>,
) -> Result<()> {
    let ends = layers.begin(Round::Train { is_last })?;
    let num_layers = layers.config().num_hidden_layers;
    let mut activations = activations_of(layers, &ends, batches)?;
    for index in 0..num_layers {
        layers.with_layer(index, Pass::Forward, &mut |layer| {
            let mut activations = activations.iter_mut();
            activations.try_for_each(|activation| activation.forward(index, layer, keep))
        })?;
    }
    for (index, activation) in activations.iter_mut().enumerate() {
        let normed = ends.normed(activation.selected()?)?;
        let gradient = head(index, &ends, &normed.output)?;
        activation.begin_backward(&ends.norm_backward(&normed, &gradient)?)?;
    }
    for index in (0..num_layers).rev() {
        layers.with_layer(index, Pass::Backward, &mut |layer| {
            let mut activations = activations.iter_mut();
            activations.try_for_each(|activation| activation.backward(index, layer))
        })?;
    }
    for activation in &activations {
        if let Some(gradient) = &activation.gradient {
            ends.embed_backward(&activation.batch.ids, gradient)?;
        }
    }
    layers.end()
}

/// What `head` makes of the hidden states of each micro-batch at the trained positions, `[trained, hidden]`; without gradients.
///
/// # Errors
/// As [`add_gradients`].
pub(crate) fn score<T>(
    layers: &mut dyn LayerSource,
    batches: &[&MicroBatch],
    head: &mut dyn FnMut(&MicroBatch, &DecoderEnds, &Tensor) -> Result<T>,
) -> Result<Vec<T>> {
    let _no_grad = tch::no_grad_guard();
    let ends = layers.begin(Round::Score)?;
    let mut activations = activations_of(layers, &ends, batches)?;
    for index in 0..layers.config().num_hidden_layers {
        layers.with_layer(index, Pass::Forward, &mut |layer| {
            let mut activations = activations.iter_mut();
            activations.try_for_each(|activation| activation.forward(index, layer, Keep::Nothing))
        })?;
    }
    let scores = activations
        .iter()
        .map(|activation| {
            let normed = ends.normed(activation.selected()?)?;
            head(activation.batch, &ends, &normed.output)
        })
        .collect();
    layers.end()?;
    scores
}

fn activations_of<'a>(
    layers: &dyn LayerSource,
    ends: &DecoderEnds,
    batches: &[&'a MicroBatch],
) -> Result<Vec<Activations<'a>>> {
    let _no_grad = tch::no_grad_guard();
    batches
        .iter()
        .map(|batch| Activations::new(layers, ends, batch))
        .collect()
}

#[cfg(test)]
mod tests {
    use asyncthink_data::{TokenId, TrainingRow};
    use asyncthink_model::{Decoder, ModelConfig, ModelSizes};
    use tch::{Device, Kind};

    use super::*;
    use crate::layers::ReplicatedLayers;

    fn decoder(tie_word_embeddings: bool) -> Decoder {
        let config = ModelConfig::new(&ModelSizes {
            vocab_size: 40,
            hidden_size: 24,
            intermediate_size: 48,
            num_layers: 3,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 12,
            rope_theta: 10_000.0,
            max_position_embeddings: 64,
            tie_word_embeddings,
            eos_token_id: 0,
        });
        let mut decoder = Decoder::init(&config.unwrap(), Device::Cpu, 3).unwrap();
        decoder.set_requires_grad(true);
        decoder
    }

    fn batches() -> Vec<MicroBatch> {
        let ids = |range: std::ops::Range<u32>| range.map(TokenId).collect::<Vec<_>>();
        let row = |start: u32, length: u32| {
            TrainingRow::sft(&ids(start..start + 2), &ids(start + 2..start + length)).unwrap()
        };
        let rows = [row(1, 7), row(11, 5), row(20, 9)];
        let batch = |rows: &[TrainingRow]| {
            let weighed: Vec<_> = rows.iter().map(|row| (row, 1.0)).collect();
            MicroBatch::assemble(&weighed, Device::Cpu).unwrap()
        };
        vec![batch(&rows[..2]), batch(&rows[2..])]
    }

    fn loss(ends: &DecoderEnds, batch: &MicroBatch, hidden: &Tensor) -> Tensor {
        let logits = ends.lm_head(hidden).unwrap();
        logits.cross_entropy_for_logits(&batch.targets)
    }

    /// Adds the gradient of the head, and returns that of `hidden`.
    fn loss_gradient(ends: &DecoderEnds, batch: &MicroBatch, hidden: &Tensor) -> Tensor {
        let leaf = hidden.detach().set_requires_grad(true);
        loss(ends, batch, &leaf).backward();
        leaf.grad()
    }

    fn gradients(decoder: &Decoder) -> Vec<Tensor> {
        let parameters = decoder.named_parameters().iter();
        parameters.map(|(_, tensor)| tensor.grad().copy()).collect()
    }

    #[test]
    fn gradients_are_those_of_one_backward_pass() {
        for tied in [true, false] {
            let batches = batches();
            let plain = decoder(tied);
            for batch in &batches {
                let hidden = plain.hidden_packed(&batch.ids, &batch.segments).unwrap();
                let selected = batch.select_trained(&hidden).unwrap();
                loss(plain.ends(), batch, &selected).backward();
            }
            let expected = gradients(&plain);
            for keep in [Keep::Activations, Keep::Inputs] {
                for round in [1, 2] {
                    let decoder = decoder(tied);
                    let mut layers = ReplicatedLayers::new(&decoder, None);
                    for batches in batches.chunks(round) {
                        let batches: Vec<_> = batches.iter().collect();
                        add_gradients(
                            &mut layers,
                            &batches,
                            keep,
                            true,
                            &mut |index, ends, hidden| {
                                Ok(loss_gradient(ends, batches[index], hidden))
                            },
                        )
                        .unwrap();
                    }
                    for (a, b) in gradients(&decoder).iter().zip(&expected) {
                        assert!(a.allclose(b, 1e-5, 1e-7, false), "{keep:?} {round}");
                    }
                }
            }
        }
    }

    #[test]
    fn scores_are_those_of_the_decoder() {
        let (decoder, batches) = (decoder(true), batches());
        let mut layers = ReplicatedLayers::new(&decoder, None);
        let all: Vec<_> = batches.iter().collect();
        let scores = score(&mut layers, &all, &mut |batch, ends, hidden| {
            Ok(loss(ends, batch, hidden).f_double_value(&[])?)
        })
        .unwrap();
        for (batch, score) in batches.iter().zip(scores) {
            let hidden = decoder.hidden_packed(&batch.ids, &batch.segments).unwrap();
            let selected = batch.select_trained(&hidden).unwrap();
            let expected = loss(decoder.ends(), batch, &selected).double_value(&[]);
            assert!((score - expected).abs() < 1e-9);
        }
        let kind = decoder.named_parameters()[0].1.grad();
        assert!(
            !kind.defined()
                || kind.kind() == Kind::Float && kind.abs().max().double_value(&[]) == 0.0
        );
    }
}
