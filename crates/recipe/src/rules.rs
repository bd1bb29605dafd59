//! Rules over several keys. They read the document, not the structs, so that
//! they speak even where another part of the recipe does not parse; a rule
//! whose keys are absent or ill-formed says nothing.

mod prompts;
mod saving;

use serde_json::Value as Json;

use crate::device::DeviceSpec;
use crate::document::{Node, Value};
use crate::error::{ErrorKind, RecipeError};

/// All contradictions in `root`.
pub(crate) fn check(root: &Node, schema: &Json) -> Vec<RecipeError> {
    let mut rules = Rules {
        root,
        schema,
        errors: Vec::new(),
    };
    rules.device();
    rules.mcd();
    rules.protocol();
    rules.prompts();
    rules.chat();
    rules.model();
    rules.steps("sft");
    rules.steps("grpo");
    rules.grpo();
    rules.reward();
    rules.eval();
    rules.engine();
    rules.distributed();
    rules.synth();
    rules.saving();
    rules.errors
}

/// The keys that the problem generator needs.
const GENERATOR_KEYS: [&str; 5] = [
    "num_numbers",
    "number_range",
    "target_range",
    "num_train_problems",
    "num_test_problems",
];

/// Most episodes that are sampled together.
const MAX_EPISODES: f64 = 10_000_000.0;

struct Rules<'a> {
    root: &'a Node,
    schema: &'a Json,
    errors: Vec<RecipeError>,
}

impl Rules<'_> {
    fn push(&mut self, kind: ErrorKind, key: &str, reason: &str, hint: &str) {
        let (source, value) = self.root.locate(key);
        let written = value
            .filter(|value| !matches!(value, Value::Table(_)))
            .map(Value::display);
        let default = self.default(key).map(ToString::to_string);
        let is_default = written.is_none() && default.is_some();
        let mut error = RecipeError::new(kind, source, key, written.or(default), reason, hint);
        error.is_default = is_default;
        self.errors.push(error);
    }

    fn conflict(&mut self, key: &str, reason: &str, hint: &str) {
        self.push(ErrorKind::Conflict, key, reason, hint);
    }

    fn has(&self, key: &str) -> bool {
        self.root.locate(key).1.is_some()
    }

    /// The default of a key, where it has one.
    fn default(&self, key: &str) -> Option<&Json> {
        let mut schema = self.schema;
        for part in key.split('.') {
            schema = schema.get("properties")?.get(part)?;
        }
        schema.get("default").filter(|default| !default.is_object())
    }

    /// A number as written or by default.
    fn number(&self, key: &str) -> Option<f64> {
        match self.root.locate(key).1 {
            Some(Value::Integer(number)) => Some(*number as f64),
            Some(Value::Float(number)) if number.is_finite() => Some(*number),
            Some(_) => None,
            None => self.default(key)?.as_f64(),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.root.locate(key).1 {
            Some(Value::String(text)) => Some(text),
            Some(_) => None,
            None => self.default(key)?.as_str(),
        }
    }

    fn pair(&self, key: &str) -> Option<(i64, i64)> {
        match self.root.locate(key).1 {
            Some(Value::Array(items)) => match items.as_slice() {
                [a, b] => match (&a.value, &b.value) {
                    (Value::Integer(a), Value::Integer(b)) => Some((*a, *b)),
                    _ => None,
                },
                _ => None,
            },
            Some(_) => None,
            None => {
                let default = self.default(key)?;
                Some((default.get(0)?.as_i64()?, default.get(1)?.as_i64()?))
            }
        }
    }

    fn device(&mut self) {
        let Some(Err(reason)) = self.text("device").map(str::parse::<DeviceSpec>) else {
            return;
        };
        self.push(
            ErrorKind::OutOfRange,
            "device",
            &reason,
            "set `device = \"auto\"`, the default",
        );
    }

    fn mcd(&mut self) {
        let section = "task.mcd";
        if !self.has(section) {
            return;
        }
        let key = |name: &str| format!("{section}.{name}");
        let files = ["train_file", "test_file"].map(|name| self.has(&key(name)));
        if files == [false, false] {
            for name in GENERATOR_KEYS {
                if !self.has(&key(name)) {
                    self.push(
                        ErrorKind::MissingKey,
                        &key(name),
                        "missing key: the problem generator needs it",
                        "add it, or give `train_file` and `test_file`",
                    );
                }
            }
        } else {
            let absent = ["train_file", "test_file"].into_iter().zip(files);
            for (name, present) in absent {
                if !present {
                    self.push(
                        ErrorKind::MissingKey,
                        &key(name),
                        "missing key: training and test problems come from two files",
                        "add it; the released rows have one file for each",
                    );
                }
            }
            for name in GENERATOR_KEYS.into_iter().chain(["test_target_fraction"]) {
                if self.has(&key(name)) {
                    self.conflict(
                        &key(name),
                        "the problems come from files, so the generator's keys have no effect",
                        "remove it, or remove `train_file` and `test_file`",
                    );
                }
            }
        }
        self.mcd_ranges();
    }

    fn mcd_ranges(&mut self) {
        for name in ["numbers_per_solution", "number_range", "target_range"] {
            let key = format!("task.mcd.{name}");
            if let Some((low, high)) = self.pair(&key)
                && low > high
            {
                self.conflict(
                    &key,
                    "the smallest value comes after the largest",
                    &format!("write `{name} = [{high}, {low}]`"),
                );
            }
        }
        let per_solution = self.pair("task.mcd.numbers_per_solution");
        if let Some((low, _)) = per_solution
            && low < 2
        {
            self.conflict(
                "task.mcd.numbers_per_solution",
                "a solution needs at least two numbers",
                "start from 2",
            );
        }
        let Some(num_numbers) = self.number("task.mcd.num_numbers") else {
            return;
        };
        if let Some((low, high)) = per_solution
            && low <= high
            && high as f64 > num_numbers
        {
            self.conflict(
                "task.mcd.numbers_per_solution",
                &format!("a solution cannot use more than the {num_numbers} numbers on offer"),
                "lower it, or raise `num_numbers`",
            );
        }
        if let Some((low, high)) = self.pair("task.mcd.number_range")
            && low <= high
            && (high.saturating_sub(low).saturating_add(1) as f64) < num_numbers
        {
            self.conflict(
                "task.mcd.number_range",
                &format!("holds fewer than {num_numbers} different numbers"),
                "widen it, or lower `num_numbers`",
            );
        }
        if let (Some(wanted), Some(offered)) = (
            self.number("eval.num_problems"),
            self.number("task.mcd.num_test_problems"),
        ) && wanted > offered
        {
            self.conflict(
                "eval.num_problems",
                &format!("only {offered} test problems are made"),
                "lower it, or raise `task.mcd.num_test_problems`",
            );
        }
        if let (Some(wanted), Some(offered)) = (
            self.number("grpo.prompts_per_step"),
            self.number("task.mcd.num_train_problems"),
        ) && wanted > offered
        {
            self.conflict(
                "grpo.prompts_per_step",
                &format!("only {offered} training problems are made"),
                "lower it, or raise `task.mcd.num_train_problems`",
            );
        }
    }

    fn protocol(&mut self) {
        if let (Some(total), Some(fragment)) = (
            self.number("protocol.organizer_total_tokens"),
            self.number("protocol.organizer_max_tokens"),
        ) && total < fragment
        {
            self.conflict(
                "protocol.organizer_total_tokens",
                &format!("is below `organizer_max_tokens` = {fragment}, which it would cut"),
                "raise it, or leave it out",
            );
        }
    }

    fn distributed(&mut self) {
        if self.text("distributed.shard") == Some("full") && self.has("model.lora") {
            self.conflict(
                "distributed.shard",
                "adapters are small, and the model that they stand on is not shared out",
                "use `shard = \"optimizer\"` with `[model.lora]`",
            );
        }
    }

    fn model(&mut self) {
        if !self.has("model") {
            return;
        }
        match (self.has("model.path"), self.has("model.init")) {
            (true, true) => self.conflict(
                "model.path",
                "a model is either loaded or new, and `[model.init]` is there too",
                "remove `path` or `[model.init]`",
            ),
            (false, false) => self.push(
                ErrorKind::MissingKey,
                "model",
                "neither `path` nor `[model.init]`",
                "add `path = \"...\"`, the folder of a Hugging Face model, or `[model.init]`",
            ),
            _ => {}
        }
        if !self.has("model.init") {
            return;
        }
        if self.has("model.lora") {
            self.conflict(
                "model.lora",
                "adapters need a model to stand on, and `[model.init]` makes a new one that is saved nowhere",
                "give a trained model as `model.path`, or remove `[model.lora]`",
            );
        }
        if let (Some(heads), Some(kv_heads)) = (
            self.number("model.init.num_heads"),
            self.number("model.init.num_kv_heads"),
        ) && kv_heads >= 1.0
            && heads % kv_heads != 0.0
        {
            self.conflict(
                "model.init.num_heads",
                &format!("is no multiple of `num_kv_heads` = {kv_heads}"),
                "every key and value head serves the same number of query heads",
            );
        }
        if let Some(head_dim) = self.number("model.init.head_dim")
            && head_dim % 2.0 != 0.0
        {
            self.conflict(
                "model.init.head_dim",
                "is odd, and rotary embeddings turn pairs",
                "choose an even number",
            );
        }
        let longest = [
            "organizer_max_tokens",
            "organizer_total_tokens",
            "worker_max_tokens",
        ]
        .into_iter()
        .filter_map(|name| Some((name, self.number(&format!("protocol.{name}"))?)))
        .max_by(|a, b| a.1.total_cmp(&b.1));
        if let (Some((name, tokens)), Some(limit)) =
            (longest, self.number("model.init.max_position_embeddings"))
            && tokens >= limit
        {
            self.conflict(
                "model.init.max_position_embeddings",
                &format!("leaves no room for a prompt: `protocol.{name}` is {tokens}"),
                "raise it above prompt, decoded and injected tokens together",
            );
        }
    }

    fn steps(&mut self, stage: &str) {
        let warmup = format!("{stage}.optimizer.warmup_steps");
        if let (Some(warmup_steps), Some(num_steps)) = (
            self.number(&warmup),
            self.number(&format!("{stage}.num_steps")),
        ) && num_steps >= 1.0
            && warmup_steps > num_steps
        {
            self.conflict(
                &warmup,
                &format!("exceeds `{stage}.num_steps` = {num_steps}: the learning rate would never reach its peak"),
                "lower it, or train for longer",
            );
        }
    }

    fn grpo(&mut self) {
        self.episodes("grpo.group_size", "grpo.prompts_per_step");
        if self.text("grpo.loss_aggregation") == Some("constant_length")
            && !self.has("grpo.constant_length_tokens")
        {
            self.conflict(
                "grpo.loss_aggregation",
                "needs `constant_length_tokens`, which is absent",
                "add `constant_length_tokens`, for example the longest episode in tokens",
            );
        }
    }

    fn eval(&mut self) {
        self.episodes("eval.samples_per_problem", "eval.num_problems");
    }

    /// All episodes of a step, or of a measurement, are in memory.
    fn episodes(&mut self, per_problem: &str, problems: &str) {
        if let (Some(samples), Some(num_problems)) =
            (self.number(per_problem), self.number(problems))
            && samples * num_problems > MAX_EPISODES
        {
            self.conflict(
                per_problem,
                &format!(
                    "makes {} episodes together with `{problems}` = {num_problems}; at most {MAX_EPISODES} fit",
                    samples * num_problems
                ),
                &format!("lower it, or lower `{problems}`"),
            );
        }
    }

    fn engine(&mut self) {
        if let (Some(max_agents), Some(capacity)) = (
            self.number("engine.max_agents"),
            self.number("protocol.capacity"),
        ) && max_agents < capacity
        {
            self.conflict(
                "engine.max_agents",
                &format!("an episode needs places for `protocol.capacity` = {capacity} agents"),
                "raise it, or leave it out",
            );
        }
    }

    fn reward(&mut self) {
        if !self.has("grpo") {
            return;
        }
        let (Some(capacity), Some(tau)) = (
            self.number("protocol.capacity"),
            self.number("grpo.reward.tau"),
        ) else {
            return;
        };
        let paid = ["grpo.reward.lambda", "grpo.reward.lambda_final"]
            .iter()
            .any(|key| self.number(key).is_some_and(|lambda| lambda > 0.0));
        let alone = capacity <= 1.0;
        if alone && paid {
            self.conflict(
                "grpo.reward.lambda",
                "pays for concurrency, and a pool of `protocol.capacity` = 1 has none",
                "set `lambda = 0`, or raise `protocol.capacity`",
            );
        } else if !alone && tau * capacity <= 1.0 {
            self.conflict(
                "grpo.reward.tau",
                &format!(
                    "must exceed 1/c = 1/{capacity} (`protocol.capacity`): otherwise every episode earns the same concurrency reward"
                ),
                "choose a value between 1/c and 1, for example 0.9, the default",
            );
        }
    }

    fn synth(&mut self) {
        if self.has("synth")
            && self.number("protocol.capacity") == Some(1.0)
            && self
                .number("synth.topology_max_forks")
                .is_some_and(|forks| forks > 0.0)
        {
            self.conflict(
                "synth.topology_max_forks",
                "a pool of `protocol.capacity` = 1 cannot fork",
                "set `topology_max_forks = 0`, or raise `protocol.capacity`",
            );
        }
    }
}
