//! TOML recipes in, validated values out, with spans.
//!
//! A recipe is one file with a section per concern; every command reads the
//! shared sections and requires its own. The path from text to value:
//!
//! 1. The text becomes a tree in which every key and value remembers its
//!    place, and `--set` arguments are laid over it.
//! 2. The tree is checked against the JSON Schema that comes from the same
//!    structs that serde reads: unknown keys, types, limits, missing keys.
//! 3. Rules over several keys are checked on the tree too.
//! 4. Only then do the structs get their values.
//!
//! Steps 1 to 3 keep going after an error, so that one run of the command
//! names everything that is wrong. Plain structs with `toml::Spanned` fields
//! would give places too, but serde stops at the first error, and spans do
//! not survive tagged unions.
//!
//! The recipe names implementations that live elsewhere: a task, a teacher, a
//! policy loss, evaluation methods, metrics sinks. A [`Catalogue`] lists them;
//! the schema is completed from it, so that a wrong name is an error with its
//! place.
//!
//! Nothing here needs libtorch, so a wrong recipe is refused at once.
//!
//! ```
//! # use std::path::Path;
//! let errors = asyncthink_recipe::Recipe::parse("nmae = 1", Path::new("r.toml"), &[]).unwrap_err();
//! assert!(errors.to_string().contains("did you mean `name`?"));
//! ```

mod catalogue;
mod check;
mod defaults;
mod device;
mod document;
mod error;
mod memory;
mod model_folder;
mod nearest;
mod raw;
mod recipe;
mod registry;
mod rules;
mod saving;
mod schema;
mod sections;
mod source;
mod stage;

pub use catalogue::Catalogue;
pub use defaults::MIN_TEMPERATURE;
pub use device::DeviceSpec;
pub use error::{ErrorKind, RecipeError, RecipeErrors};
pub use memory::MemoryBudget;
pub use recipe::{Recipe, RecipeData};
pub use registry::Registry;
pub use saving::{CHANGEABLE_INPUTS, FinalDtype, GrpoMetric, SaveInBackground, SftMetric};
pub use schema::schema;
pub use sections::{
    Advantage, AdvantageGroup, BenchRolloutSection, BenchSection, BenchStepSection,
    BenchTrainSection, ChatSection, ComputeFormat, CorrectionMode, DistributedSection, EngineDtype,
    EngineSection, EvalSection, EvalSplit, GrpoSection, KlEstimator, KlPlacement, LoraModule,
    LoraSection, LossAggregation, MemorySection, ModelInit, ModelSection, NamedTable, NumberFormat,
    NumberTokens, Offload, OldPolicy, OptimizerSection, OrAuto, PrecisionSection, PromptsSection,
    ProtocolSection, RewardSection, RolloutWorkload, RulesFrom, SamplerCorrectionSection, Schedule,
    SftSection, Shard, SynthSection,
};
pub use stage::Stage;
