//! The seam of problems, and the value that everybody else holds.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use serde::ser::{Error as _, SerializeMap};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::grade::Grade;

/// A problem of one task.
pub trait TaskProblem: Any + Debug + Send + Sync {
    /// Name of the task.
    fn task_name(&self) -> &'static str;

    /// Values for the placeholders of the query template, in a fixed order.
    fn fields(&self) -> Vec<(&'static str, String)>;

    /// Grades the text of an answer. Every text has a grade, and the time is bounded.
    fn grade(&self, answer: &str) -> Grade;

    /// Number of distinct correct items that earn the full reward.
    fn required(&self) -> usize;

    /// Key that no training problem shares with a test problem, such as a target number.
    fn split_key(&self) -> String;

    /// Key that two items of answers share where they count as one solution; `None` for an item that is none.
    fn vote_key(&self, item: &str) -> Option<String>;

    /// Keys of the attempts at an item in what an agent wrote, in its order; two that try the same thing share a key. `None`
    /// where the task cannot tell an attempt from other text.
    fn attempts(&self, text: &str) -> Option<Vec<String>> {
        let _ = text;
        None
    }

    /// Largest whole number that the problem shows. A tokenizer made for the task has a token for each number up to it.
    fn largest_number(&self) -> u64 {
        0
    }

    /// Largest whole number that answers commonly show.
    fn largest_result(&self) -> u64 {
        self.largest_number()
    }

    /// The problem as JSON, which `Task::read_problem` reads.
    ///
    /// # Errors
    /// A value has no JSON.
    fn to_json(&self) -> serde_json::Result<String>;
}

/// A problem of any task. Cheap to clone.
///
/// Two problems are equal if their task and their JSON are. In JSON a problem is `{"<task>": {...}}`.
#[derive(Debug, Clone)]
pub struct Problem(Arc<dyn TaskProblem>);

impl Problem {
    /// Holds a problem of some task.
    pub fn new(problem: impl TaskProblem) -> Self {
        Self(Arc::new(problem))
    }

    /// Name of the task as in `[task.<name>]` and `grade --task <name>`.
    pub fn task_name(&self) -> &'static str {
        self.0.task_name()
    }

    /// Values for the placeholders of the query template, in a fixed order.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        self.0.fields()
    }

    /// Grades the text of an answer.
    pub fn grade(&self, answer: &str) -> Grade {
        self.0.grade(answer)
    }

    /// Number of distinct correct items that earn the full reward.
    pub fn required(&self) -> usize {
        self.0.required()
    }

    /// Key that no training problem shares with a test problem.
    pub fn split_key(&self) -> String {
        self.0.split_key()
    }

    /// Key that two items of answers share where they count as one solution; `None` for an item that is none.
    pub fn vote_key(&self, item: &str) -> Option<String> {
        self.0.vote_key(item)
    }

    /// Keys of the attempts at an item in what an agent wrote, in its order; `None` where the task cannot tell.
    pub fn attempts(&self, text: &str) -> Option<Vec<String>> {
        self.0.attempts(text)
    }

    /// Largest whole number that the problem shows.
    pub fn largest_number(&self) -> u64 {
        self.0.largest_number()
    }

    /// Largest whole number that answers commonly show.
    pub fn largest_result(&self) -> u64 {
        self.0.largest_result()
    }

    /// The problem as JSON, without the name of its task.
    ///
    /// # Errors
    /// A value has no JSON.
    pub fn to_json(&self) -> serde_json::Result<String> {
        self.0.to_json()
    }

    /// The problem as the type of its task; `None` where it is of another task. For code that belongs to that task.
    pub fn downcast_ref<T: TaskProblem>(&self) -> Option<&T> {
        let problem: &dyn Any = &*self.0;
        problem.downcast_ref()
    }
}

impl PartialEq for Problem {
    fn eq(&self, other: &Self) -> bool {
        if Arc::ptr_eq(&self.0, &other.0) {
            return true;
        }
        self.task_name() == other.task_name()
            && matches!((self.to_json(), other.to_json()), (Ok(one), Ok(two)) if one == two)
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json = self.to_json().and_then(RawValue::from_string);
        let json = json.map_err(S::Error::custom)?;
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.task_name(), &json)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcd::{self, Rules};

    #[test]
    fn a_problem_passes_everything_on() {
        let rules = Rules {
            min_numbers: 2,
            max_numbers: 2,
        };
        let countdown = mcd::Problem::new(15, vec![3, 5, 7, 8], 2, rules).unwrap();
        let problem = Problem::from(countdown.clone());
        assert_eq!(problem.task_name(), "mcd");
        assert_eq!(problem.split_key(), "15");
        assert_eq!(problem.required(), 2);
        assert_eq!(problem.grade("3*5; 7+8").num_correct, 2);
        let fields: Vec<String> = problem
            .fields()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            fields.join(", "),
            "numbers=3 5 7 8, target=15, required=2, min_numbers=2, max_numbers=2"
        );
        assert_eq!(
            problem.downcast_ref::<mcd::Problem>().unwrap().target,
            countdown.target
        );
        assert_eq!(problem, Problem::from(countdown));
        // Checkpoints hold a hash of this text.
        assert_eq!(
            serde_json::to_string(&problem).unwrap(),
            r#"{"mcd":{"target":15,"available_numbers":[3,5,7,8],"required":2,"min_numbers":2,"max_numbers":2}}"#
        );
    }

    #[test]
    fn items_vote_for_the_same_solution() {
        let problem = mcd::Problem::new(15, vec![3, 5, 7, 8], 2, Rules::default()).unwrap();
        let problem = Problem::from(problem);
        assert_eq!(problem.vote_key("3 * 5"), problem.vote_key("5*3 = 15"));
        assert_ne!(problem.vote_key("3*5"), problem.vote_key("7+8"));
        assert_eq!(problem.vote_key("3*"), None);
    }
}
