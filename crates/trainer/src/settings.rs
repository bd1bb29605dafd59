//! Settings of the training stages, made once from the recipe. Nothing below takes the whole recipe.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use asyncthink_algorithms::advantage::{self, BuildAdvantage};
use asyncthink_algorithms::loss::{self, PolicyLossSpec};
use asyncthink_algorithms::{
    AdvantageEstimator, Aggregation, CrossEntropy, PolicyObjective, TokenLoss,
};
use asyncthink_checkpoint::{Readme, Retention, RunLayout, fingerprint};
use asyncthink_data::{Stream, derive_seed};
use asyncthink_distributed::{AdamWSettings, DeviceSettings};
use asyncthink_gradient::{BatchSettings, PolicySettings};
use asyncthink_metrics::{OpenSink, sinks};
use asyncthink_model::{LoraConfig, LoraTarget, Parallelism, Precision};
use asyncthink_recipe::{
    ComputeFormat, DistributedSection, EngineSection, FinalDtype, GrpoSection, LoraSection,
    MemoryBudget, ModelSection, NumberFormat, Offload, OldPolicy, OptimizerSection,
    PrecisionSection, Recipe, Registry, SaveInBackground, SftSection, Stage,
};
use asyncthink_rollout::{Episode, ModelCard};
use asyncthink_tasks::TaskConfig;
use tch::Kind;

use crate::error::{Error, Result};
use crate::memory::Chosen;

/// Implementations that the recipe's keys of training can name.
#[derive(Clone, Debug)]
pub struct Registries {
    /// Policy losses, for `[grpo.loss]`.
    pub losses: Registry<PolicyLossSpec>,
    /// Advantage estimators, for `grpo.advantage`.
    pub advantages: Registry<BuildAdvantage>,
    /// Metrics sinks, for `metrics`.
    pub sinks: Registry<OpenSink>,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            losses: loss::registry(),
            advantages: advantage::registry(),
            sinks: sinks(),
        }
    }
}

/// When a stage saves, and what it keeps.
#[derive(Clone, Copy, Debug)]
pub struct SaveSettings {
    /// Steps between checkpoints.
    pub every_steps: u64,
    /// Checkpoints that stay.
    pub retention: Retention,
    /// Whether training goes on while a checkpoint is written.
    pub in_background: SaveInBackground,
    /// Whether a finished run with adapters also writes the merged model.
    pub merged: bool,
    /// Format of a copy of the finished model.
    pub final_dtype: Option<FinalDtype>,
    /// Whether nothing is saved at all, as benchmarks have it.
    pub is_off: bool,
}

/// When a run ends before its last step.
#[derive(Clone, Copy, Debug)]
pub struct EarlyStopping {
    /// Evaluations in a row without a better figure.
    pub patience: u64,
    /// Figures differ by more than this.
    pub threshold: f64,
}

/// Settings that both training stages share.
#[derive(Clone, Debug)]
pub struct RunSettings {
    /// `sft` or `grpo`.
    pub stage: Stage,
    /// Steps of the stage.
    pub num_steps: u64,
    /// Seed of data order, initial weights and sampling.
    pub seed: u64,
    /// The task that problems belong to.
    pub task: TaskConfig,
    /// Folder of the run.
    pub layout: RunLayout,
    /// Device and threads.
    pub device: DeviceSettings,
    /// Settings for loading and sharding the model.
    pub policy: PolicySettings,
    /// Whether a CPU without instructions for bf16 computes in it all the same.
    pub allow_slow_bf16: bool,
    /// Memory of the device that a run may take.
    pub memory_budget: Option<MemoryBudget>,
    /// Whether a GPU may round the operands of f32 products to TF32.
    pub allow_tf32: bool,
    /// Settings of ranks and sharding.
    pub distributed: DistributedSection,
    /// The recipe's model.
    pub model: ModelSection,
    /// Optimizer and learning rate.
    pub optimizer: OptimizerSection,
    /// Checkpoints.
    pub save: SaveSettings,
    /// Early stopping by the metric that checkpoints are compared by.
    pub early_stopping: Option<EarlyStopping>,
    /// Steps between lines of the metrics.
    pub log_every_steps: u64,
    /// Recipe keys that may differ from the resumed checkpoint.
    pub allow_changed: Vec<String>,
    /// Metrics sinks besides `metrics.jsonl`.
    pub sinks: Vec<OpenSink>,
    /// Prompts, protocol and budgets, which travel with every checkpoint.
    pub card: ModelCard,
    /// Text of a checkpoint's README.
    pub readme: Readme,
    /// The resolved recipe as TOML, kept with the run.
    pub resolved_recipe: String,
    /// Keys of the recipe that a resumed run must share with its checkpoint.
    pub recipe_keys: BTreeMap<String, String>,
}

impl RunSettings {
    fn of(
        recipe: &Recipe,
        stage: Stage,
        section: &StageSection<'_>,
        registries: &Registries,
    ) -> Result<Self> {
        let num_steps = section.num_steps as u64;
        Ok(Self {
            stage,
            num_steps,
            seed: recipe.seed,
            task: recipe.task.clone(),
            layout: RunLayout::new(&recipe.run_dir),
            device: DeviceSettings::of(recipe),
            policy: PolicySettings {
                precision: precision(recipe.precision)?,
                offloads_optimizer: recipe.memory.offload == Offload::Optimizer,
                shard: recipe.distributed.shard,
                micro_batches_per_gather: recipe.distributed.micro_batches_per_gather,
                lora: recipe.lora.as_ref().map(lora_config),
                adapter_base: recipe.adapter_base.clone(),
                seed: derive_seed(recipe.seed, Stream::Initialisation, 0, 0),
            },
            allow_slow_bf16: recipe.precision.allow_slow_bf16,
            allow_tf32: recipe.precision.tf32,
            memory_budget: recipe.memory.budget,
            distributed: recipe.distributed.clone(),
            model: recipe.model.clone(),
            optimizer: section.optimizer.clone(),
            save: SaveSettings {
                every_steps: section.save_every_steps as u64,
                retention: section.retention,
                in_background: recipe.save_in_background,
                merged: recipe.lora.as_ref().is_some_and(|lora| lora.save_merged),
                final_dtype: section.final_dtype,
                is_off: false,
            },
            early_stopping: section
                .early_stopping_patience
                .map(|patience| EarlyStopping {
                    patience: patience as u64,
                    threshold: section.early_stopping_threshold.unwrap_or_default(),
                }),
            log_every_steps: section.log_every_steps as u64,
            allow_changed: recipe.allow_changed.clone(),
            sinks: open_sinks(&recipe.metrics, registries)?,
            card: ModelCard::new(&recipe.prompts, &recipe.protocol),
            readme: Readme::of(recipe, stage, num_steps),
            resolved_recipe: recipe.to_toml(),
            recipe_keys: fingerprint::recipe_keys(recipe, stage)?,
        })
    }

    /// Constants of the optimizer.
    pub fn adamw(&self) -> AdamWSettings {
        AdamWSettings {
            beta1: self.optimizer.beta1,
            beta2: self.optimizer.beta2,
            eps: self.optimizer.eps,
            weight_decay: self.optimizer.weight_decay,
        }
    }
}

fn precision(section: PrecisionSection) -> Result<Precision> {
    let kind = |format| match format {
        NumberFormat::F32 => Kind::Float,
    };
    let compute = match section.compute {
        ComputeFormat::F32 => Kind::Float,
        ComputeFormat::Bf16 => Kind::BFloat16,
    };
    Ok(Precision::new(
        compute,
        kind(section.master),
        kind(section.reduce),
    )?)
}

/// Adapters that `[model.lora]` describes.
fn lora_config(section: &LoraSection) -> LoraConfig {
    LoraConfig {
        rank: section.rank,
        alpha: section.alpha,
        use_rslora: section.use_rslora,
        targets: section
            .target_modules
            .iter()
            .filter_map(|module| LoraTarget::from_name(module.name()))
            .collect(),
        without: BTreeSet::new(),
    }
}

/// Keys that the sections of both stages have.
struct StageSection<'a> {
    num_steps: usize,
    save_every_steps: usize,
    log_every_steps: usize,
    retention: Retention,
    early_stopping_patience: Option<usize>,
    early_stopping_threshold: Option<f64>,
    final_dtype: Option<FinalDtype>,
    optimizer: &'a OptimizerSection,
}

fn open_sinks(names: &[String], registries: &Registries) -> Result<Vec<OpenSink>> {
    let open = |name: &String| registries.sinks.get(name).copied();
    names
        .iter()
        .map(open)
        .collect::<Result<_, _>>()
        .map_err(|reason| Error::Setting {
            key: "metrics",
            reason,
        })
}

/// Settings of stage `sft`.
#[derive(Clone, Debug)]
pub struct SftSettings {
    /// Settings that both stages share.
    pub run: RunSettings,
    /// Keys of `[sft]`.
    pub section: SftSection,
}

impl SftSettings {
    /// Settings of a recipe, with the implementations that the project ships.
    ///
    /// # Errors
    /// When the recipe has no `[sft]`, or names an implementation that does not exist.
    pub fn from_recipe(recipe: &Recipe) -> Result<Self> {
        Self::with_registries(recipe, &Registries::default())
    }

    /// As [`SftSettings::from_recipe`], with other implementations.
    ///
    /// # Errors
    /// As [`SftSettings::from_recipe`].
    pub fn with_registries(recipe: &Recipe, registries: &Registries) -> Result<Self> {
        let section = recipe
            .sft
            .as_ref()
            .ok_or(Error::MissingSection { section: "sft" })?;
        let shared = StageSection {
            num_steps: section.num_steps,
            save_every_steps: section.save_every_steps,
            log_every_steps: section.log_every_steps,
            retention: Retention {
                num_newest: section.keep_checkpoints,
                num_best: section.keep_best_checkpoints,
                metric: section.best_metric.name(),
                less_is_better: section.best_metric.less_is_better(),
            },
            early_stopping_patience: section.early_stopping_patience,
            early_stopping_threshold: section.early_stopping_threshold,
            final_dtype: section.final_dtype,
            optimizer: &section.optimizer,
        };
        Ok(Self {
            run: RunSettings::of(recipe, Stage::Sft, &shared, registries)?,
            section: section.clone(),
        })
    }

    /// Micro-batching, loss and aggregation of a step.
    pub fn batch(&self, parallelism: Parallelism, memory: Chosen) -> BatchSettings {
        BatchSettings {
            loss: Arc::new(CrossEntropy),
            aggregation: Aggregation::TokenMean,
            old_policy: OldPolicy::Sampler,
            measures_policy: false,
            temperature: 1.0,
            micro_batch_tokens: memory.tokens(),
            activation_checkpointing: memory.activation_checkpointing,
            share_prefixes: self.section.share_prefixes,
            // All ranks know all rows and take theirs.
            redistribute_rows: false,
            parallelism,
        }
    }
}

/// Settings of stage `grpo`.
#[derive(Clone, Debug)]
pub struct GrpoSettings {
    /// Settings that both stages share.
    pub run: RunSettings,
    /// Keys of `[grpo]`.
    pub section: GrpoSection,
    /// The policy loss, with the terms and weights that `[grpo]` adds to it.
    pub loss: Arc<dyn TokenLoss>,
    /// The advantage estimator.
    pub advantage: Arc<dyn AdvantageEstimator>,
    /// Loss aggregation.
    pub aggregation: Aggregation,
    /// Settings of the sampling engine.
    pub engine: EngineSection,
    /// Folder of the model that a new run starts from: the newest checkpoint of `sft`, or the recipe's model where the recipe has no
    /// `[sft]`. It may not exist.
    pub initial_model: PathBuf,
    /// The stage that left that model; `None` where the recipe names a model.
    pub sft: Option<SftGoal>,
    /// Rewards in place of those of the grades, for benchmarks: episodes of random tokens would all earn the same, and train
    /// nothing.
    pub given_reward: Option<fn(&Episode) -> f64>,
}

/// Requirement on the `sft` stage that a `grpo` run starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SftGoal {
    /// Steps that the recipe asks for; `None` where it has no `[sft]`.
    pub num_steps: Option<u64>,
}

impl GrpoSettings {
    /// Whether log-probabilities of a frozen reference model are needed, by the loss or the reward.
    pub fn needs_reference(&self) -> bool {
        self.loss.needs_reference() || self.section.has_kl_in_reward()
    }

    /// Settings of a recipe, with the implementations that the project ships.
    ///
    /// # Errors
    /// When the recipe has no `[grpo]`, or names an implementation that does not exist.
    pub fn from_recipe(recipe: &Recipe) -> Result<Self> {
        Self::with_registries(recipe, &Registries::default())
    }

    /// As [`GrpoSettings::from_recipe`], with other implementations.
    ///
    /// # Errors
    /// As [`GrpoSettings::from_recipe`].
    pub fn with_registries(recipe: &Recipe, registries: &Registries) -> Result<Self> {
        let section = recipe
            .grpo
            .as_ref()
            .ok_or(Error::MissingSection { section: "grpo" })?;
        let shared = StageSection {
            num_steps: section.num_steps,
            save_every_steps: section.save_every_steps,
            log_every_steps: section.log_every_steps,
            retention: Retention {
                num_newest: section.keep_checkpoints,
                num_best: section.keep_best_checkpoints,
                metric: section.best_metric.name(),
                less_is_better: section.best_metric.less_is_better(),
            },
            early_stopping_patience: section.early_stopping_patience,
            early_stopping_threshold: section.early_stopping_threshold,
            final_dtype: section.final_dtype,
            optimizer: &section.optimizer,
        };
        let run = RunSettings::of(recipe, Stage::Grpo, &shared, registries)?;
        let setting = |key| move |reason| Error::Setting { key, reason };
        let spec = registries
            .losses
            .get(&section.loss.name)
            .map_err(setting("grpo.loss"))?;
        let policy = (spec.build)(section).map_err(setting("grpo.loss"))?;
        let loss = PolicyObjective::of(section, policy);
        let advantage = registries
            .advantages
            .get(section.advantage.name())
            .map_err(setting("grpo.advantage"))?;
        let (initial_model, sft) = match (&recipe.sft, &recipe.model) {
            (None, ModelSection::Path(dir)) => (dir.clone(), None),
            (sft, _) => {
                let num_steps = sft.as_ref().map(|section| section.num_steps as u64);
                let model = run.layout.latest_model(Stage::Sft);
                (model, Some(SftGoal { num_steps }))
            }
        };
        Ok(Self {
            loss: Arc::new(loss),
            advantage: advantage(section),
            aggregation: Aggregation::of(section).ok_or_else(|| Error::Setting {
                key: "grpo.loss_aggregation",
                reason: "`constant_length_tokens` is missing".to_owned(),
            })?,
            engine: recipe.engine.clone(),
            initial_model,
            sft,
            given_reward: None,
            run,
            section: section.clone(),
        })
    }
}
