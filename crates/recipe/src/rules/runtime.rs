//! Rules for the device, the protocol, sampling and ranks.

use super::view::Rules;
use crate::device::DeviceSpec;
use crate::error::ErrorKind;
use crate::memory::MemoryBudget;

pub(super) fn protocol(rules: &mut Rules<'_>) {
    if let (Some(total), Some(fragment)) = (
        rules.number("protocol.organizer_total_tokens"),
        rules.number("protocol.organizer_max_tokens"),
    ) && total < fragment
    {
        rules.conflict(
            "protocol.organizer_total_tokens",
            &format!("is below `organizer_max_tokens` = {fragment}, which it would cut"),
            "raise it, or leave it out",
        );
    }
}

pub(super) fn engine(rules: &mut Rules<'_>) {
    let capacity = rules.number("protocol.capacity");
    for (key, what) in [
        ("engine.max_agents", "an episode needs places for"),
        (
            "engine.max_batch_tokens",
            "a step of an episode has a token of each of its",
        ),
    ] {
        if let (Some(limit), Some(capacity)) = (rules.number(key), capacity)
            && limit < capacity
        {
            rules.conflict(
                key,
                &format!("{what} `protocol.capacity` = {capacity} agents"),
                "raise it, or leave it out",
            );
        }
    }
    if let Some(block_size) = rules.number("engine.block_size")
        && (block_size / 16.0).fract() > 0.0
    {
        rules.push(
            ErrorKind::OutOfRange,
            "engine.block_size",
            &format!("must be a multiple of 16, not {block_size}"),
            "set 16, the default, or 32",
        );
    }
}

pub(super) fn budget(rules: &mut Rules<'_>, key: &str) {
    if let Some(Err(reason)) = rules.text(key).map(str::parse::<MemoryBudget>) {
        rules.push(
            ErrorKind::OutOfRange,
            key,
            &reason,
            "leave it out for `auto`",
        );
    }
}

pub(super) fn device(rules: &mut Rules<'_>) {
    let Some(Err(reason)) = rules.text("device").map(str::parse::<DeviceSpec>) else {
        return;
    };
    rules.push(
        ErrorKind::OutOfRange,
        "device",
        &reason,
        "set `device = \"auto\"`, the default",
    );
}
