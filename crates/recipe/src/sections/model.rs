//! `[model]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{count, yes};

/// `[model]`: exactly one of `path` and `[model.init]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelTable {
    /// Folder of a Hugging Face model: `config.json`, `tokenizer.json` and
    /// `*.safetensors`. Relative to the folder that the command runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Folder of the base model where `path` is an adapter folder (PEFT) whose
    /// `adapter_config.json` names a model of a hub, or a path that is not
    /// there. Absent means the folder that it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_base: Option<PathBuf>,
    /// A new model with random weights, and a tokenizer made from the task's
    /// own text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<ModelInit>,
    /// Train low-rank adapters (LoRA) and leave the model as it is. Absent
    /// means that every weight is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSection>,
}

/// `[model.lora]`: adapters as in PEFT, one per projection and layer. Needs
/// `model.path`, which checkpoints then refer to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraSection {
    /// Inner dimension of an adapter. PEFT's default is 8; reasoning models
    /// are usually trained with 16 to 128.
    #[schemars(range(min = 1, max = 65_536))]
    pub rank: u32,
    /// What the adapters add is multiplied with `alpha / rank`. Often once or
    /// twice the rank.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: f64,
    /// Multiply with `alpha / sqrt(rank)` instead, which keeps the size of
    /// updates the same at any rank. Default false.
    #[serde(default)]
    pub use_rslora: bool,
    /// Projections with an adapter. Default all seven of a layer.
    #[serde(default = "LoraModule::all")]
    #[schemars(length(min = 1))]
    pub target_modules: Vec<LoraModule>,
    /// At the end of a stage, also write the model with its adapters added,
    /// as a folder `merged` in the last checkpoint. Default false.
    #[serde(default)]
    pub save_merged: bool,
}

/// A projection of a decoder layer.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LoraModule {
    /// Queries of the attention.
    QProj,
    /// Keys of the attention.
    KProj,
    /// Values of the attention.
    VProj,
    /// The attention's output.
    OProj,
    /// The gate of the feed-forward block.
    GateProj,
    /// The way up of the feed-forward block.
    UpProj,
    /// The way down of the feed-forward block.
    DownProj,
}

impl LoraModule {
    /// All projections of a layer.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    /// The projection of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.name() == name)
    }

    /// The module's name in Hugging Face models, for instance `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }
}

/// The validated model choice.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSection {
    /// A Hugging Face model folder.
    Path(PathBuf),
    /// Random weights of this shape.
    Init(ModelInit),
}

/// `[model.init]`: the shape of a new decoder in the Qwen3 architecture. The
/// vocabulary size comes from the tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelInit {
    /// Width of the residual stream.
    #[schemars(range(min = 2, max = 65_536))]
    pub hidden_size: usize,
    /// Rows of the embedding, for `bench`, which makes no tokenizer. Training
    /// takes the tokenizer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 16_777_216))]
    pub vocab_size: Option<usize>,
    /// Decoder layers.
    #[schemars(range(min = 1, max = 1024))]
    pub num_layers: usize,
    /// Query heads per layer. Must be a multiple of `num_kv_heads`.
    #[schemars(range(min = 1, max = 1024))]
    pub num_heads: usize,
    /// Key and value heads per layer.
    #[schemars(range(min = 1, max = 1024))]
    pub num_kv_heads: usize,
    /// Width of one head. Must be even, because rotary embeddings turn pairs.
    #[schemars(range(min = 2, max = 1024))]
    pub head_dim: usize,
    /// Width of the gated feed-forward layer.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub intermediate_size: usize,
    /// Base of the rotary position embedding. Default 10000: right for
    /// contexts of a few thousand tokens; long-context models use 1000000.
    #[serde(default = "crate::defaults::rope_theta")]
    #[schemars(extend("exclusiveMinimum" = 1.0))]
    pub rope_theta: f64,
    /// One matrix for token embeddings and output head. Default true: a small
    /// model has better use for the parameters.
    #[serde(default = "yes")]
    pub tie_embeddings: bool,
    /// Longest sequence in tokens, prompt and injected text included. Default
    /// 2048.
    #[serde(default = "count::<2048>")]
    #[schemars(range(min = 8, max = 16_777_216))]
    pub max_position_embeddings: usize,
    /// How the tokenizer made for the model writes numbers. Default `whole`:
    /// numbers are then copied in one step.
    #[serde(default)]
    pub number_tokens: NumberTokens,
}

/// How a tokenizer made from the task's text writes numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NumberTokens {
    /// A token per whole number up to the largest product of two of a pool:
    /// short, and easy to copy, but numbers share nothing that the traces do
    /// not teach.
    #[default]
    Whole,
    /// A token per whole number up to the largest of a pool; larger ones are
    /// spelled in digits.
    Pool,
}
