//! The sections of a recipe.
//!
//! The structs here are what serde reads. Their doc comments are the descriptions in the JSON Schema and in
//! `docs/recipes.md`, and their `range` attributes are the limits that the checker enforces: one place per key. The section of
//! a task lives with the task.

mod bench;
mod distributed;
mod engine;
mod eval;
mod grpo;
mod memory;
mod model;
mod named_table;
mod optimizer;
mod or_auto;
mod precision;
mod prompts;
mod protocol;
mod reward;
mod sampler_correction;
mod sft;
mod synth;

pub use bench::{
    BenchRolloutSection, BenchSection, BenchStepSection, BenchTrainSection, RolloutWorkload,
};
pub use distributed::{DistributedSection, Shard};
pub use engine::{EngineDtype, EngineSection};
pub use eval::{EvalSection, EvalSplit, RulesFrom};
pub use grpo::{
    Advantage, AdvantageGroup, GrpoSection, KlEstimator, KlPlacement, LossAggregation, OldPolicy,
};
pub use memory::{MemorySection, Offload};
pub(crate) use model::ModelTable;
pub use model::{LoraModule, LoraSection, ModelInit, ModelSection, NumberTokens};
pub use named_table::NamedTable;
pub use optimizer::{OptimizerSection, Schedule};
pub use or_auto::OrAuto;
pub use precision::{ComputeFormat, NumberFormat, PrecisionSection};
pub use prompts::{ChatSection, PromptsSection};
pub use protocol::ProtocolSection;
pub use reward::RewardSection;
pub use sampler_correction::{CorrectionMode, SamplerCorrectionSection};
pub use sft::SftSection;
pub use synth::SynthSection;
