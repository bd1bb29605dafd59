//! Where tokens stand in their sequences, as the layers need it.

use tch::{Device, Kind, TchError, Tensor};

use crate::config::ModelConfig;
use crate::error::Result;
use crate::segments::Segments;

/// Turns positions into rotations, for one model on one device.
#[derive(Debug)]
pub struct Positions {
    /// Radians per position, f32 `[head_dim / 2]`.
    frequencies: Tensor,
    /// What cosines and sines are multiplied by.
    attention_factor: Option<f64>,
    kind: Kind,
}

/// Cosines and sines `[tokens, 1, head_dim / 2]` of one forward pass, shared by all layers.
pub(crate) struct Rotary {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

/// What a layer needs to know of a packed batch besides its hidden states.
pub struct Packing {
    pub(crate) rotary: Rotary,
    pub(crate) segments: Segments,
}

impl Positions {
    /// Of a model whose activations have the type `kind`.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn new(config: &ModelConfig, device: Device, kind: Kind) -> Result<Self> {
        let frequencies = config.rope.frequencies(config.head_dim)?;
        Ok(Self {
            frequencies: frequencies.f_to_device(device)?,
            attention_factor: config.rope.attention_factor(),
            kind,
        })
    }

    /// Of the tokens of a packed batch.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn packing(&self, segments: &Segments) -> Result<Packing> {
        Ok(Packing {
            rotary: self.rotary(&segments.positions())?,
            segments: segments.clone(),
        })
    }

    fn rotary(&self, positions: &[i64]) -> Result<Rotary, TchError> {
        self.rotary_at(&Tensor::from_slice(positions).f_to_device(self.frequencies.device())?)
    }

    /// Rotations of positions i64 `[tokens]` on the device of the model.
    /// Cosines and sines `[num_positions, head_dim / 2]` of the positions from 0 on, row by row.
    pub(crate) fn table(&self, num_positions: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let count = i64::try_from(num_positions).unwrap_or(i64::MAX);
        let positions = Tensor::f_arange(count, (Kind::Int64, self.frequencies.device()))?;
        let rotary = self.rotary_at(&positions)?;
        let values = |tensor: &Tensor| -> Result<Vec<f32>, TchError> {
            Vec::try_from(tensor.f_to_kind(Kind::Float)?.f_flatten(0, -1)?)
        };
        Ok((values(&rotary.cos)?, values(&rotary.sin)?))
    }

    pub(crate) fn rotary_at(&self, positions: &Tensor) -> Result<Rotary, TchError> {
        let positions = positions.f_to_kind(Kind::Float)?;
        let angles = positions.f_outer(&self.frequencies)?.f_unsqueeze(1)?;
        let scaled = |values: Tensor| {
            match self.attention_factor {
                Some(factor) => values * factor,
                None => values,
            }
            .f_to_kind(self.kind)
        };
        Ok(Rotary {
            cos: scaled(angles.f_cos()?)?,
            sin: scaled(angles.f_sin()?)?,
        })
    }
}

impl Rotary {
    /// Rotates `[tokens, heads, head_dim]` by position, halves paired as in Hugging Face's `rotate_half`.
    pub(crate) fn apply(&self, heads: &Tensor) -> Result<Tensor, TchError> {
        let halves = heads.f_chunk(2, -1)?;
        let (first, second) = (&halves[0], &halves[1]);
        Tensor::f_cat(
            &[
                first.f_mul(&self.cos)?.f_sub(&second.f_mul(&self.sin)?)?,
                second.f_mul(&self.cos)?.f_add(&first.f_mul(&self.sin)?)?,
            ],
            -1,
        )
    }
}

impl std::fmt::Debug for Packing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packing")
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}
