//! The seam of tasks.

use std::fmt::Debug;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::config::{ConfigFault, ConfigView};
use crate::error::Error;
use crate::problem::Problem;
use crate::solver::Solver;

/// Names in braces that a task fills in `prompts.query`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placeholders {
    /// Names that the template must hold.
    pub required: &'static [&'static str],
    /// Names that it may hold.
    pub optional: &'static [&'static str],
}

/// The problems of a split that a section asks for, and the key that says so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProblemCount {
    /// The key, relative to the section.
    pub key: &'static str,
    /// Problems.
    pub count: f64,
}

/// Number of problems a section defines, where known from the recipe alone.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProblemCounts {
    /// Training problems.
    pub train: Option<ProblemCount>,
    /// Validation problems; a count of 0 where it is known that there are none.
    pub validation: Option<ProblemCount>,
    /// Test problems.
    pub test: Option<ProblemCount>,
}

/// A kind of problem that agents are trained on.
///
/// An implementation lives in a folder of its own and has one line in `Registry::builtin`.
pub trait Task: Debug + Send + Sync {
    /// Name as in `[task.<name>]` and `grade --task <name>`.
    fn name(&self) -> &'static str;

    /// A few words for `--help`.
    fn title(&self) -> &'static str;

    /// JSON schema of the section `[task.<name>]`; `schema_of` makes it of the struct that serde reads.
    fn schema(&self) -> Value;

    /// Placeholders of `prompts.query`; problems fill them by `TaskProblem::fields`.
    fn placeholders(&self) -> Placeholders;

    /// Rules over several keys of the section. The section's form may be wrong; the schema is checked apart.
    fn check(&self, config: &ConfigView<'_>) -> Vec<ConfigFault> {
        let _ = config;
        Vec::new()
    }

    /// Problems that the section asks for, so that other sections cannot ask for more.
    fn problem_counts(&self, config: &ConfigView<'_>) -> ProblemCounts {
        let _ = config;
        ProblemCounts::default()
    }

    /// Takes a section that passed the schema and [`Self::check`].
    ///
    /// # Errors
    /// The section has another form.
    fn configure(&self, config: &Value) -> Result<TaskConfig, Error>;

    /// Reads a problem from its JSON, as problem files and the command `grade` have it.
    ///
    /// # Errors
    /// The text is no problem of this task.
    fn read_problem(&self, json: &str) -> serde_json::Result<Problem>;

    /// Writer of cold-start work; `None` where the task has none, and another teacher must write the traces.
    fn solver(&self) -> Option<&dyn Solver> {
        None
    }
}

/// A part of the problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Problems to train on.
    Train,
    /// Problems to choose settings by.
    Validation,
    /// Problems to test on.
    Test,
}

/// A file that a section names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// The key, relative to the section.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The problems that it holds.
    pub split: Split,
}

/// The problems of a run. No split key is in two of the lists where the task generates them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProblemSet {
    /// Training problems.
    pub train: Vec<Problem>,
    /// Problems to choose settings by, so that test problems are looked at once; empty where the recipe asks for none.
    pub validation: Vec<Problem>,
    /// Test problems.
    pub test: Vec<Problem>,
}

/// A task with the settings of one recipe.
pub trait ConfiguredTask: Debug + Send + Sync {
    /// The task.
    fn task(&self) -> &dyn Task;

    /// The section with every default written out, keys in the order of its struct. Equal sections make equal problems from
    /// equal seeds and files.
    fn config(&self) -> &toml::Table;

    /// Files that the section names.
    fn input_files(&self) -> Vec<InputFile> {
        Vec::new()
    }

    /// Generates the problems, or reads them from the files. The same seed gives the same problems.
    ///
    /// # Errors
    /// The generator finds too few problems, or a file cannot be read.
    fn problems(&self, seed: u64) -> Result<ProblemSet, Error>;
}

/// A [`ConfiguredTask`] of any task. Cheap to clone; equal to another where task and section are.
#[derive(Debug, Clone)]
pub struct TaskConfig(Arc<dyn ConfiguredTask>);

impl TaskConfig {
    /// Holds a configured task.
    pub fn new(task: impl ConfiguredTask + 'static) -> Self {
        Self(Arc::new(task))
    }
}

impl Deref for TaskConfig {
    type Target = dyn ConfiguredTask;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl PartialEq for TaskConfig {
    fn eq(&self, other: &Self) -> bool {
        self.task().name() == other.task().name() && self.config() == other.config()
    }
}
