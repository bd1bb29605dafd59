//! Rules for the losses and estimators of `[grpo]`.

use super::view::Rules;

pub(super) fn grpo(rules: &mut Rules<'_>) {
    if !rules.has("grpo") {
        return;
    }
    sampler_correction(rules);
    kl(rules);
    mini_batches(rules);
    overlong(rules);
}

fn sampler_correction(rules: &mut Rules<'_>) {
    if !rules.has("grpo.sampler_correction") {
        return;
    }
    if rules.text("grpo.logp_old") == Some("sampler") {
        rules.conflict(
            "grpo.logp_old",
            "with `[grpo.sampler_correction]` the mismatch with the sampler would be corrected twice: the ratio against the sampler \
             has it already",
            "set `logp_old = \"trainer\"`, or remove `[grpo.sampler_correction]`",
        );
    }
    let Some(min) = rules
        .number("grpo.sampler_correction.min_weight")
        .filter(|_| rules.has("grpo.sampler_correction.min_weight"))
    else {
        return;
    };
    let masks = rules
        .text("grpo.sampler_correction.mode")
        .is_none_or(|mode| mode.ends_with("_mask"));
    if !masks {
        rules.conflict(
            "grpo.sampler_correction.min_weight",
            "is not read by the modes that truncate: only weights above `max_weight` are cut",
            "remove it, or choose `mode = \"token_mask\"` or `mode = \"sequence_mask\"`",
        );
    } else if let Some(max) = rules.number("grpo.sampler_correction.max_weight")
        && min >= max
    {
        rules.conflict(
            "grpo.sampler_correction.min_weight",
            &format!("leaves no weight below `max_weight` = {max}: every token would be masked"),
            "choose a value below 1, for example 0.5, and `max_weight` above 1",
        );
    }
}

fn kl(rules: &mut Rules<'_>) {
    if rules.text("grpo.kl_estimator") == Some("k2")
        && rules.flag("grpo.kl_bias_correction") == Some(true)
    {
        rules.conflict(
            "grpo.kl_bias_correction",
            "makes the gradient of `kl_estimator = \"k2\"` another one than that of the KL, which it has without",
            "remove it, or set `kl_estimator = \"k3\"`",
        );
    }
    if rules.text("grpo.kl_in") == Some("reward")
        && rules.flag("grpo.kl_bias_correction") == Some(true)
    {
        rules.conflict(
            "grpo.kl_bias_correction",
            "acts on the KL term in the loss, and `kl_in = \"reward\"` has none there",
            "remove it, or set `kl_in = \"loss\"`",
        );
    }
}

fn mini_batches(rules: &mut Rules<'_>) {
    if let (Some(num_mini_batches), Some(prompts)) = (
        rules.number("grpo.num_mini_batches"),
        rules.number("grpo.prompts_per_step"),
    ) && num_mini_batches > prompts
    {
        rules.conflict(
            "grpo.num_mini_batches",
            &format!("exceeds `prompts_per_step` = {prompts}: a mini-batch has at least one group"),
            "lower it, or raise `prompts_per_step`",
        );
    }
}

fn overlong(rules: &mut Rules<'_>) {
    let key = "grpo.reward.overlong_buffer_tokens";
    if !rules.has(key) {
        if rules.has("grpo.reward.overlong_penalty") {
            rules.conflict(
                "grpo.reward.overlong_penalty",
                "is not read without `overlong_buffer_tokens`",
                "add `overlong_buffer_tokens`, for example an eighth of `protocol.worker_max_tokens`, or remove it",
            );
        }
        return;
    }
    let Some(buffer) = rules.number(key) else {
        return;
    };
    for limit in [
        "protocol.worker_max_tokens",
        "protocol.organizer_max_tokens",
    ] {
        if let Some(tokens) = rules.number(limit)
            && buffer >= tokens
        {
            rules.conflict(
                key,
                &format!("must be below `{limit}` = {tokens}: otherwise every token is punished"),
                "lower it, for example to an eighth of the limit",
            );
            return;
        }
    }
}
