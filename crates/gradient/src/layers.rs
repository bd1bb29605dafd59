//! Where a decoder's layers come from while a round of micro-batches goes through them.

use asyncthink_model::{Decoder, DecoderEnds, DecoderLayer, ModelConfig, Packing, Segments};

use crate::error::Result;
use asyncthink_distributed::BucketExchange;
use asyncthink_distributed::flat::unit_of_layer;

/// What a layer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// From the first layer to the last.
    Forward,
    /// From the last to the first, with gradients.
    Backward,
}

/// What happens to a round of micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// Scored: layers are asked for once each, forward.
    Score,
    /// Differentiated: forward, then backward.
    Train {
        /// Whether it is this rank's last before the weights move.
        is_last: bool,
    },
}

/// What is done with a layer while it is there.
pub(crate) type UseLayer<'a> = &'a mut dyn FnMut(&DecoderLayer) -> Result<()>;

/// The layers of a decoder, one at a time and in order. All ranks go through equally many rounds of a kind.
pub(crate) trait LayerSource {
    /// The decoder's configuration.
    fn config(&self) -> &ModelConfig;

    /// What layers need to know of the segments of a micro-batch.
    fn packing(&self, segments: &Segments) -> Result<Packing>;

    /// Begins a round; what is returned is good until its end.
    fn begin(&mut self, round: Round) -> Result<DecoderEnds>;

    /// Lends the layer `index`; its gradients are complete for this round when `with` returns from the backward pass.
    fn with_layer(&mut self, index: usize, pass: Pass, with: UseLayer<'_>) -> Result<()>;

    /// Ends a round: all gradients of the ends are complete for it.
    fn end(&mut self) -> Result<()>;
}

/// A decoder that this rank has whole.
pub(crate) struct ReplicatedLayers<'a, 'e> {
    decoder: &'a Decoder,
    /// Begun with as gradients become complete in the last round.
    exchange: Option<&'a mut BucketExchange<'e>>,
    is_last: bool,
}

impl<'a, 'e> ReplicatedLayers<'a, 'e> {
    pub(crate) fn new(decoder: &'a Decoder, exchange: Option<&'a mut BucketExchange<'e>>) -> Self {
        Self {
            decoder,
            exchange,
            is_last: false,
        }
    }
}

impl LayerSource for ReplicatedLayers<'_, '_> {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn packing(&self, segments: &Segments) -> Result<Packing> {
        Ok(self.decoder.packing(segments)?)
    }

    fn begin(&mut self, round: Round) -> Result<DecoderEnds> {
        self.is_last = round == Round::Train { is_last: true };
        Ok(self.decoder.ends().shallow_clone())
    }

    fn with_layer(&mut self, index: usize, pass: Pass, with: UseLayer<'_>) -> Result<()> {
        with(&self.decoder.layers()[index])?;
        match &mut self.exchange {
            Some(exchange) if self.is_last && pass == Pass::Backward => {
                Ok(exchange.unit_is_complete(unit_of_layer(index))?)
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}
