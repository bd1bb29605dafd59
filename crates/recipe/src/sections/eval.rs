//! `[eval]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{MAX_ITEMS, count, one};

/// `[eval]`: measurement on held-out problems.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalSection {
    /// Problems that are measured on. Default `test`, whose targets occur
    /// nowhere in training. Settings are chosen on `validation`, whose targets
    /// are a third part, so that test targets are looked at once.
    #[serde(default, skip_serializing_if = "EvalSplit::is_test")]
    #[schemars(extend("default" = "test"))]
    pub split: EvalSplit,
    /// Held-out problems to use, a sample by the recipe's `seed`; absent means
    /// all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_ITEMS))]
    pub num_problems: Option<usize>,
    /// Episodes per problem. Default 1.
    #[serde(default = "count::<1>")]
    #[schemars(range(min = 1, max = 10_000))]
    pub samples_per_problem: usize,
    /// Sampling temperature; 0 takes the likeliest token. Default 1, as in
    /// training.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Resamples for the bootstrap intervals. Default 1000.
    #[serde(default = "count::<1000>")]
    #[schemars(range(min = 10, max = 100_000))]
    pub bootstrap_samples: usize,
    /// Coverage of the intervals. Default 0.95.
    #[serde(default = "crate::defaults::confidence")]
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub confidence: f64,
    /// Whose prompts, protocol and budgets are used. Default `model`: those
    /// that the model was trained with, which lie in its folder. `recipe`
    /// takes `[prompts]` and `[protocol]` of this recipe, to measure a model
    /// under other budgets.
    #[serde(default)]
    pub rules_from: RulesFrom,
    /// Ways of thinking to measure, one after the other. Default
    /// `["asyncthink"]`.
    #[serde(default = "asyncthink", skip_serializing_if = "is_asyncthink")]
    #[schemars(length(min = 1), extend("default" = [DEFAULT_METHOD]))]
    pub methods: Vec<String>,
}

/// Name of the evaluation method where the recipe gives none.
const DEFAULT_METHOD: &str = "asyncthink";

fn asyncthink() -> Vec<String> {
    vec![DEFAULT_METHOD.to_owned()]
}

fn is_asyncthink(methods: &Vec<String>) -> bool {
    *methods == asyncthink()
}

/// Problems that an evaluation measures on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvalSplit {
    /// Test problems.
    #[default]
    Test,
    /// Validation problems.
    Validation,
}

impl EvalSplit {
    /// The name in the recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Validation => "validation",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_test(&self) -> bool {
        *self == Self::Test
    }
}

/// Whose prompts, protocol and budgets an evaluation uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RulesFrom {
    /// The model's, from `asyncthink.json` in its folder; the recipe's for a
    /// model that has none.
    #[default]
    Model,
    /// The recipe's.
    Recipe,
}
