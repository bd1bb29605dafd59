//! Number types of weights, activations and sums.

use tch::Kind;

use crate::error::{Error, Result};

/// The number types of a model. f32 throughout is the only one to train in so far.
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

    /// Checks a choice of types.
    ///
    /// # Errors
    /// For any other than f32.
    pub fn new(compute: Kind, master: Kind, reduce: Kind) -> Result<Self> {
        for (part, kind) in [("compute", compute), ("master", master), ("reduce", reduce)] {
            if kind != Kind::Float {
                return Err(Error::Precision { part, kind });
            }
        }
        Ok(Self::F32)
    }

    /// The type of weights while they compute, of activations and of the KV cache.
    pub fn compute(self) -> Kind {
        self.compute
    }

    /// The type of the weights that the optimizer updates.
    pub fn master(self) -> Kind {
        self.master
    }

    /// The type in which gradients are summed.
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
        let error = Precision::new(Kind::BFloat16, Kind::Float, Kind::Float).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`precision.compute` is not supported: BFloat16 (supported: Float)"
        );
    }
}
