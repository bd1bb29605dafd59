//! Keys and values of the sequences being decoded.

use tch::{Device, Kind, TchError, Tensor};

use crate::config::ModelConfig;
use crate::error::Result;

/// Per layer, keys and values `[slots, kv_heads, capacity, head_dim]`; a sequence owns one slot.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    num_slots: i64,
    capacity_tokens: i64,
}

impl KvCache {
    /// Allocates room for `num_slots` sequences of up to `capacity_tokens` tokens each.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(
        config: &ModelConfig,
        num_slots: i64,
        capacity_tokens: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let shape = [num_slots, config.num_key_value_heads, capacity_tokens, config.head_dim];
        let layers = (0..config.num_hidden_layers)
            .map(|_| {
                Ok((Tensor::f_zeros(shape, (kind, device))?, Tensor::f_zeros(shape, (kind, device))?))
            })
            .collect::<Result<Vec<_>, TchError>>()?;
        Ok(Self { layers, num_slots, capacity_tokens })
    }

    /// Sequences that fit.
    pub fn num_slots(&self) -> i64 {
        self.num_slots
    }

    /// Tokens that fit in one slot.
    pub fn capacity_tokens(&self) -> i64 {
        self.capacity_tokens
    }

    /// Keys and values of one layer.
    pub(crate) fn layer(&self, index: usize) -> (&Tensor, &Tensor) {
        let (key, value) = &self.layers[index];
        (key, value)
    }

    /// Enlarges every slot to `capacity_tokens`, keeping what is cached.
    ///
    /// # Errors
    /// When the memory cannot be had; the cache is then as before.
    pub fn grow(&mut self, capacity_tokens: i64) -> Result<()> {
        if capacity_tokens <= self.capacity_tokens {
            return Ok(());
        }
        let enlarge = |old: &Tensor| -> Result<Tensor, TchError> {
            let mut shape = old.size();
            shape[2] = capacity_tokens;
            let new = Tensor::f_zeros(shape, (old.kind(), old.device()))?;
            new.f_narrow(2, 0, self.capacity_tokens)?.f_copy_(old)?;
            Ok(new)
        };
        let layers = self
            .layers
            .iter()
            .map(|(key, value)| Ok((enlarge(key)?, enlarge(value)?)))
            .collect::<Result<Vec<_>, TchError>>()?;
        self.layers = layers;
        self.capacity_tokens = capacity_tokens;
        Ok(())
    }
}
