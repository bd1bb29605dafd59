//! What every grader returns.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Why an item of an answer does not count, as a name in snake case.
///
/// Each task has reasons of its own. Names are frozen once used: they appear in `grade` output and in metrics.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reason(Cow<'static, str>);

impl Reason {
    /// A reason of this name.
    pub const fn new(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One listed item of an answer and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The item as written, without surrounding blanks; cut if longer than the grader's limit.
    pub text: String,
    /// Whether it counts.
    pub ok: bool,
    /// Why it does not count; `None` exactly when `ok`.
    pub reason: Option<Reason>,
}

/// A graded answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grade {
    /// `min(num_correct, required) / required`, in `[0, 1]`.
    pub reward: f64,
    /// Different correct items among those scored; `correct` in JSON.
    #[serde(rename = "correct")]
    pub num_correct: usize,
    /// Items asked for.
    pub required: usize,
    /// The items in the order written; see the grader for how many are listed.
    pub items: Vec<Item>,
}

impl Grade {
    /// Computes the reward of `num_correct` items.
    pub fn new(num_correct: usize, required: usize, items: Vec<Item>) -> Self {
        let reward = if required == 0 {
            0.0
        } else {
            num_correct.min(required) as f64 / required as f64
        };
        Self {
            reward,
            num_correct,
            required,
            items,
        }
    }

    /// Whether everything that was asked for is there.
    pub fn is_all_correct(&self) -> bool {
        self.required > 0 && self.num_correct >= self.required
    }
}
