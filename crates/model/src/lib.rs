//! Decoder-only transformers in Hugging Face layout, safetensors in and out.
//!
//! One [`Decoder`] serves training and decoding: the engine steps over the very tensors that the optimizer updates,
//! so there is no second copy to keep in step. Both paths run the same layer code and differ in attention alone:
//! training attends inside packed segments ([`Decoder::hidden_packed`]), decoding against a [`KvCache`]
//! ([`Decoder::step`]).
//!
//! Shape legend: `tokens` = packed tokens of all segments, `hidden`, `heads`, `kv_heads`, `head_dim`, `vocab`,
//! `slots` = sequences that a cache can hold, `rows` = tokens of one decoding step.

mod attention;
mod cache;
mod config;
mod config_text;
mod decoder;
mod error;
mod fields;
mod layer;
mod lora;
mod positions;
mod replicas;
mod rope;
mod stream;
mod tensor_file;
mod weight_header;
mod weights;

pub use cache::KvCache;
pub use config::{Architecture, Biases, ModelConfig, ModelSizes};
pub use decoder::{Decoder, StepBatch};
pub use error::{Error, Result};
pub use layer::{DecoderEnds, DecoderLayer, FindParameter};
pub use lora::{Adapters, LoraConfig, LoraTarget, base_of};
pub use positions::{Packing, Positions};
pub use replicas::{Parallelism, run_on_replicas, run_workers};
pub use rope::{Rope, RopeScaling};
pub use stream::{VisitParameter, draw_parameters, read_config, read_parameters};
