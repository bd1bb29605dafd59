//! The teachers by name.

use super::seam::Teacher;
use super::solver::SolverTeacher;

/// Every teacher that comes with the project: one line each.
const BUILTIN: &[&dyn Teacher] = &[&SolverTeacher];

/// A list of teachers with different names.
#[derive(Debug, Clone)]
pub struct Registry {
    teachers: Vec<&'static dyn Teacher>,
}

impl Registry {
    /// The teachers that come with the project.
    pub fn builtin() -> Self {
        Self {
            teachers: BUILTIN.to_vec(),
        }
    }

    /// Adds a teacher, in place of an earlier one of its name.
    #[must_use]
    pub fn with(mut self, teacher: &'static dyn Teacher) -> Self {
        self.teachers.retain(|other| other.name() != teacher.name());
        self.teachers.push(teacher);
        self
    }

    /// The teacher of a name.
    pub fn get(&self, name: &str) -> Option<&'static dyn Teacher> {
        self.iter().find(|teacher| teacher.name() == name)
    }

    /// All teachers, in the order of registration.
    pub fn iter(&self) -> impl Iterator<Item = &'static dyn Teacher> {
        self.teachers.iter().copied()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::builtin()
    }
}
