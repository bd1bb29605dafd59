//! `[memory]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::memory::MemoryBudget;

/// `[memory]`: what training may take, and what of it lies in host memory. It
/// changes the rounding of sums and nothing else, and may change between a
/// stop and a resume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorySection {
    /// Memory of the device that a run may take: bytes as `80GiB`, a share
    /// of the free memory as `70%`, or `auto`, the default: nine tenths of
    /// what is free. A run that is predicted to need more is refused before
    /// it starts, and `auto` values of other keys are chosen to fit. With a
    /// size, `--dry-run` answers for a machine that is not at hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub budget: Option<MemoryBudget>,
    /// What a GPU leaves to host memory. Default `none`.
    #[serde(default, skip_serializing_if = "Offload::is_none")]
    pub offload: Offload,
}

/// What lies in host memory instead of a GPU's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// Nothing.
    #[default]
    None,
    /// Master weights and moments, 12 bytes a trained parameter: the CPU
    /// updates them, gradients are copied down and weights back at each
    /// update. Nothing changes on a CPU, whose memory is the host's.
    Optimizer,
}

impl Offload {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}
