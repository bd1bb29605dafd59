//! Identifying what a run was made from.

use std::collections::BTreeMap;

use asyncthink_data::TrainingRow;
use asyncthink_recipe::{ComputeFormat, Recipe, Stage};
use serde::Serialize;

use crate::error::{Error, Result};

/// Sections whose keys shape the numbers of a stage, besides the stage's own.
const SHARED_SECTIONS: [&str; 4] = ["seed", "task", "protocol", "prompts"];

/// Keys of the stages that may change between a stop and a resume: how often something is written, what is checked, what may be
/// started from, and how work is cut. (Cutting changes the rounding of sums and nothing else.)
const FREE_KEYS: [&str; 13] = [
    "save_every_steps",
    "keep_checkpoints",
    "keep_best_checkpoints",
    "best_metric",
    "log_every_steps",
    "dump_episodes_every_steps",
    "max_logprob_mismatch",
    "micro_batch_tokens",
    "activation_checkpointing",
    "share_prefixes",
    "save_merged",
    "init_from_unfinished",
    "final_dtype",
];

/// The recipe's keys that a resumed `stage` must share with its checkpoint, with their values as TOML.
///
/// # Errors
/// When the resolved recipe cannot be read back.
pub fn recipe_keys(recipe: &Recipe, stage: Stage) -> Result<BTreeMap<String, String>> {
    let table: toml::Table = recipe
        .to_toml()
        .parse()
        .map_err(|error| Error::stage("reading the resolved recipe back", error))?;
    let mut keys = BTreeMap::new();
    for (name, value) in &table {
        let is_model = name == "model" && stage == Stage::Sft;
        if SHARED_SECTIONS.contains(&name.as_str()) || name == stage.name() || is_model {
            flatten(name, value, &mut keys);
        } else if let ("model", Some(lora)) = (name.as_str(), value.get("lora")) {
            // Another initial model is known by its files; how it is trained is known from here alone.
            flatten("model.lora", lora, &mut keys);
        }
        // Not where it is the default, which checkpoints of earlier versions do not name.
        if let ("precision", Some(compute)) = (name.as_str(), value.get("compute"))
            && compute.as_str() != Some(ComputeFormat::default().name())
        {
            keys.insert("precision.compute".to_owned(), compute.to_string());
        }
    }
    keys.retain(|key, _| {
        !key.rsplit('.')
            .next()
            .is_some_and(|last| FREE_KEYS.contains(&last))
    });
    Ok(keys)
}

/// An empty table is a key too: some say something by being there.
fn flatten(prefix: &str, value: &toml::Value, keys: &mut BTreeMap<String, String>) {
    if let toml::Value::Table(table) = value
        && !table.is_empty()
    {
        for (name, value) in table {
            flatten(&format!("{prefix}.{name}"), value, keys);
        }
    } else {
        keys.insert(prefix.to_owned(), value.to_string());
    }
}

/// A 64-bit FNV-1a hash: enough to notice that a file was made anew, not to resist an attacker.
#[derive(Clone, Copy, Debug)]
struct Fingerprint(u64);

impl Fingerprint {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Identifies training rows by their ids and masks.
pub fn of_rows(rows: &[TrainingRow]) -> String {
    let mut fingerprint = Fingerprint::new();
    for row in rows {
        fingerprint.add(&(row.len() as u64).to_le_bytes());
        for (id, trained) in row.ids().iter().zip(row.loss_mask()) {
            fingerprint.add(&id.0.to_le_bytes());
            fingerprint.add(&[u8::from(*trained)]);
        }
    }
    fingerprint.text()
}

/// Identifies items, for instance problems, by their JSON.
///
/// # Errors
/// When an item cannot be written as JSON.
pub fn of_items(items: &[impl Serialize]) -> Result<String> {
    let mut fingerprint = Fingerprint::new();
    for item in items {
        let json = serde_json::to_vec(item)
            .map_err(|error| Error::stage("describing the problems", error))?;
        fingerprint.add(&json);
        fingerprint.add(b"\n");
    }
    Ok(fingerprint.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_says_something_by_being_there_is_a_key() {
        let table: toml::Table = "[prompts]\nquery = \"q\"\n[prompts.chat]\n"
            .parse()
            .unwrap();
        let mut keys = BTreeMap::new();
        flatten("prompts", &table["prompts"], &mut keys);
        let keys: Vec<_> = keys.keys().map(String::as_str).collect();
        assert_eq!(keys, ["prompts.chat", "prompts.query"]);
    }
}
