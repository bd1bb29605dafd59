#!/usr/bin/env python3
"""Plain reference for the GRPO loss and its gradient, in double precision, with the standard library only.

    python3 scripts/golden/grpo_loss.py crates/gradient/tests/golden/grpo_loss.json

Writes a small problem (logits, ids, masks, log-probabilities, rewards) and, for every setting, the loss and its
gradient with respect to the logits. The gradient is written out by hand and checked here against central differences.
The Rust test `golden` of the crate `trainer` reads the file.
"""

import json
import math
import sys

VOCAB = 5
GROUP_SIZE = 3
# Rows: (episode, length, prompt length, injected positions). Episodes 0..2 are one group, 3..5 another; an episode's
# first row is its organizer, the others are its workers. Rows of an episode need not be adjacent.
ROWS = [
    (0, 7, 2, {4, 5}),
    (1, 4, 1, set()),
    (2, 5, 2, {3}),
    (0, 4, 2, set()),
    (3, 6, 1, {3}),
    (4, 3, 1, set()),
    (5, 5, 1, set()),
    (4, 3, 2, set()),
]
# Episode 4 has a format error in spirit: its reward is below the others and it stays in its group.
REWARDS = [1.2, 0.0, 0.35, 0.5, -1.0, 0.9]


def numbers(seed):
    """Uniform numbers in [0, 1) from a linear congruential generator (Knuth's MMIX constants)."""
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield (state >> 11) / 2**53


def make_rows():
    draw = numbers(20251030)
    rows = []
    for episode, length, prompt, injected in ROWS:
        logits = [[round(4 * next(draw) - 2, 6) for _ in range(VOCAB)] for _ in range(length)]
        ids = [int(next(draw) * VOCAB) for _ in range(length)]
        mask = [position >= prompt and position not in injected for position in range(length)]
        # Near enough to the current policy that some ratios are clipped on either side and some are not.
        old, reference = [0.0] * length, [0.0] * length
        for position in range(1, length):
            if mask[position]:
                logp = log_softmax(logits[position - 1], 1.0)[ids[position]]
                old[position] = round(logp + 0.9 * (next(draw) - 0.5), 6)
                reference[position] = round(logp + 0.8 * (next(draw) - 0.5), 6)
        rows.append({"episode": episode, "ids": ids, "mask": mask, "old": old, "reference": reference, "logits": logits})
    return rows


def log_softmax(logits, temperature):
    scaled = [value / temperature for value in logits]
    top = max(scaled)
    total = top + math.log(sum(math.exp(value - top) for value in scaled))
    return [value - total for value in scaled]


def advantages(kind, eps):
    result = []
    for start in range(0, len(REWARDS), GROUP_SIZE):
        group = REWARDS[start : start + GROUP_SIZE]
        mean = sum(group) / len(group)
        variance = sum((reward - mean) ** 2 for reward in group) / (len(group) - 1)
        scale = 1.0 if kind == "mean_centred" else 1.0 / (math.sqrt(variance) + eps)
        result.extend((reward - mean) * scale for reward in group)
    return result


def token_weights(rows, setting):
    """One weight per row: what each of its trained tokens counts."""
    per_episode = {}
    for row in rows:
        per_episode[row["episode"]] = per_episode.get(row["episode"], 0) + sum(row["mask"])
    kind = setting["aggregation"]
    if kind == "token_mean":
        return [1.0 / sum(per_episode.values()) for _ in rows]
    if kind == "episode_mean":
        return [1.0 / (len(per_episode) * per_episode[row["episode"]]) for row in rows]
    return [1.0 / (len(per_episode) * setting["constant_length_tokens"]) for _ in rows]


def token_loss(logp, old, reference, advantage, setting):
    """Loss of one token and its derivative with respect to logp."""
    ratio = math.exp(logp - old)
    clipped = min(max(ratio, 1.0 - setting["clip_eps_low"]), 1.0 + setting["clip_eps_high"])
    loss = -min(ratio * advantage, clipped * advantage)
    # The clipped branch is constant in logp.
    slope = -ratio * advantage if ratio * advantage <= clipped * advantage else 0.0
    distance = reference - logp
    loss += setting["kl_beta"] * (math.exp(distance) - distance - 1.0)
    slope += setting["kl_beta"] * (1.0 - math.exp(distance))
    return loss, slope


def evaluate(rows, setting):
    """Loss, gradient with respect to every logit, and the share of tokens whose gradient was clipped away."""
    advantage_of = advantages(setting["advantage"], setting["advantage_eps"])
    temperature = setting["temperature"]
    total, gradient, num_clipped, num_trained = 0.0, [], 0, 0
    for row, weight in zip(rows, token_weights(rows, setting)):
        row_gradient = [[0.0] * VOCAB for _ in row["ids"]]
        advantage = advantage_of[row["episode"]]
        for position, trained in enumerate(row["mask"]):
            if not trained:
                continue
            target = row["ids"][position]
            logps = log_softmax(row["logits"][position - 1], temperature)
            old, reference = row["old"][position], row["reference"][position]
            loss, slope = token_loss(logps[target], old, reference, advantage, setting)
            total += weight * loss
            for token in range(VOCAB):
                indicator = 1.0 if token == target else 0.0
                step = weight * slope * (indicator - math.exp(logps[token])) / temperature
                row_gradient[position - 1][token] += step
            ratio = math.exp(logps[target] - old)
            above = ratio > 1.0 + setting["clip_eps_high"] and advantage > 0
            below = ratio < 1.0 - setting["clip_eps_low"] and advantage < 0
            num_clipped += above or below
            num_trained += 1
        gradient.append(row_gradient)
    return total, gradient, num_clipped / num_trained


def check_by_differences(rows, setting, gradient):
    width = 1e-6
    for row, row_gradient in zip(rows, gradient):
        for position, logits in enumerate(row["logits"]):
            for token in range(VOCAB):
                kept = logits[token]
                logits[token] = kept + width
                above = evaluate(rows, setting)[0]
                logits[token] = kept - width
                below = evaluate(rows, setting)[0]
                logits[token] = kept
                difference = (above - below) / (2 * width)
                assert abs(difference - row_gradient[position][token]) < 1e-8, (setting, position, token)


def settings():
    base = {
        "advantage": "mean_centred",
        "advantage_eps": 1e-4,
        "aggregation": "token_mean",
        "constant_length_tokens": 16,
        "clip_eps_low": 0.2,
        "clip_eps_high": 0.2,
        "kl_beta": 0.0,
        "temperature": 1.0,
    }
    changes = [
        {},
        {"aggregation": "episode_mean"},
        {"aggregation": "constant_length"},
        {"advantage": "mean_std"},
        {"clip_eps_low": 0.1, "clip_eps_high": 0.3},
        {"clip_eps_low": 0.999, "clip_eps_high": 1e6},
        {"kl_beta": 0.05},
        {"aggregation": "episode_mean", "advantage": "mean_std", "kl_beta": 0.5, "clip_eps_high": 0.28},
        {"aggregation": "constant_length", "kl_beta": 0.1, "clip_eps_low": 0.05, "clip_eps_high": 0.05},
        {"temperature": 0.7, "kl_beta": 0.1},
    ]
    return [{**base, **change} for change in changes]


def rounded(values):
    return [rounded(value) for value in values] if isinstance(values, list) else float(f"{values:.9g}")


def main():
    rows = make_rows()
    cases = []
    for setting in settings():
        loss, gradient, clip_share = evaluate(rows, setting)
        check_by_differences(rows, setting, gradient)
        cases.append({**setting, "loss": loss, "clip_share": clip_share, "gradient": rounded(gradient)})
    golden = {"script": "scripts/golden/grpo_loss.py", "group_size": GROUP_SIZE, "rewards": REWARDS}
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        lines = ["{"]
        lines += [f'"{key}": {json.dumps(value)},' for key, value in golden.items()]
        lines += ['"rows": [', ",\n".join(json.dumps(row) for row in rows), "],"]
        lines += ['"cases": [', ",\n".join(json.dumps(case) for case in cases), "]", "}"]
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
