//! Forward and backward pass of a layer apart: by fused kernels where there are some, else by libtorch's graph.

use asyncthink_torch::{
    LayerParameter, LayerTensors, PackedSegments, SavedLayer, backward_with_grad,
};
use tch::Tensor;

use super::{DecoderLayer, Linear};
use crate::attention::registry::default_backend;
use crate::error::{Error, Result};
use crate::positions::Packing;

/// Activations of a layer that its backward pass needs.
#[derive(Debug)]
pub enum SavedActivations {
    /// Of the fused kernels.
    Fused(SavedLayer),
    /// The graph from a leaf to the output.
    Graph {
        /// Where the graph begins.
        leaf: Tensor,
        /// Hidden states after the layer.
        output: Tensor,
    },
}

impl DecoderLayer {
    /// Hidden states after the layer, `[tokens, hidden]`, without a graph.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward(&self, hidden: &Tensor, packing: &Packing) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        match self.fused() {
            Some(layer) => Ok(layer.forward(hidden, &segments(packing))?),
            None => self.forward_packed(hidden, packing),
        }
    }

    /// As [`Self::forward`], with what [`Self::backward`] needs. `wants_input` says whether the gradient of `hidden` will be wanted.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward_saving(
        &self,
        hidden: &Tensor,
        packing: &Packing,
        wants_input: bool,
    ) -> Result<(Tensor, SavedActivations)> {
        if let Some(layer) = self.fused() {
            let (output, saved) = layer.forward_saving(hidden, &segments(packing))?;
            return Ok((output, SavedActivations::Fused(saved)));
        }
        let leaf = hidden.f_detach()?.f_set_requires_grad(wants_input)?;
        let output = self.forward_packed(&leaf, packing)?;
        let hidden = output.f_detach()?;
        Ok((hidden, SavedActivations::Graph { leaf, output }))
    }

    /// Adds gradients of the parameters that are trained to theirs, from that of the layer's output `[tokens, hidden]`; returns that
    /// of the input if `wants_input`, which `forward_saving` was told too.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn backward(
        &self,
        saved: SavedActivations,
        packing: &Packing,
        gradient: &Tensor,
        wants_input: bool,
    ) -> Result<Option<Tensor>> {
        match (saved, self.fused()) {
            (SavedActivations::Fused(saved), Some(layer)) => {
                Ok(layer.backward(saved, gradient, &segments(packing), wants_input)?)
            }
            (SavedActivations::Fused(_), None) => Err(Error::Config(
                "a layer's activations were saved by another layer".to_owned(),
            )),
            (SavedActivations::Graph { leaf, output }, _) => {
                backward_with_grad(&output, gradient)?;
                Ok(wants_input.then(|| leaf.grad()))
            }
        }
    }

    /// The layer as the fused kernels take it; `None` where they do not compute what it does.
    fn fused(&self) -> Option<LayerTensors<'_>> {
        use LayerParameter as P;
        let linears = [
            (&self.query, P::Query, P::QueryBias),
            (&self.key, P::Key, P::KeyBias),
            (&self.value, P::Value, P::ValueBias),
            (&self.output, P::Output, P::OutputBias),
            (&self.gate, P::Gate, P::GateBias),
            (&self.up, P::Up, P::UpBias),
            (&self.down, P::Down, P::DownBias),
        ];
        let has_adapter = |linear: &Linear| linear.adapter.is_some();
        if linears.iter().any(|(linear, ..)| has_adapter(linear))
            || self.attention.name() != default_backend().name()
            || !LayerTensors::serves(
                self.input_norm.device(),
                self.input_norm.kind(),
                self.head_dim,
            )
        {
            return None;
        }
        let mut layer = LayerTensors::new(self.head_dim, self.eps);
        for (linear, weight, bias) in linears {
            layer.set(weight, Some(&linear.weight));
            layer.set(bias, linear.bias.as_ref());
        }
        layer.set(P::InputNorm, Some(&self.input_norm));
        layer.set(P::PostNorm, Some(&self.post_norm));
        if let Some([query, key]) = &self.query_key_norm {
            layer.set(P::QueryNorm, Some(query));
            layer.set(P::KeyNorm, Some(key));
        }
        Some(layer)
    }
}

fn segments(packing: &Packing) -> PackedSegments<'_> {
    PackedSegments {
        lens: packing.segments.lens(),
        prefixes: packing.segments.prefixes(),
        cos: &packing.rotary.cos,
        sin: &packing.rotary.sin,
    }
}
