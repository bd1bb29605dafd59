//! Ways of thinking to evaluate: how a model is made to answer a problem.
//!
//! One file per method.

mod asyncthink;
pub(crate) mod registry;

use std::path::Path;

use asyncthink_protocol::RawTrace;
use asyncthink_rollout::{Episode, GradedEpisode};
use asyncthink_tasks::Problem;
use tch::{Device, Tensor};

use crate::error::Result;
use crate::settings::EvalSettings;

/// A way of thinking.
pub trait Method: std::fmt::Debug + Sync {
    /// The name in `eval.methods`.
    fn name(&self) -> &'static str;

    /// Opens the model of a folder.
    ///
    /// # Errors
    /// When the model cannot be read.
    fn open(&self, target: &Target<'_>) -> Result<Box<dyn OpenMethod>>;
}

/// A model to measure.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Model folder.
    pub model_dir: &'a Path,
    /// Where it runs.
    pub device: Device,
    /// Evaluation settings.
    pub settings: &'a EvalSettings,
}

/// One sample of one problem.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// Index among all held-out problems, of which a sample may be evaluated.
    pub problem_index: usize,
    /// Which of its samples this is.
    pub sample_index: usize,
    /// Seed of the sample; it depends on problem and sample only.
    pub seed: u64,
}

/// Progress of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalProgress {
    /// Episodes of this rank that ended.
    pub finished_episodes: usize,
    /// Episodes of this rank in all.
    pub total_episodes: usize,
}

/// A method with a model opened.
pub trait OpenMethod {
    /// Rules that the ranks must share; they are compared as text.
    fn identity(&self) -> String;

    /// Weights that the ranks must share; none for a method without a model.
    fn parameters(&self) -> &[(String, Tensor)] {
        &[]
    }

    /// Answers every question and grades the episodes, in their order. `progress` may stop it by returning `false`: then `None`.
    ///
    /// # Errors
    /// When the model fails.
    fn run(
        &mut self,
        questions: &[Question<'_>],
        progress: &mut dyn FnMut(EvalProgress) -> bool,
    ) -> Result<Option<Vec<GradedEpisode>>>;

    /// An episode as the text of its agents.
    fn raw_trace(&self, episode: &Episode) -> RawTrace;
}
