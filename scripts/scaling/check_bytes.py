#!/usr/bin/env python3
"""Compares the bytes that ranks exchange with the formulas of docs/scaling.md.

    python3 scripts/scaling/check_bytes.py --binary target/release/asyncthink-train

Runs a tiny recipe at several ranks with `asyncthink-train launch`, SFT and GRPO, once with each `distributed.shard`, and
compares `timing.exchanged_bytes` of every step with what the formulas say: vectors of parameters and gradients, and the
counts and figures that ranks tell each other beside them. With `shard = "optimizer"` every byte must be explained, but for
the rows that ranks of GRPO exchange, whose bytes must lie between bounds. With
`shard = "full"` the number of rounds is read off the reduced gradients and must be whole and possible, and of the
gathered bytes only less than a page per step may be left over. A shard that the recipe refuses is skipped, aloud. Prints
one JSON object; exit code 1 if a step differs.
Python 3.11 standard library only, Linux.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import costs
import tiny

TIMEOUT_SECONDS = 600
VALUE = 8  # bytes of an f64, in which ranks tell each other counts and figures
ROW_TOKEN = 9  # id, mask and log-probability of a token
ROW = 21  # what else there is of a row
DIGEST = 16  # bytes of a check that ranks agree
NUM_STEPS = 6
# No checkpoint lies between two lines: its bytes would count as those of the step after it.
NEVER = NUM_STEPS + 1
SETS = {
    "sft": [f"sft.num_steps={NUM_STEPS}", f"sft.save_every_steps={NEVER}", "sft.eval_every_steps=4"],
    "grpo": [f"grpo.num_steps={NUM_STEPS}", f"grpo.save_every_steps={NEVER}"],
}
# What ranks may tell each other in a step beside vectors, where it is not spelled out.
PAGE = 4096
REFUSED = 2


def command_of(arguments, stage, run_dir, sets, num_ranks):
    command = [stage, arguments.recipe]
    for one in [f'run_dir="{run_dir}"', *tiny.sets_of(arguments.recipe), *sets]:
        command += ["--set", one]
    if num_ranks > 1:
        command = ["launch", "--standalone", f"--nproc-per-node={num_ranks}", "--", *command]
    return [arguments.binary, *command]


def run(arguments, stage, run_dir, sets, num_ranks, log):
    command = command_of(arguments, stage, run_dir, sets, num_ranks)
    result = subprocess.run(command, stdout=log, stderr=log, timeout=TIMEOUT_SECONDS, check=False)
    if result.returncode != 0:
        sys.exit(f"error: `{' '.join(map(str, command))}` ended with {result.returncode}; see {log.name}")


def refusal(arguments, run_dir, sets):
    """Why the recipe does not take a setting; None if it does."""
    command = command_of(arguments, "sft", run_dir, sets, 1) + ["--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if result.returncode == REFUSED and "shard" in result.stderr:
        return result.stderr.strip()
    return None


def small_bytes(stage, section, line, num_ranks):
    """What a rank puts into all-gathers beside vectors: the question whether to stop (but for the first step), what the
    batch is, its normalisers, its sums, and the norm of the gradient; in GRPO the state of the rollout and the figures of
    the episodes as well."""
    asked_to_stop = VALUE if line["step"] > 1 else 0
    # The default loss of GRPO has one figure of its own.
    update = 2 * VALUE + (14 if stage == "grpo" else 13) * VALUE + VALUE
    if stage == "sft":
        held_out = 2 * VALUE if line["held_out_loss"] is not None else 0
        return asked_to_stop + DIGEST + update + held_out
    updates = section["num_updates_per_rollout"] * update
    mismatch = 3 * VALUE if section.get("max_logprob_mismatch") is not None else 0
    most_prompts = max(
        (rank + 1) * section["prompts_per_step"] // num_ranks - rank * section["prompts_per_step"] // num_ranks
        for rank in range(num_ranks)
    )
    figures = VALUE + most_prompts * section["group_size"] * 15 * VALUE
    every = section.get("dump_episodes_every_steps")
    dumped = 2 * VALUE if every and line["step"] % every == 0 else 0
    return asked_to_stop + DIGEST + VALUE + 2 * VALUE + updates + mismatch + dumped + figures


def bounds_of_rows(stage, line, num_ranks):
    """Least and most bytes that a rank puts in for the rows of an update: as many as the rank with the most, which the line
    does not tell."""
    if stage != "grpo":
        return 0, 0
    of_tokens = ROW_TOKEN * line["num_tokens"]
    most = of_tokens + ROW * line["num_rows"]
    return VALUE + of_tokens // num_ranks, VALUE + most


def expect_optimizer_shard(shape, stage, recipe, line, num_ranks):
    """Expected bytes by kind."""
    section = recipe[stage]
    num_updates = section["num_updates_per_rollout"] if stage == "grpo" else 1
    # How the vector is cut into buckets changes the number of messages and no byte.
    exchange = costs.exchange_of_optimizer_shard(shape, num_ranks, num_updates, costs.default_bucket_bytes(num_ranks))
    expected = costs.put_in_bytes(exchange, num_ranks)
    expected["all_gather"] += small_bytes(stage, section, line, num_ranks)
    return expected


def check_optimizer_shard(shape, stage, recipe, line, num_ranks):
    expected = expect_optimizer_shard(shape, stage, recipe, line, num_ranks)
    measured = dict(line["timing"]["exchanged_bytes"])
    least, most = bounds_of_rows(stage, line, num_ranks)
    rows = measured["all_gather"] - expected["all_gather"]
    measured["all_gather"] -= rows
    return {"expected": expected, "row_bytes": rows, "ok": expected == measured and least <= rows <= most}


def check_full_shard(shape, stage, recipe, line, num_ranks):
    section, measured = recipe[stage], line["timing"]["exchanged_bytes"]
    num_updates = section["num_updates_per_rollout"] if stage == "grpo" else 1
    per_gather = recipe.get("distributed", {}).get("micro_batches_per_gather", 1)
    put_in = lambda *counts: costs.put_in_bytes(costs.exchange_of_full_shard(shape, num_ranks, *counts), num_ranks)
    rounds, rest = divmod(measured["reduce_scatter"], put_in(1)["reduce_scatter"])
    fewest = num_updates * -(-line["num_micro_batches"] // (num_ranks * per_gather))
    most = num_updates * max(1, line["num_micro_batches"])
    # Passes that need every unit once: the rollout's gathering, a reference model's, those that only score.
    left = measured["all_gather"] - put_in(rounds)["all_gather"]
    passes, unexplained = divmod(left, put_in(0, 1)["all_gather"])
    if stage == "grpo":
        fewest_passes = 1 + (rounds if section["kl_beta"] > 0 else 0)
    else:
        fewest_passes = 0
    most_unexplained = PAGE + bounds_of_rows(stage, line, num_ranks)[1]
    has_scored = stage == "grpo" or line["held_out_loss"] is not None
    is_possible = fewest_passes <= passes and (has_scored or passes == 0)
    return {
        "rounds": rounds,
        "forward_passes": passes,
        "other_bytes": unexplained,
        "ok": rest == 0 and fewest <= rounds <= most and is_possible and 0 <= unexplained < most_unexplained,
    }


CHECKS = {"optimizer": check_optimizer_shard, "full": check_full_shard}


def check_stage(arguments, shard, stage, run_dir, sets, log):
    import tomllib  # of 3.11; the tests of the formulas do without

    run(arguments, stage, run_dir, sets + SETS[stage], arguments.ranks, log)
    folder = run_dir / stage
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    config = json.loads((folder / "checkpoints" / "latest" / "config.json").read_text())
    shape = costs.Shape.from_config("tiny", config)
    steps = []
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        result = CHECKS[shard](shape, stage, recipe, line, arguments.ranks)
        steps.append({"step": line["step"], "measured": line["timing"]["exchanged_bytes"], **result})
    if len(steps) != NUM_STEPS:
        sys.exit(f"error: {folder} has {len(steps)} lines of metrics for {NUM_STEPS} steps")
    return {"parameters": shape.num_parameters, "steps": steps}


def check_shard(arguments, shard, scratch, log):
    run_dir = Path(scratch) / shard
    sets = [f"grpo.prompts_per_step={arguments.ranks + 1}", "num_threads=1"]
    if shard != "optimizer":
        sets.append(f'distributed.shard="{shard}"')
    why = refusal(arguments, run_dir, sets + SETS["sft"])
    if why is not None:
        print(f"skipped: the recipe refuses `distributed.shard = \"{shard}\"`:\n{why}", file=sys.stderr)
        return {"skipped": why}
    run(arguments, "synth", run_dir, sets + SETS["sft"] + SETS["grpo"], 1, log)
    return {stage: check_stage(arguments, shard, stage, run_dir, sets, log) for stage in ["sft", "grpo"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--recipe", type=Path, default=tiny.RECIPE)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--work-dir", type=Path, help="where run folders are made; default: a temporary folder")
    parser.add_argument("--log", type=Path, default=Path("check_bytes.log"), help="output of the program")
    arguments = parser.parse_args()
    if arguments.ranks < 2:
        parser.error("--ranks must be 2 at least: one rank exchanges nothing")
    arguments.binary = arguments.binary.resolve()
    arguments.recipe = arguments.recipe.resolve()
    if arguments.work_dir is not None:
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as scratch, arguments.log.open("ab") as log:
        report = {shard: check_shard(arguments, shard, scratch, log) for shard in CHECKS}
    stages = [stage for shard in report.values() for name, stage in shard.items() if name != "skipped"]
    report["passed"] = all(step["ok"] for stage in stages for step in stage["steps"])
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
