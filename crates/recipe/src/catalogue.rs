//! Names that a recipe may use.

use asyncthink_tasks::Registry;
use serde_json::{Value as Json, json};

/// Implementations of one kind, by name.
#[derive(Clone, Debug, Default)]
pub(crate) enum Names {
    /// Every name is accepted: the implementations are not known here.
    #[default]
    Any,
    /// These names, each with the JSON schema of its options.
    Only(Vec<(String, Json)>),
}

impl Names {
    fn add(&mut self, name: &str, schema: Json) {
        let mut names = match std::mem::take(self) {
            Self::Any => Vec::new(),
            Self::Only(names) => names,
        };
        names.retain(|(other, _)| other != name);
        names.push((name.to_owned(), schema));
        *self = Self::Only(names);
    }
}

/// Implementations that a recipe may name: tasks, policy losses, teachers, evaluation methods, metrics sinks.
///
/// The crates that implement them register them here, and the JSON schema of recipes is completed from it.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub(crate) tasks: Registry,
    pub(crate) losses: Names,
    pub(crate) teachers: Names,
    pub(crate) eval_methods: Names,
    pub(crate) metrics_sinks: Names,
}

impl Catalogue {
    /// The tasks that come with the project; names of other kinds are not checked.
    pub fn builtin() -> Self {
        Self::open(Registry::builtin())
    }

    /// Some tasks; names of other kinds are not checked until one of their kind is added.
    pub fn open(tasks: Registry) -> Self {
        Self {
            tasks,
            losses: Names::Any,
            teachers: Names::Any,
            eval_methods: Names::Any,
            metrics_sinks: Names::Any,
        }
    }

    /// Some tasks; no name of another kind is accepted until it is added.
    pub fn closed(tasks: Registry) -> Self {
        let none = || Names::Only(Vec::new());
        Self {
            tasks,
            losses: none(),
            teachers: none(),
            eval_methods: none(),
            metrics_sinks: none(),
        }
    }

    /// Adds a policy loss, for `[grpo.loss.<name>]`; `schema` is the JSON schema of its options.
    #[must_use]
    pub fn with_loss(mut self, name: &str, schema: Json) -> Self {
        self.losses.add(name, schema);
        self
    }

    /// Adds a teacher, for `[synth.teacher.<name>]`; `schema` is the JSON schema of its options.
    #[must_use]
    pub fn with_teacher(mut self, name: &str, schema: Json) -> Self {
        self.teachers.add(name, schema);
        self
    }

    /// Adds a way of thinking, for `eval.methods`.
    #[must_use]
    pub fn with_eval_method(mut self, name: &str) -> Self {
        self.eval_methods.add(name, Json::Null);
        self
    }

    /// Adds a place for metrics, for `metrics`.
    #[must_use]
    pub fn with_metrics_sink(mut self, name: &str) -> Self {
        self.metrics_sinks.add(name, Json::Null);
        self
    }

    /// JSON schema of a table without keys: for implementations without options.
    pub fn no_options(description: &str) -> Json {
        json!({
            "description": description,
            "type": "object",
            "properties": {},
            "additionalProperties": false,
        })
    }
}

impl Default for Catalogue {
    fn default() -> Self {
        Self::builtin()
    }
}
