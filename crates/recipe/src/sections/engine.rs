//! `[engine]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::memory::MemoryBudget;

/// `[engine]`: how sampling uses the machine. It decides which agents share a
/// batch, hence the rounding of sums and nothing else, and may change between
/// a stop and a resume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineSection {
    /// Most agents that decode at a time, per sampling thread; the others
    /// wait. Each holds keys and values of the longest sequence, so this
    /// bounds the memory that sampling needs. Absent means 256 on a CPU and
    /// 1024 on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_agents: Option<usize>,
    /// Most memory for the keys and values of all sampling threads: bytes as
    /// `24GiB` or `512MiB`, or a share of the free memory as `70%`. A rollout
    /// that needs more fails with the arithmetic. The memory is kept while the
    /// weights are updated. Absent means no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cache_memory: Option<MemoryBudget>,
}
