//! A decoder layer.
#![expect(unsafe_code, reason = "calls the C++ side")]

use std::ptr::{null, null_mut};

use tch::{Device, Kind, Tensor};

use super::pointer;
use crate::autograd::gradient_of;
use crate::cuda_kernels::Kernels;
use crate::error::{Error, Result};
use crate::ffi::{self, NUM_LAYER_PARAMETERS, RawLayer, RawSavedLayer};

/// Parameters of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum LayerParameter {
    /// Norm before attention `[hidden]`.
    InputNorm,
    /// Query projection `[heads * head_dim, hidden]`.
    Query,
    /// Bias of the queries.
    QueryBias,
    /// Key projection `[kv_heads * head_dim, hidden]`.
    Key,
    /// Bias of the keys.
    KeyBias,
    /// Value projection `[kv_heads * head_dim, hidden]`.
    Value,
    /// Bias of the values.
    ValueBias,
    /// Norm of each query head `[head_dim]`.
    QueryNorm,
    /// Norm of each key head `[head_dim]`.
    KeyNorm,
    /// Output projection of attention `[hidden, heads * head_dim]`.
    Output,
    /// Bias of the output projection.
    OutputBias,
    /// Norm before the feed-forward block `[hidden]`.
    PostNorm,
    /// Gate projection `[intermediate, hidden]`.
    Gate,
    /// Bias of the gate.
    GateBias,
    /// Up projection `[intermediate, hidden]`.
    Up,
    /// Bias of the up projection.
    UpBias,
    /// Down projection `[hidden, intermediate]`.
    Down,
    /// Bias of the down projection.
    DownBias,
}

/// Segments of a packed batch, and the rotation of every token.
#[derive(Clone, Copy, Debug)]
pub struct PackedSegments<'a> {
    /// Tokens of each segment.
    pub lens: &'a [i64],
    /// The segment before it that a segment continues, -1 for none; empty if no segment does.
    pub prefixes: &'a [i64],
    /// Cosines `[tokens, .., head_dim / 2]`.
    pub cos: &'a Tensor,
    /// Sines, likewise.
    pub sin: &'a Tensor,
}

impl PackedSegments<'_> {
    fn check(&self) -> Result<()> {
        if self.prefixes.is_empty() || self.prefixes.len() == self.lens.len() {
            return Ok(());
        }
        Err(Error::Argument {
            op: "layer",
            argument: "prefixes",
            expected: format!("{} segments", self.lens.len()),
            got: self.prefixes.len().to_string(),
        })
    }
}

/// Tensors of a decoder layer of the Llama and Qwen families.
#[derive(Debug)]
pub struct LayerTensors<'a> {
    parameters: [Option<&'a Tensor>; NUM_LAYER_PARAMETERS],
    head_dim: i64,
    eps: f64,
}

/// Activations of a layer that its backward pass needs.
#[derive(Debug)]
pub struct SavedLayer(*mut RawSavedLayer);

impl Drop for SavedLayer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the C++ side, which nobody else frees.
        unsafe { ffi::asyncthink_layer_free(self.0) };
    }
}

impl<'a> LayerTensors<'a> {
    /// A layer with heads of `head_dim` values, whose norms add `eps`.
    pub fn new(head_dim: i64, eps: f64) -> Self {
        Self {
            parameters: [None; NUM_LAYER_PARAMETERS],
            head_dim,
            eps,
        }
    }

    /// Whether layers of this kind, with heads of `head_dim` values, on this device are computed by these passes: f32 and bf16 on the
    /// CPU; bf16 on a GPU whose kernels can be opened, which they are.
    pub fn serves(device: Device, kind: Kind, head_dim: i64) -> bool {
        match (device, kind) {
            (Device::Cpu, Kind::Float | Kind::BFloat16) => head_dim % 2 == 0,
            (Device::Cuda(_), Kind::BFloat16) if Kernels::supports(kind, head_dim) => {
                Kernels::open(device).map(Kernels::serve_training).is_ok()
            }
            _ => false,
        }
    }

    /// Adds a parameter that the layer has.
    pub fn set(&mut self, parameter: LayerParameter, tensor: Option<&'a Tensor>) {
        self.parameters[parameter as usize] = tensor;
    }

    /// Hidden states after the layer, `[tokens, hidden]`.
    ///
    /// # Errors
    /// For tensors of other shapes, kinds or devices.
    pub fn forward(&self, hidden: &Tensor, segments: &PackedSegments<'_>) -> Result<Tensor> {
        self.run_forward(hidden, segments, null_mut())
    }

    /// Hidden states after the layer, and what [`Self::backward`] needs.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_saving(
        &self,
        hidden: &Tensor,
        segments: &PackedSegments<'_>,
    ) -> Result<(Tensor, SavedLayer)> {
        let mut saved = null_mut();
        let output = self.run_forward(hidden, segments, &raw mut saved)?;
        Ok((output, SavedLayer(saved)))
    }

    fn run_forward(
        &self,
        hidden: &Tensor,
        segments: &PackedSegments<'_>,
        saved: *mut *mut RawSavedLayer,
    ) -> Result<Tensor> {
        const OP: &str = "layer_forward";
        let hidden = hidden.contiguous();
        let gradients = [const { None }; NUM_LAYER_PARAMETERS];
        let raw = self.raw(OP, &gradients, segments)?;
        let mut output = null_mut();
        // SAFETY: all pointers are of tensors and slices that live across the call, which checks shapes and kinds; on success
        // `output` is a tensor that nobody else owns.
        unsafe {
            let message = ffi::asyncthink_layer_forward(
                &raw const raw,
                hidden.as_ptr(),
                &raw mut output,
                saved,
            );
            ffi::check(OP, message)?;
            Ok(Tensor::from_ptr(output))
        }
    }

    /// Adds the gradients of the parameters that are trained to theirs, and returns that of the layer's input if `wants_input`.
    /// `gradient` `[tokens, hidden]` is that of the layer's output.
    ///
    /// # Errors
    /// For tensors of other shapes, kinds or devices.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the C++ side uses up what was saved"
    )]
    pub fn backward(
        &self,
        saved: SavedLayer,
        gradient: &Tensor,
        segments: &PackedSegments<'_>,
        wants_input: bool,
    ) -> Result<Option<Tensor>> {
        const OP: &str = "layer_backward";
        let gradient = gradient.contiguous();
        let mut gradients = [const { None }; NUM_LAYER_PARAMETERS];
        for (place, parameter) in gradients.iter_mut().zip(self.parameters) {
            *place = parameter.map(gradient_of).transpose()?.flatten();
        }
        let raw = self.raw(OP, &gradients, segments)?;
        let mut input = null_mut();
        let input_place = if wants_input {
            &raw mut input
        } else {
            null_mut()
        };
        // SAFETY: as in `run_forward`; `saved` is alive, and freed by its owner after the call.
        unsafe {
            let message = ffi::asyncthink_layer_backward(
                &raw const raw,
                saved.0,
                gradient.as_ptr(),
                input_place,
            );
            ffi::check(OP, message)?;
            Ok(wants_input.then(|| Tensor::from_ptr(input)))
        }
    }

    fn raw(
        &self,
        op: &'static str,
        gradients: &[Option<Tensor>; NUM_LAYER_PARAMETERS],
        segments: &PackedSegments<'_>,
    ) -> Result<RawLayer> {
        use LayerParameter as P;
        segments.check()?;
        let needed = [
            P::InputNorm,
            P::Query,
            P::Key,
            P::Value,
            P::Output,
            P::PostNorm,
            P::Gate,
            P::Up,
            P::Down,
        ];
        if needed
            .iter()
            .any(|&parameter| self.parameters[parameter as usize].is_none())
        {
            return Err(Error::torch(op, "a parameter of the layer is missing"));
        }
        Ok(RawLayer {
            parameters: self.parameters.map(pointer),
            gradients: std::array::from_fn(|index| pointer(gradients[index].as_ref())),
            head_dim: self.head_dim,
            eps: self.eps,
            cos: segments.cos.as_ptr(),
            sin: segments.sin.as_ptr(),
            lens: segments.lens.as_ptr(),
            prefixes: if segments.prefixes.is_empty() {
                null()
            } else {
                segments.prefixes.as_ptr()
            },
            num_segments: i64::try_from(segments.lens.len()).unwrap_or(i64::MAX),
        })
    }
}

/// Causal attention inside each segment of a packed batch, where [`LayerTensors::serves`] them, with f32 sums; differentiable. A segment with a
/// prefix sees all tokens of that segment, and of its prefixes, before its own.
///
/// # Shapes
/// `query` `[tokens, heads, head_dim]`, `key` and `value` `[tokens, kv_heads, head_dim]`; the result is as `query`. `prefixes` is empty,
/// or has an earlier segment or -1 for each.
///
/// # Errors
/// For other shapes, kinds or devices, or segments that do not make up the tokens.
pub fn segment_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    lens: &[i64],
    prefixes: &[i64],
) -> Result<Tensor> {
    const OP: &str = "segment_attention";
    let (sizes, key_sizes) = (query.size(), key.size());
    let is_like = sizes.len() == 3
        && key_sizes.len() == 3
        && key_sizes == value.size()
        && sizes[0] == key_sizes[0]
        && sizes[2] == key_sizes[2]
        && key_sizes[1] > 0
        && sizes[1] % key_sizes[1] == 0;
    let kind = query.kind();
    let is_served = is_like
        && [query, key, value].iter().all(|tensor| {
            tensor.kind() == kind && LayerTensors::serves(tensor.device(), kind, sizes[2])
        });
    if !is_like || !is_served || !(prefixes.is_empty() || prefixes.len() == lens.len()) {
        return Err(Error::Argument {
            op: OP,
            argument: "key",
            expected: "f32 or bf16, `[tokens, kv_heads, head_dim]` like the queries".to_owned(),
            got: format!("{key_sizes:?} for queries {sizes:?}"),
        });
    }
    let mut out = null_mut();
    // SAFETY: the tensors and slices live across the call; on success `out` is a tensor that nobody else owns.
    unsafe {
        let message = ffi::asyncthink_segment_attention(
            query.as_ptr(),
            key.as_ptr(),
            value.as_ptr(),
            lens.as_ptr(),
            if prefixes.is_empty() {
                null()
            } else {
                prefixes.as_ptr()
            },
            i64::try_from(lens.len()).unwrap_or(i64::MAX),
            &raw mut out,
        );
        ffi::check(OP, message)?;
        Ok(Tensor::from_ptr(out))
    }
}
