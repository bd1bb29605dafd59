//! `[protocol]`.

use asyncthink_protocol::{Capacity, Overflow, Protocol, TagStyle};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::MAX_COUNT;

/// `[protocol]`: how organizer and workers talk, and how long they may.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProtocolSection {
    /// Size `c` of the agent pool: one organizer and at most `c - 1` workers
    /// at a time. The paper uses 2 or 4, depending on the task.
    #[schemars(with = "u32", range(min = 1, max = 1024))]
    pub capacity: Capacity,
    /// Tokens that a worker may decode per sub-query. A worker cut here
    /// without a complete `<RETURN>` returns the empty string. The paper uses
    /// 512 or 2048, depending on the task.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub worker_max_tokens: u32,
    /// Tokens that the organizer may decode before each Join; every Join
    /// resets the count. The paper uses 512 for one of its tasks.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub organizer_max_tokens: u32,
    /// Spelling of the tags: `plain` is `<FORK1>`, `hyphen` is `<FORK-1>`.
    /// The paper shows both. Default `plain`, as in its prompts.
    #[serde(default)]
    #[schemars(with = "TagStyleNames")]
    pub tag_style: TagStyle,
    /// What a Fork does when all `c - 1` workers are busy: `error` ends the
    /// episode with a format error, `queue` lets it wait for a free worker
    /// and counts the wait. Default `error`, the paper's rule for training.
    #[serde(default)]
    #[schemars(with = "OverflowNames")]
    pub overflow: Overflow,
    /// Most Forks per episode; absent means no limit. A guard against
    /// episodes that fork for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_forks: Option<u32>,
    /// Most tokens that the organizer may decode in a whole episode; absent
    /// means no limit beyond `organizer_max_tokens` per fragment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub organizer_total_tokens: Option<u32>,
}

impl ProtocolSection {
    /// The rules that the recogniser applies.
    pub fn protocol(&self) -> Protocol {
        Protocol {
            tags: self.tag_style,
            capacity: self.capacity,
            overflow: self.overflow,
            max_forks: self.max_forks,
        }
    }
}

/// Names of the tag styles, for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum TagStyleNames {
    Plain,
    Hyphen,
}

/// Names of the overflow rules, for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum OverflowNames {
    Error,
    Queue,
}
