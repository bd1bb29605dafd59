//! Number types of weights, activations and sums.

use tch::Kind;

use crate::error::{Error, Result};

/// The number types of a model: f32 throughout, or bf16 for what computes and f32 for what is updated and summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    compute: Kind,
    master: Kind,
    reduce: Kind,
}

impl Default for Precision {
    fn default() -> Self {
        Self::F32
    }
}

impl Precision {
    /// f32 throughout.
    pub const F32: Self = Self {
        compute: Kind::Float,
        master: Kind::Float,
        reduce: Kind::Float,
    };

    /// bf16 compute, f32 master weights and f32 sums of gradients.
    pub const BF16: Self = Self {
        compute: Kind::BFloat16,
        ..Self::F32
    };

    /// Checks a choice of types.
    ///
    /// # Errors
    /// For a compute type other than f32 and bf16, and any other than f32 for the rest.
    pub fn new(compute: Kind, master: Kind, reduce: Kind) -> Result<Self> {
        let refuse = |part, kind, supported| Error::Precision {
            part,
            kind,
            supported,
        };
        if !matches!(compute, Kind::Float | Kind::BFloat16) {
            return Err(refuse("compute", compute, "Float, BFloat16"));
        }
        for (part, kind) in [("master", master), ("reduce", reduce)] {
            if kind != Kind::Float {
                return Err(refuse(part, kind, "Float"));
            }
        }
        Ok(Self {
            compute,
            ..Self::F32
        })
    }

    /// The type of weights while they compute, of activations and of the KV cache.
    pub fn compute(self) -> Kind {
        self.compute
    }

    /// The type of the weights that the optimizer updates.
    pub fn master(self) -> Kind {
        self.master
    }

    /// The type in which gradients are summed over micro-batches and ranks.
    pub fn reduce(self) -> Kind {
        self.reduce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_types_are_refused_by_name() {
        let f32 = Precision::new(Kind::Float, Kind::Float, Kind::Float).unwrap();
        assert_eq!(f32, Precision::default());
        let bf16 = Precision::new(Kind::BFloat16, Kind::Float, Kind::Float).unwrap();
        assert_eq!(bf16, Precision::BF16);
        let error = Precision::new(Kind::Half, Kind::Float, Kind::Float).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`precision.compute` is not supported: Half (supported: Float, BFloat16)"
        );
        assert!(Precision::new(Kind::Float, Kind::BFloat16, Kind::Float).is_err());
    }
}
