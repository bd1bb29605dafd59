//! Keys and values of the sequences being decoded, in pages.

use tch::{Device, Kind, TchError, Tensor};

use crate::attention::LayerCache;
use crate::config::ModelConfig;
use crate::error::Result;

/// Paged KV cache: per layer, keys and values `[blocks, block_size, kv_heads, head_dim]`; block tables say which blocks hold
/// a sequence.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    num_blocks: usize,
    block_size: usize,
}

impl KvCache {
    /// Allocates `num_blocks` blocks of `block_size` tokens. Their content is arbitrary until it is written.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(
        config: &ModelConfig,
        num_blocks: usize,
        block_size: usize,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let shape = [
            to_size(num_blocks),
            to_size(block_size),
            config.num_key_value_heads,
            config.head_dim,
        ];
        let layers = (0..config.num_hidden_layers)
            .map(|_| {
                Ok((
                    Tensor::f_empty(shape, (kind, device))?,
                    Tensor::f_empty(shape, (kind, device))?,
                ))
            })
            .collect::<Result<Vec<_>, TchError>>()?;
        Ok(Self {
            layers,
            num_blocks,
            block_size,
        })
    }

    /// Bytes of keys and values that one block takes in all layers.
    pub fn block_bytes(config: &ModelConfig, block_size: usize, kind: Kind) -> u64 {
        let heads = 2 * config.num_key_value_heads * config.head_dim;
        let values = config.num_hidden_layers as u64 * u64::try_from(heads).unwrap_or(0);
        values * block_size as u64 * kind.elt_size_in_bytes() as u64
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Tokens that one block holds.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Type of keys and values.
    pub fn kind(&self) -> Option<Kind> {
        self.layers.first().map(|(keys, _)| keys.kind())
    }

    /// Keys and values of one layer.
    pub(crate) fn layer(&self, index: usize) -> LayerCache<'_> {
        let (keys, values) = &self.layers[index];
        LayerCache { keys, values }
    }

    /// Copies blocks `[from, to]` in all layers. Every source is read before a destination is written.
    ///
    /// # Errors
    /// When libtorch refuses an operation; a block out of range is one.
    pub fn copy_blocks(&self, copies: &[[i32; 2]]) -> Result<()> {
        if copies.is_empty() {
            return Ok(());
        }
        let _no_grad = tch::no_grad_guard();
        let indices = |which: usize| {
            let blocks: Vec<i64> = copies.iter().map(|pair| i64::from(pair[which])).collect();
            Tensor::from_slice(&blocks)
        };
        let (from, to) = (indices(0), indices(1));
        for tensor in self.layers.iter().flat_map(|(key, value)| [key, value]) {
            let (from, to) = (
                from.f_to_device(tensor.device())?,
                to.f_to_device(tensor.device())?,
            );
            let content = tensor.f_index_select(0, &from)?;
            let _ = tensor.shallow_clone().f_index_copy_(0, &to, &content)?;
        }
        Ok(())
    }

    /// Enlarges the cache to `num_blocks` blocks, keeping what is cached. One tensor is replaced at a time, so that only
    /// one is there twice.
    ///
    /// # Errors
    /// When the memory cannot be had; what is cached and the number of blocks are then as before.
    pub fn grow(&mut self, num_blocks: usize) -> Result<()> {
        for tensor in self.layers.iter_mut().flat_map(|(key, value)| [key, value]) {
            enlarge(tensor, to_size(num_blocks))?;
        }
        self.num_blocks = self.num_blocks.max(num_blocks);
        Ok(())
    }
}

/// Replaces a layer's keys or values by a larger tensor of the same content. (After a growth that failed halfway, some
/// are large enough already.)
fn enlarge(tensor: &mut Tensor, num_blocks: i64) -> Result<(), TchError> {
    let mut shape = tensor.size();
    let held = shape[0];
    if held >= num_blocks {
        return Ok(());
    }
    shape[0] = num_blocks;
    let new = Tensor::f_empty(shape, (tensor.kind(), tensor.device()))?;
    new.f_narrow(0, 0, held)?.f_copy_(tensor)?;
    *tensor = new;
    Ok(())
}

fn to_size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelSizes;

    const SHAPE: [i64; 4] = [3, 4, 2, 8];

    /// A cache of three blocks, filled with numbers.
    fn filled() -> (KvCache, Tensor) {
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
        // Keys and values, 3 layers, 4 tokens, 2 heads of 8 values, 4 bytes each.
        assert_eq!(
            KvCache::block_bytes(&config, 4, Kind::Float),
            2 * 3 * 4 * 2 * 8 * 4
        );
        let mut cache = KvCache::new(&config, 3, 4, Kind::Float, Device::Cpu).unwrap();
        let numbers =
            Tensor::arange(SHAPE.iter().product::<i64>(), (Kind::Float, Device::Cpu)).view(SHAPE);
        for (key, value) in &mut cache.layers {
            key.copy_(&numbers);
            value.copy_(&(-&numbers));
        }
        (cache, numbers)
    }

    #[test]
    fn growing_keeps_what_is_cached() {
        let (mut cache, numbers) = filled();
        // As if an earlier growth had stopped after one tensor.
        enlarge(&mut cache.layers[0].0, 10).unwrap();
        assert_eq!(cache.num_blocks(), 3);
        cache.grow(7).unwrap();
        assert_eq!(cache.num_blocks(), 7);
        for index in 0..3 {
            let LayerCache { keys, values } = cache.layer(index);
            assert!(keys.narrow(0, 0, 3).equal(&numbers));
            assert!(values.narrow(0, 0, 3).equal(&-&numbers));
            assert!(keys.size()[0] >= 7 && values.size()[0] == 7);
        }
        cache.grow(5).unwrap();
        assert_eq!(cache.num_blocks(), 7, "it never shrinks");
    }

    #[test]
    fn blocks_are_copied_in_all_layers() {
        let (cache, numbers) = filled();
        cache.copy_blocks(&[]).unwrap();
        // A block that is source and destination is read first.
        cache.copy_blocks(&[[0, 1], [1, 2]]).unwrap();
        for index in 0..3 {
            let LayerCache { keys, values } = cache.layer(index);
            for (block, source) in [(0, 0), (1, 0), (2, 1)] {
                assert!(keys.get(block).equal(&numbers.get(source)));
                assert!(values.get(block).equal(&-&numbers.get(source)));
            }
        }
        assert!(cache.copy_blocks(&[[0, 3]]).is_err());
    }
}
