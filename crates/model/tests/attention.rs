//! An attention backend of one's own: the decoder calls it in every layer, and replicas share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use asyncthink_model::{
    Attention, AttentionBackends, DecodeRows, Decoder, KvCache, LayerCache, ModelConfig,
    ModelSizes, Result, Segments, StepBatch,
};
use tch::{Device, Kind, Tensor};

/// Counts calls and leaves the work to another backend.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Attention>,
    num_varlen: AtomicUsize,
    num_decode: AtomicUsize,
}

impl Attention for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn varlen(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        segments: &Segments,
    ) -> Result<Tensor> {
        self.num_varlen.fetch_add(1, Ordering::Relaxed);
        self.inner.varlen(query, key, value, segments)
    }

    fn decode(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        cache: LayerCache<'_>,
        rows: &DecodeRows,
    ) -> Result<Tensor> {
        self.num_decode.fetch_add(1, Ordering::Relaxed);
        self.inner.decode(query, key, value, cache, rows)
    }
}

#[test]
fn every_layer_attends_by_the_backend_of_the_decoder() {
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
    let ids = [1_i64, 2, 3, 4];
    let hidden = |decoder: &Decoder| {
        decoder
            .hidden_packed(
                &Tensor::from_slice(&ids),
                &Segments::separate(&[4]).unwrap(),
            )
            .unwrap()
    };
    let decoder = Decoder::init(&config, Device::Cpu, 5).unwrap();
    let expected = hidden(&decoder);

    let inner = AttentionBackends::builtin().find("sdpa").unwrap();
    let counting = Arc::new(Counting {
        inner,
        num_varlen: AtomicUsize::default(),
        num_decode: AtomicUsize::default(),
    });
    let backends = AttentionBackends::builtin().with(counting.clone());
    assert_eq!(backends.names(), ["sdpa", "counting"]);
    let decoder = decoder.with_attention(backends.find("counting").unwrap());
    assert!(hidden(&decoder).equal(&expected));
    assert!(hidden(&decoder.replica().unwrap()).equal(&expected));
    assert_eq!(counting.num_varlen.load(Ordering::Relaxed), 6);

    let cache = KvCache::new(&config, 2, 16, Kind::Float, Device::Cpu).unwrap();
    let mut batch = StepBatch::default();
    batch.push_sequence(ids, 0, [1]);
    batch.sample_rows.push(3);
    let _ = decoder.step(&batch, &cache).unwrap();
    assert_eq!(counting.num_decode.load(Ordering::Relaxed), 3);
}
