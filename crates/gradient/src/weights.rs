//! A decoder as a rank holds it.

use std::rc::Rc;

use asyncthink_distributed::ShardedDecoder;
use asyncthink_model::{Decoder, ModelConfig};
use tch::Device;

use crate::error::Result;
use crate::layers::{LayerSource, ReplicatedLayers};
use crate::sharded_layers::ShardedLayers;

/// A decoder as a rank holds it.
#[derive(Debug)]
pub enum Weights {
    /// All of it.
    Whole(Box<Decoder>),
    /// A shard; the other ranks have the rest (ZeRO-3).
    Sharded(Rc<ShardedDecoder>),
}

impl Weights {
    /// Configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Whole(decoder) => decoder.config(),
            Self::Sharded(decoder) => decoder.config(),
        }
    }

    /// Device of the weights.
    pub fn device(&self) -> Device {
        match self {
            Self::Whole(decoder) => decoder.device(),
            Self::Sharded(decoder) => decoder.device(),
        }
    }

    /// The layers, for passes that train nothing.
    pub(crate) fn layers(&self) -> Result<Box<dyn LayerSource + '_>> {
        Ok(match self {
            Self::Whole(decoder) => Box::new(ReplicatedLayers::new(decoder, None)),
            Self::Sharded(decoder) => Box::new(ShardedLayers::new(decoder)?),
        })
    }
}
