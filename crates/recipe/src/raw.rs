//! A recipe as serde reads it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{count, seed};
use crate::device::DeviceSpec;
use crate::saving::SaveInBackground;
use crate::sections::{
    BenchSection, DistributedSection, EngineSection, EvalSection, GrpoSection, MemorySection,
    ModelTable, NamedTable, PrecisionSection, PromptsSection, ProtocolSection, SftSection,
    SynthSection,
};

/// A whole training job in one file: problems, protocol, prompts, model, and
/// one section per stage.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRecipe {
    /// A short name for the run, shown in progress and reports.
    #[schemars(length(min = 1))]
    pub(crate) name: String,
    /// Folder for everything that the run writes, relative to the folder that
    /// the command runs in.
    #[schemars(length(min = 1))]
    pub(crate) run_dir: PathBuf,
    /// Seed of problems, traces, initial weights and sampling. Default 1.
    #[serde(default = "seed")]
    pub(crate) seed: u64,
    /// Where tensors live: `auto` (a GPU where there is one), `cpu`, `cuda`
    /// or `cuda:N`. Default `auto`.
    #[serde(default)]
    #[schemars(with = "String")]
    pub(crate) device: DeviceSpec,
    /// CPU threads; 0 takes all cores. Default 0.
    #[serde(default = "count::<0>")]
    #[schemars(range(max = 4096))]
    pub(crate) num_threads: usize,
    /// Whether training goes on while a checkpoint is written. The weights
    /// and moments are then copied first, which takes as much host memory
    /// again as they have: `auto` does so where the model is on a GPU.
    /// Default `auto`.
    #[serde(default)]
    pub(crate) save_in_background: SaveInBackground,
    /// What may differ from the checkpoint that a run goes on from: keys or
    /// whole sections of the recipe, `dataset`, `initial_model`. Default
    /// none. A difference that is not named here is refused.
    #[serde(default)]
    pub(crate) allow_changed: Vec<String>,
    /// Places for metrics besides `metrics.jsonl`, which is always written:
    /// `tensorboard` for event files in the stage's `tensorboard/`. Default
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = []))]
    pub(crate) metrics: Vec<String>,
    /// Where the problems come from.
    pub(crate) task: NamedTable,
    /// How organizer and workers talk, and how long they may.
    pub(crate) protocol: ProtocolSection,
    /// The prompt templates.
    pub(crate) prompts: PromptsSection,
    /// The model to start from.
    pub(crate) model: ModelTable,
    /// How sampling uses the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) engine: Option<EngineSection>,
    /// Number formats of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) precision: Option<PrecisionSection>,
    /// What training may take of the machine's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<MemorySection>,
    /// How ranks work together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) distributed: Option<DistributedSection>,
    /// Cold-start traces, for the command `synth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) synth: Option<SynthSection>,
    /// Cold-start format fine-tuning, for the command `sft`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sft: Option<SftSection>,
    /// Organizer-worker policy optimisation, for the command `grpo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grpo: Option<GrpoSection>,
    /// Measurement on held-out problems, for the command `eval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eval: Option<EvalSection>,
    /// Workloads, for the command `bench`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bench: Option<BenchSection>,
}
