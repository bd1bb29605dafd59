//! The tasks by name.

use crate::mcd;
use crate::task::Task;

/// Every task that comes with the project: one line each.
const BUILTIN: &[&dyn Task] = &[&mcd::McdTask];

/// A list of tasks with different names.
#[derive(Debug, Clone)]
pub struct Registry {
    tasks: Vec<&'static dyn Task>,
}

impl Registry {
    /// The tasks that come with the project.
    pub fn builtin() -> Self {
        Self {
            tasks: BUILTIN.to_vec(),
        }
    }

    /// Adds a task, in place of an earlier one of its name.
    #[must_use]
    pub fn with(mut self, task: &'static dyn Task) -> Self {
        self.tasks.retain(|other| other.name() != task.name());
        self.tasks.push(task);
        self
    }

    /// The task of a name.
    pub fn get(&self, name: &str) -> Option<&'static dyn Task> {
        self.iter().find(|task| task.name() == name)
    }

    /// All tasks, in the order of registration.
    pub fn iter(&self) -> impl Iterator<Item = &'static dyn Task> {
        self.tasks.iter().copied()
    }

    /// Names of all tasks.
    pub fn names(&self) -> Vec<&'static str> {
        self.iter().map(Task::name).collect()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::builtin()
    }
}
