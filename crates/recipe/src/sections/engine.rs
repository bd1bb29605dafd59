//! `[engine]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::memory::MemoryBudget;

/// `[engine]`: how sampling uses the machine. It decides which agents share a
/// batch and in which number format, hence rounding and nothing else, and may
/// change between a stop and a resume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineSection {
    /// Most agents that decode at a time; the others wait. Absent means 512 on
    /// a CPU and 1024 on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_agents: Option<usize>,
    /// Most tokens that one decoding step computes: one of each agent that
    /// decodes, then parts of prompts and of injected text. Absent means 2048
    /// on a CPU and 8192 on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_batch_tokens: Option<usize>,
    /// Tokens of one block of the KV cache, a multiple of 16. Agents share
    /// whole blocks. Absent means 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 1_024))]
    pub block_size: Option<usize>,
    /// Most memory for the KV cache: bytes as `24GiB` or `512MiB`, a share of
    /// the free memory as `70%`, or `auto`, the default: what training is
    /// predicted to leave of `memory.budget`, on a CPU at most half of what
    /// is free; in `eval` half of the free memory on a CPU, and on a GPU the
    /// free memory less a tenth and 1 GiB. No limit where the memory cannot be
    /// told. The cache grows as it is needed; on a GPU that cannot hold it
    /// beside the activations it is given back before each update. Agents that
    /// find no room wait; a cache that can never hold one episode is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cache_memory: Option<MemoryBudget>,
    /// Number format that sampling computes in: `auto`, the format of
    /// `precision.compute`, or `f32` or `bf16`. Default `auto`.
    #[serde(default, skip_serializing_if = "EngineDtype::is_auto")]
    pub dtype: EngineDtype,
    /// Whether decoding steps on a GPU are recorded as CUDA graphs and
    /// replayed. Absent means yes; `false` is for finding faults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuda_graphs: Option<bool>,
}

/// Number format of sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineDtype {
    /// The format that training computes in.
    #[default]
    Auto,
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point with the exponent of 32 bits.
    Bf16,
}

impl EngineDtype {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}
