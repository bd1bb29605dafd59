//! Rules for `[bench]`.

mod train;

use super::stages::temperature;
use super::view::Rules;
use crate::error::ErrorKind;
use crate::sections::BenchRolloutSection;

pub(super) use train::train;

/// Most sequences of one rollout, which are all in memory.
const MAX_SEQUENCES: f64 = 1_000_000.0;

pub(super) fn rollout(rules: &mut Rules<'_>) {
    if !rules.has("bench.rollout") {
        return;
    }
    temperature(
        rules,
        "bench.rollout.temperature",
        "set `temperature = 1.0`, the default, or 0 to take the likeliest token",
    );
    sequences(rules, "bench.rollout");
    vocabulary(rules, "bench.rollout");
    context(rules, "bench.rollout");
    if rules.text("bench.rollout.workload") == Some("episodes") {
        episodes(rules);
    }
}

pub(super) fn step(rules: &mut Rules<'_>) {
    if rules.has("bench.step") {
        sequences(rules, "bench.step");
        vocabulary(rules, "bench.step");
        context(rules, "bench.step");
    }
}

fn sequences(rules: &mut Rules<'_>, section: &str) {
    let key = format!("{section}.group_size");
    if let (Some(prompts), Some(group)) = (
        rules.number(&format!("{section}.num_prompts")),
        rules.number(&key),
    ) && prompts * group > MAX_SEQUENCES
    {
        rules.conflict(
            &key,
            &format!(
                "makes {} sequences together with `num_prompts` = {prompts}; at most {MAX_SEQUENCES} fit",
                prompts * group
            ),
            "lower it, or lower `num_prompts`",
        );
    }
}

fn vocabulary(rules: &mut Rules<'_>, section: &str) {
    let key = "model.init.vocab_size";
    if rules.has("model.init") && !rules.has(key) {
        rules.push(
            ErrorKind::MissingKey,
            key,
            &format!("missing key: `[{section}]` has no tokenizer that says it"),
            "add `vocab_size = ...` to `[model.init]`, for example 512",
        );
    }
}

/// The context is known here where the model is drawn; that of a folder is looked at by the command.
fn context(rules: &mut Rules<'_>, section: &str) {
    let key = format!("{section}.new_tokens");
    let (Some(prompt), Some(new), Some(limit)) = (
        rules.number(&format!("{section}.prompt_tokens")),
        rules.number(&key),
        rules.number("model.init.max_position_embeddings"),
    ) else {
        return;
    };
    if rules.has("model.init") && prompt + new > limit {
        rules.conflict(
            &key,
            &format!(
                "makes sequences of {} tokens with `prompt_tokens` = {prompt}, more than `model.init.max_position_embeddings` = {limit}",
                prompt + new
            ),
            "lower it, lower `prompt_tokens`, or raise `max_position_embeddings`",
        );
    }
}

fn episodes(rules: &mut Rules<'_>) {
    let own = rules.number("bench.rollout.capacity");
    let key = match own {
        Some(_) => "bench.rollout.capacity",
        None => "protocol.capacity",
    };
    let (Some(capacity), Some(new_tokens), Some(return_tokens), Some(prompt_tokens)) = (
        own.or_else(|| rules.number("protocol.capacity")),
        rules.number("bench.rollout.new_tokens"),
        rules.number("bench.rollout.return_tokens"),
        rules.number("bench.rollout.prompt_tokens"),
    ) else {
        return;
    };
    if capacity < 2.0 {
        rules.conflict(
            key,
            "a pool of 1 cannot fork",
            "set `bench.rollout.capacity = 2`, or `workload = \"plain\"`",
        );
        return;
    }
    let num_forks = rules
        .number("bench.rollout.num_forks")
        .unwrap_or(capacity - 1.0);
    let organizer = tokens(num_forks, BenchRolloutSection::organizer_tokens);
    let worker = tokens(return_tokens, BenchRolloutSection::worker_tokens);
    if new_tokens < organizer.max(worker) {
        rules.conflict(
            "bench.rollout.new_tokens",
            &format!(
                "is too few for an episode: the organizer needs {organizer} for `num_forks` = {num_forks}, and a worker {worker} \
                 for `return_tokens` = {return_tokens}"
            ),
            &format!("set `new_tokens = {}` or more", organizer.max(worker)),
        );
    }
    if prompt_tokens < BenchRolloutSection::SUB_QUERY_TOKENS as f64 {
        rules.conflict(
            "bench.rollout.prompt_tokens",
            "has no room for a worker's sub-query",
            &format!(
                "set `prompt_tokens = {}` or more",
                BenchRolloutSection::SUB_QUERY_TOKENS
            ),
        );
    }
}

/// A count from another, both as rules read numbers.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of at most 2^31"
)]
fn tokens(count: f64, of: fn(usize) -> usize) -> f64 {
    of(count.max(0.0) as usize) as f64
}
