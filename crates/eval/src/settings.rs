//! The settings of an evaluation, taken from the recipe once.

use std::path::PathBuf;

use asyncthink_model::Precision;
use asyncthink_recipe::{EngineSection, EvalSplit, RecipeData, RulesFrom};
use asyncthink_rollout::ModelCard;

use crate::error::{Error, Result};

/// Evaluation settings.
#[derive(Clone, Debug)]
pub struct EvalSettings {
    /// Problems that are measured on.
    pub split: EvalSplit,
    /// Held-out problems to sample by the seed; `None` takes all.
    pub num_problems: Option<usize>,
    /// Episodes per problem.
    pub samples_per_problem: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// Resamples behind the intervals.
    pub bootstrap_samples: usize,
    /// Coverage of the intervals.
    pub confidence: f64,
    /// Whether a model's own card counts before [`Self::card`].
    pub rules_from: RulesFrom,
    /// Prompts, protocol and budgets of the recipe.
    pub card: ModelCard,
    /// Settings of the sampling engine.
    pub engine: EngineSection,
    /// Folder of the base model of adapter folders, in place of what they name.
    pub adapter_base: Option<PathBuf>,
    /// Number types of the model.
    pub precision: Precision,
    /// Seed of sampling and resampling.
    pub seed: u64,
    /// Names of the methods, in the order of the table.
    pub methods: Vec<String>,
}

impl EvalSettings {
    /// The settings of a recipe.
    ///
    /// # Errors
    /// When the recipe has no `[eval]`.
    pub fn from_recipe(recipe: &RecipeData) -> Result<Self> {
        let section = recipe.eval.as_ref().ok_or(Error::MissingSection)?;
        Ok(Self {
            split: section.split,
            num_problems: section.num_problems,
            samples_per_problem: section.samples_per_problem,
            temperature: section.temperature,
            bootstrap_samples: section.bootstrap_samples,
            confidence: section.confidence,
            rules_from: section.rules_from,
            card: ModelCard::new(&recipe.prompts, &recipe.protocol),
            engine: recipe.engine.clone(),
            adapter_base: recipe.adapter_base.clone(),
            precision: Precision::F32,
            seed: recipe.seed,
            methods: section.methods.clone(),
        })
    }
}
