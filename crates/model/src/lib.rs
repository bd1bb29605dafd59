//! Decoder-only transformers in Hugging Face layout, safetensors in and out.
//!
//! One [`Decoder`] serves training and decoding: the engine steps over the very tensors that the optimizer updates,
//! so there is no second copy to keep in step. Both paths run the same layer code and differ in attention alone:
//! training attends inside packed segments ([`Decoder::hidden_packed`]), decoding against a [`KvCache`]
//! ([`Decoder::step`]).
//!
//! Shape legend: `tokens` = packed tokens of all segments, `hidden`, `heads`, `kv_heads`, `head_dim`, `vocab`,
//! `blocks` of `block_size` tokens of a KV cache, `rows` = tokens of one decoding step, `samples` = rows whose next token is
//! wanted.

mod adapter_file;
mod adapter_modules;
mod adapters;
mod architecture;
mod attention;
mod cache;
mod config;
mod config_text;
mod decoder;
mod error;
mod fields;
mod folder_check;
mod fused_decoder;
mod generator;
mod layer;
mod lora_config;
mod model_folder;
mod packed_decoder;
mod positions;
mod precision;
mod pretrained;
mod replicas;
mod rope;
mod segments;
mod step_batch;
mod stream;
mod temperature;
mod tensor_file;
mod tied_head;
mod weight_files;
mod weight_header;
mod weights;

pub use adapter_file::base_of;
pub use adapters::{Adapters, num_adapter_parameters};
pub use architecture::registry::Architectures;
pub use architecture::{Architecture, Biases, Sizes, Variant};
pub use attention::registry::AttentionBackends;
pub use attention::{Attention, DecodeRows, LayerCache};
pub use cache::KvCache;
pub use config::{ModelConfig, ModelSizes};
pub use decoder::Decoder;
pub use error::{Error, Result};
pub use fields::Fields;
pub use folder_check::{FolderReport, check_folder};
pub use fused_decoder::FusedDecoder;
pub use layer::{DecoderEnds, DecoderLayer, FindParameter, SavedActivations};
pub use lora_config::{LoraConfig, LoraTarget, Place};
pub use model_folder::ModelFolder;
pub use packed_decoder::PackedDecoder;
pub use positions::{Packing, Positions};
pub use precision::Precision;
pub use pretrained::{PretrainedModel, fitting_tokenizer, read_adapters};
pub use replicas::{Parallelism, run_on_replicas, run_workers};
pub use rope::{Rope, RopeScaling};
pub use segments::{Segment, Segments};
pub use step_batch::{RowSpan, StepBatch};
pub use stream::{draw_parameters, read_parameters};
pub use temperature::MIN_TEMPERATURE;
pub use weights::VisitParameter;
