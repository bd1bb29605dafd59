//! Keys and values of the sequences being decoded.

use tch::{Device, Kind, TchError, Tensor};

use crate::attention::LayerCache;
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
        let shape = [
            num_slots,
            config.num_key_value_heads,
            capacity_tokens,
            config.head_dim,
        ];
        let layers = (0..config.num_hidden_layers)
            .map(|_| {
                Ok((
                    Tensor::f_zeros(shape, (kind, device))?,
                    Tensor::f_zeros(shape, (kind, device))?,
                ))
            })
            .collect::<Result<Vec<_>, TchError>>()?;
        Ok(Self {
            layers,
            num_slots,
            capacity_tokens,
        })
    }

    /// Sequences that fit.
    pub fn num_slots(&self) -> i64 {
        self.num_slots
    }

    /// Bytes that slots of `capacity_tokens` tokens take.
    pub fn bytes_of(&self, capacity_tokens: i64) -> u64 {
        let bytes = |(key, value): &(Tensor, Tensor)| {
            let size = key.size();
            let per_token: i64 = size[0] * size[1] * size[3];
            let element_bytes = key.kind().elt_size_in_bytes() + value.kind().elt_size_in_bytes();
            u64::try_from(per_token * capacity_tokens).unwrap_or(0) * element_bytes as u64
        };
        self.layers.iter().map(bytes).sum()
    }

    /// Tokens that fit in one slot.
    pub fn capacity_tokens(&self) -> i64 {
        self.capacity_tokens
    }

    /// Keys and values of one layer.
    pub(crate) fn layer(&self, index: usize) -> LayerCache<'_> {
        let (keys, values) = &self.layers[index];
        LayerCache { keys, values }
    }

    /// Enlarges every slot to `capacity_tokens`, keeping what is cached. One tensor is replaced at a time, so that only
    /// one is there twice.
    ///
    /// # Errors
    /// When the memory cannot be had; what is cached and the capacity are then as before.
    pub fn grow(&mut self, capacity_tokens: i64) -> Result<()> {
        for tensor in self.layers.iter_mut().flat_map(|(key, value)| [key, value]) {
            enlarge(tensor, capacity_tokens)?;
        }
        self.capacity_tokens = self.capacity_tokens.max(capacity_tokens);
        Ok(())
    }
}

/// Replaces a layer's keys or values by a larger tensor of the same content. (After a growth that failed halfway, some
/// are large enough already.)
fn enlarge(tensor: &mut Tensor, capacity_tokens: i64) -> Result<(), TchError> {
    let mut shape = tensor.size();
    let held_tokens = shape[2];
    if held_tokens >= capacity_tokens {
        return Ok(());
    }
    shape[2] = capacity_tokens;
    let new = Tensor::f_zeros(shape, (tensor.kind(), tensor.device()))?;
    new.f_narrow(2, 0, held_tokens)?.f_copy_(tensor)?;
    *tensor = new;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelSizes;

    #[test]
    fn growing_keeps_what_is_cached() {
        let config = ModelConfig::new(&ModelSizes {
            vocab_size: 23,
            hidden_size: 16,
            intermediate_size: 24,
            num_layers: 3,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 8,
            rope_theta: 10_000.0,
            max_position_embeddings: 64,
            tie_word_embeddings: true,
            eos_token_id: 0,
        })
        .unwrap();
        let mut cache = KvCache::new(&config, 2, 4, Kind::Float, Device::Cpu).unwrap();
        let filled = Tensor::arange(2 * 2 * 4 * 8, (Kind::Float, Device::Cpu)).view([2, 2, 4, 8]);
        for (key, value) in &mut cache.layers {
            key.copy_(&filled);
            value.copy_(&(-&filled));
        }
        // As if an earlier growth had stopped after one tensor.
        enlarge(&mut cache.layers[0].0, 10).unwrap();
        assert_eq!(cache.capacity_tokens(), 4);
        cache.grow(7).unwrap();
        assert_eq!(cache.capacity_tokens(), 7);
        for index in 0..3 {
            let LayerCache {
                keys: key,
                values: value,
            } = cache.layer(index);
            assert!(key.narrow(2, 0, 4).equal(&filled) && value.narrow(2, 0, 4).equal(&-&filled));
            assert!(key.size()[2] >= 7 && value.size()[2] == 7);
        }
        cache.grow(5).unwrap();
        assert_eq!(cache.capacity_tokens(), 7, "it never shrinks");
    }
}
