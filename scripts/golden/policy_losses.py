#!/usr/bin/env python3
"""Plain reference for the policy losses, the KL term, the entropy bonus and the weights against a sampler mismatch, in double
precision, with the standard library only.

    python3 scripts/golden/policy_losses.py crates/gradient/tests/golden/policy_losses.json

A case is a set of keys of `[grpo]`, as a recipe has them. For every case the script writes the loss, its gradient with respect to
the logits, and the metrics of the loss. The gradient is written out by hand and checked here against central differences, with
importance weights, which have no gradient, held at their values. The Rust test `golden_policy_tests` of the crate `gradient`
reads the file.
"""

import json
import math
import sys

from grpo_loss import GROUP_SIZE, REWARDS, VOCAB, log_softmax, make_rows, numbers, rounded


def add_sampler(rows):
    """Log-probabilities of a sampler that differs from the trainer's old policy, here and there by much."""
    draw = numbers(20261128)
    for row in rows:
        row["sampler"] = [0.0] * len(row["ids"])
        for position, trained in enumerate(row["mask"]):
            if trained:
                gap = 1.2 if next(draw) < 0.25 else 0.2
                row["sampler"][position] = round(row["old"][position] + gap * 2 * (next(draw) - 0.5), 6)


def advantages(kind):
    result = []
    for start in range(0, len(REWARDS), GROUP_SIZE):
        group = REWARDS[start : start + GROUP_SIZE]
        if kind == "rloo":
            result.extend(reward - (sum(group) - reward) / (len(group) - 1) for reward in group)
        else:
            result.extend(reward - sum(group) / len(group) for reward in group)
    return result


def token_weights(rows, grpo):
    per_episode = {}
    for row in rows:
        per_episode[row["episode"]] = per_episode.get(row["episode"], 0) + sum(row["mask"])
    kind = grpo.get("loss_aggregation", "token_mean")
    if kind == "token_mean":
        return [1.0 / sum(per_episode.values()) for _ in rows]
    if kind == "episode_mean":
        return [1.0 / (len(per_episode) * per_episode[row["episode"]]) for row in rows]
    return [1.0 / (len(per_episode) * grpo["constant_length_tokens"]) for _ in rows]


def correction_weights(row, trained, grpo):
    """One weight a token against the mismatch with the sampler, and how many are beyond the limits."""
    section = grpo.get("sampler_correction")
    if section is None:
        return [1.0] * len(trained), 0
    differences = [row["old"][t] - row["sampler"][t] for t in trained]
    if section["mode"].startswith("sequence"):
        differences = [sum(differences)] * len(trained)
    ratios = [math.exp(difference) for difference in differences]
    low, high = section.get("min_weight", 0.0), section["max_weight"]
    beyond = [not low <= ratio <= high for ratio in ratios]
    if section["mode"].endswith("truncate"):
        return [min(ratio, high) for ratio in ratios], sum(beyond)
    return [0.0 if out else ratio for ratio, out in zip(ratios, beyond)], sum(beyond)


def clipped(ratio, advantage, low, high, dual):
    """Value and derivative with respect to the ratio of -min(r A, clip(r) A), bounded by -dual A for A < 0; and whether it is clipped."""
    if advantage < 0 and dual is not None and ratio > dual:
        return -dual * advantage, 0.0, True
    limited = min(max(ratio, 1.0 - low), 1.0 + high)
    if ratio * advantage <= limited * advantage:
        return -ratio * advantage, -advantage, False
    return -limited * advantage, 0.0, True


def policy_terms(logps, old, advantage, weights, grpo, frozen):
    """Weighted sum of the policy loss over a row, its derivative with respect to each logp, and the number of clipped tokens."""
    name, options = next(iter(grpo.get("loss", {"clip": {}}).items()))
    ratios = [math.exp(logp - before) for logp, before in zip(logps, old)]
    if name == "gspo":
        ratio = math.exp(sum(logp - before for logp, before in zip(logps, old)) / len(logps))
        value, slope, is_clipped = clipped(ratio, advantage, options["clip_eps_low"], options["clip_eps_high"], None)
        total = sum(weights)
        return total * value, [total * slope * ratio / len(logps)] * len(logps), is_clipped * len(logps)
    total, slopes, num_clipped = 0.0, [], 0
    for index, ratio in enumerate(ratios):
        if name == "cispo":
            weight = frozen.setdefault(index, min(max(ratio, options["min_weight"]), options["max_weight"]))
            value, slope = -weight * advantage * logps[index], -weight * advantage
            is_clipped = not options["min_weight"] <= ratio <= options["max_weight"]
        else:
            low, high = grpo.get("clip_eps_low", 0.2), grpo.get("clip_eps_high", 0.2)
            value, slope, is_clipped = clipped(ratio, advantage, low, high, options.get("dual_clip"))
            slope *= ratio
        total += weights[index] * value
        slopes.append(weights[index] * slope)
        num_clipped += is_clipped
    return total, slopes, num_clipped


def kl_term(logp, old, reference, grpo):
    """Value and derivative of beta times the estimate."""
    distance = reference - logp
    value, slope = {
        "k1": (-distance, 1.0),
        "k2": (distance * distance / 2, -distance),
        "k3": (math.exp(distance) - distance - 1.0, 1.0 - math.exp(distance)),
    }[grpo.get("kl_estimator", "k3")]
    if grpo.get("kl_bias_correction"):
        ratio = math.exp(logp - old)
        value, slope = ratio * value, ratio * (slope + value)
    return grpo["kl_beta"] * value, grpo["kl_beta"] * slope


def evaluate(rows, grpo, frozen):
    advantage_of = advantages(grpo.get("advantage"))
    temperature = grpo.get("temperature", 1.0)
    bonus = grpo.get("entropy_coefficient", 0.0)
    total, gradient, counts = 0.0, [], {"clipped": 0, "beyond": 0, "weight": 0.0, "trained": 0}
    for index, (row, token_weight) in enumerate(zip(rows, token_weights(rows, grpo))):
        row_gradient = [[0.0] * VOCAB for _ in row["ids"]]
        trained = [position for position, is_trained in enumerate(row["mask"]) if is_trained]
        all_logps = [log_softmax(row["logits"][position - 1], temperature) for position in trained]
        logps = [of_vocab[row["ids"][position]] for of_vocab, position in zip(all_logps, trained)]
        old = [row["old"][position] for position in trained]
        corrections, num_beyond = correction_weights(row, trained, grpo)
        weights = [token_weight * weight for weight in corrections]
        of_row = frozen.setdefault(index, {})
        value, slopes, num_clipped = policy_terms(logps, old, advantage_of[row["episode"]], weights, grpo, of_row)
        total += value
        for at, position in enumerate(trained):
            slope = slopes[at]
            if grpo.get("kl_beta"):
                value, kl_slope = kl_term(logps[at], old[at], row["reference"][position], grpo)
                total += token_weight * value
                slope += token_weight * kl_slope
            entropy = -sum(math.exp(logp) * logp for logp in all_logps[at])
            total -= bonus * token_weight * entropy
            for token, logp in enumerate(all_logps[at]):
                probability = math.exp(logp)
                step = slope * ((token == row["ids"][position]) - probability)
                step += bonus * token_weight * probability * (logp + entropy)
                row_gradient[position - 1][token] += step / temperature
        gradient.append(row_gradient)
        counts["clipped"] += num_clipped
        counts["beyond"] += num_beyond
        counts["weight"] += sum(corrections)
        counts["trained"] += len(trained)
    return total, gradient, counts


def check_by_differences(rows, grpo, gradient, frozen):
    width = 1e-6
    for row, row_gradient in zip(rows, gradient):
        for position, logits in enumerate(row["logits"]):
            for token in range(VOCAB):
                kept = logits[token]
                logits[token] = kept + width
                above = evaluate(rows, grpo, frozen)[0]
                logits[token] = kept - width
                below = evaluate(rows, grpo, frozen)[0]
                logits[token] = kept
                difference = (above - below) / (2 * width)
                assert abs(difference - row_gradient[position][token]) < 1e-8, (grpo, position, token)


TIS = {"mode": "token_truncate", "max_weight": 1.15}
ICEPOP = {"mode": "token_mask", "min_weight": 0.8, "max_weight": 1.3}
SEQUENCE_TIS = {"mode": "sequence_truncate", "max_weight": 1.2}
SEQUENCE_MASK = {"mode": "sequence_mask", "min_weight": 0.8, "max_weight": 1.3}
GSPO = {"gspo": {"clip_eps_low": 0.1, "clip_eps_high": 0.12}}
CISPO = {"cispo": {"min_weight": 0.8, "max_weight": 1.2}}
CASES = [
    {"loss": {"clip": {"dual_clip": 1.25}}, "clip_eps_high": 0.1},
    {"loss": {"clip": {}}, "clip_eps_low": 0.2, "clip_eps_high": 0.28},
    {"loss": GSPO},
    {"loss": GSPO, "loss_aggregation": "episode_mean", "temperature": 0.7},
    {"loss": GSPO, "kl_beta": 0.2, "sampler_correction": TIS},
    {"loss": CISPO},
    {"loss": CISPO, "loss_aggregation": "constant_length", "constant_length_tokens": 16, "entropy_coefficient": 0.05},
    {"advantage": "rloo"},
    {"loss_aggregation": "constant_length", "constant_length_tokens": 16},
    {"kl_beta": 0.3, "kl_estimator": "k1"},
    {"kl_beta": 0.3, "kl_estimator": "k2"},
    {"kl_beta": 0.3, "kl_estimator": "k1", "kl_bias_correction": True},
    {"kl_beta": 0.3, "kl_estimator": "k3", "kl_bias_correction": True},
    {"entropy_coefficient": 0.1},
    {"entropy_coefficient": 0.2, "temperature": 0.7, "kl_beta": 0.1},
    {"sampler_correction": TIS},
    {"sampler_correction": ICEPOP, "kl_beta": 0.1},
    {"sampler_correction": SEQUENCE_TIS, "entropy_coefficient": 0.05},
    {"sampler_correction": SEQUENCE_MASK, "loss": CISPO},
]


def main():
    rows = make_rows()
    add_sampler(rows)
    cases = []
    for grpo in CASES:
        frozen = {}
        loss, gradient, counts = evaluate(rows, grpo, frozen)
        check_by_differences(rows, grpo, gradient, frozen)
        metrics = {"clip_share": counts["clipped"] / counts["trained"]}
        section = grpo.get("sampler_correction")
        if section is not None:
            assert counts["beyond"] > 0, grpo
            share = "truncated_share" if section["mode"].endswith("truncate") else "masked_share"
            metrics[share] = counts["beyond"] / counts["trained"]
            metrics["sampler_weight"] = counts["weight"] / counts["trained"]
        cases.append({"grpo": grpo, "loss": loss, "metrics": metrics, "gradient": rounded(gradient)})
    golden = {"script": "scripts/golden/policy_losses.py", "group_size": GROUP_SIZE, "rewards": REWARDS}
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        lines = ["{"]
        lines += [f'"{key}": {json.dumps(value)},' for key, value in golden.items()]
        lines += ['"rows": [', ",\n".join(json.dumps(row) for row in rows), "],"]
        lines += ['"cases": [', ",\n".join(json.dumps(case) for case in cases), "]", "}"]
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
