//! The seam of teachers.

use std::collections::BTreeSet;
use std::fmt::Debug;

use asyncthink_data::PromptTemplates;
use asyncthink_protocol::{Protocol, RawTrace};
use asyncthink_recipe::SynthSection;
use asyncthink_tasks::{Problem, Task};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::error::Result;
use crate::topology::Event;

/// A writer of cold-start traces.
///
/// An implementation lives in a file or folder of its own and has one line in `teacher::Registry::builtin`.
pub trait Teacher: Debug + Send + Sync {
    /// Name as in `[synth.teacher.<name>]` and in the provenance of pairs.
    fn name(&self) -> &'static str;

    /// JSON schema of the table `[synth.teacher.<name>]`.
    fn options_schema(&self) -> Value;

    /// Tells whether the teacher can write traces of a task.
    fn can_teach(&self, task: &dyn Task) -> bool;

    /// Texts that hold every word the teacher writes for a task, for a tokenizer made from the task's text. Empty where the
    /// teacher writes any text.
    fn vocabulary(&self, task: &dyn Task) -> Vec<String>;

    /// Starts a run.
    ///
    /// # Errors
    /// The teacher cannot be reached, or its options do not fit.
    fn open<'a>(&self, context: TeacherContext<'a>) -> Result<Box<dyn TraceWriter + 'a>>;
}

/// Settings that a teacher writes by.
#[derive(Debug, Clone, Copy)]
pub struct TeacherContext<'a> {
    /// The task of the problems.
    pub task: &'a dyn Task,
    /// The section `[synth]`; `teacher.options` holds the teacher's own table.
    pub section: &'a SynthSection,
    /// Rules of the trace language.
    pub protocol: Protocol,
    /// Prompt templates; the query of a problem is made by them.
    pub templates: &'a PromptTemplates,
    /// Split keys of the test problems. No trace may ask for one of them, unless its lesson does.
    pub held_out: &'a BTreeSet<String>,
    /// Seed of the run.
    pub seed: u64,
}

/// A trace to write.
#[derive(Debug, Clone)]
pub struct Lesson<'a> {
    /// Number of the trace; unique within a run.
    pub trace_id: u64,
    /// Index of the problem among the training problems.
    pub problem_index: usize,
    /// The problem. A teacher may ask for a variant of it.
    pub problem: &'a Problem,
    /// Forks and Joins that the trace must follow.
    pub topology: Vec<Event>,
    /// Generator of the trace, as the draw of the topology left it.
    pub rng: ChaCha8Rng,
}

/// A trace as a teacher wrote it, before any check.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The problem that the trace asks for.
    pub problem: Problem,
    /// Query that the organizer starts with.
    pub query: String,
    /// Text of organizer and workers.
    pub text: RawTrace,
}

/// A teacher at work in one run.
pub trait TraceWriter: Send + Sync {
    /// Prepares problems that lessons will be about, given with their index. `progress` takes the number of problems done and
    /// of all.
    ///
    /// # Errors
    /// The teacher fails as a whole.
    fn prepare(
        &mut self,
        problems: &[(usize, &Problem)],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        progress(problems.len(), problems.len());
        Ok(())
    }

    /// Writes a batch: for each lesson its trace, or a short reason why there is none. Equal lessons give equal traces,
    /// whatever the batch.
    ///
    /// # Errors
    /// The teacher fails as a whole.
    fn write(&self, lessons: &[Lesson<'_>]) -> Result<Vec<Result<Draft, String>>>;
}
