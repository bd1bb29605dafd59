//! Rules for the sections of stages.

use super::view::Rules;
use crate::defaults::MIN_TEMPERATURE;
use crate::error::ErrorKind;

/// Most episodes that are sampled together.
const MAX_EPISODES: f64 = 10_000_000.0;

pub(super) fn steps(rules: &mut Rules<'_>, stage: &str) {
    let warmup = format!("{stage}.optimizer.warmup_steps");
    if let (Some(warmup_steps), Some(num_steps)) = (
        rules.number(&warmup),
        rules.number(&format!("{stage}.num_steps")),
    ) && num_steps >= 1.0
        && warmup_steps > num_steps
    {
        rules.conflict(
            &warmup,
            &format!("exceeds `{stage}.num_steps` = {num_steps}: the learning rate would never reach its peak"),
            "lower it, or train for longer",
        );
    }
}

/// Logits are divided by it as f32.
pub(super) fn temperature(rules: &mut Rules<'_>, key: &str, hint: &str) {
    if rules
        .number(key)
        .is_some_and(|value| value > 0.0 && value < MIN_TEMPERATURE)
    {
        let reason = format!("is too small to divide by: the smallest is {MIN_TEMPERATURE:e}");
        rules.push(ErrorKind::OutOfRange, key, &reason, hint);
    }
}

pub(super) fn grpo(rules: &mut Rules<'_>) {
    temperature(
        rules,
        "grpo.temperature",
        "set `temperature = 1.0`, the default; training needs episodes that differ",
    );
    temperature(
        rules,
        "grpo.eval_temperature",
        "set `eval_temperature = 0` to take the likeliest token",
    );
    episodes(rules, "grpo.group_size", "grpo.prompts_per_step");
    episodes(
        rules,
        "grpo.eval_samples_per_problem",
        "grpo.eval_num_problems",
    );
    if rules.text("grpo.loss_aggregation") == Some("constant_length")
        && !rules.has("grpo.constant_length_tokens")
    {
        rules.conflict(
            "grpo.loss_aggregation",
            "needs `constant_length_tokens`, which is absent",
            "add `constant_length_tokens`, for example the longest episode in tokens",
        );
    }
}

pub(super) fn eval(rules: &mut Rules<'_>) {
    temperature(
        rules,
        "eval.temperature",
        "set `temperature = 0` to take the likeliest token",
    );
    episodes(rules, "eval.samples_per_problem", "eval.num_problems");
}

/// All episodes of a step, or of a measurement, are in memory.
fn episodes(rules: &mut Rules<'_>, per_problem: &str, problems: &str) {
    if let (Some(samples), Some(num_problems)) = (rules.number(per_problem), rules.number(problems))
        && samples * num_problems > MAX_EPISODES
    {
        rules.conflict(
            per_problem,
            &format!(
                "makes {} episodes together with `{problems}` = {num_problems}; at most {MAX_EPISODES} fit",
                samples * num_problems
            ),
            &format!("lower it, or lower `{problems}`"),
        );
    }
}

/// Without a difference, a group in which no answer is right teaches nothing about the format.
fn format_error(rules: &mut Rules<'_>) {
    let (Some(format_error), Some(is_gated)) = (
        rules.number("grpo.reward.format_error"),
        rules.flag("grpo.reward.gate_concurrency"),
    ) else {
        return;
    };
    if is_gated && format_error >= 0.0 {
        rules.conflict(
            "grpo.reward.format_error",
            "with `gate_concurrency` a valid wrong episode earns 0, so a broken one must earn less: otherwise groups without a \
             right answer teach no format",
            "set `format_error = -0.2`, the default, or `gate_concurrency = false`",
        );
    }
}

pub(super) fn reward(rules: &mut Rules<'_>) {
    if !rules.has("grpo") {
        return;
    }
    format_error(rules);
    let (Some(capacity), Some(tau)) = (
        rules.number("protocol.capacity"),
        rules.number("grpo.reward.tau"),
    ) else {
        return;
    };
    let paid = ["grpo.reward.lambda", "grpo.reward.lambda_final"]
        .iter()
        .any(|key| rules.number(key).is_some_and(|lambda| lambda > 0.0));
    let alone = capacity <= 1.0;
    if alone && paid {
        rules.conflict(
            "grpo.reward.lambda",
            "pays for concurrency, and a pool of `protocol.capacity` = 1 has none",
            "set `lambda = 0`, or raise `protocol.capacity`",
        );
    } else if !alone && tau * capacity <= 1.0 {
        rules.conflict(
            "grpo.reward.tau",
            &format!(
                "must exceed 1/c = 1/{capacity} (`protocol.capacity`): otherwise every episode earns the same concurrency reward"
            ),
            "choose a value between 1/c and 1, for example 0.9, the default",
        );
    }
}

pub(super) fn synth(rules: &mut Rules<'_>) {
    if rules.has("synth")
        && rules.number("protocol.capacity") == Some(1.0)
        && rules
            .number("synth.topology_max_forks")
            .is_some_and(|forks| forks > 0.0)
    {
        rules.conflict(
            "synth.topology_max_forks",
            "a pool of `protocol.capacity` = 1 cannot fork",
            "set `topology_max_forks = 0`, or raise `protocol.capacity`",
        );
    }
}
