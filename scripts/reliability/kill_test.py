#!/usr/bin/env python3
"""Kills training with SIGKILL in every phase, resumes it, and compares with a run that was never killed.

    python3 scripts/reliability/kill_test.py --binary target/release/asyncthink-train \\
        --recipe tests/tiny.toml --ranks 2 --kills 20 --seed 1

For `sft` and for `grpo`: one unbroken run, then KILLS trials. A trial starts the stage in a fresh run folder, kills it
once, checks that every checkpoint in place is whole, resumes with `--resume auto` to the end, and compares `metrics.jsonl`
without `timing` byte for byte, and the final weights. Nothing may be left running, and no part of a file be left lying.
Prints one JSON object; exit code 1 if anything differs or a checkpoint is unreadable.

With `--ranks N` the stage runs under `asyncthink-train launch` with N ranks, and each trial kills the first rank or another
one (the launcher then starts all again), the launcher (its ranks must go with it), or everything.

Each trial aims at a phase, in turn, from a random moment of the run on:

    rollout  the victim samples: its process is named `grpo 12 samplin`
    update   it computes the gradient or updates the weights: `... computi`, `... updatin`
    save     a checkpoint is being written: its hidden folder is there, without a manifest
    commit   it is being made the newest: the hidden folder has a manifest, `latest` is behind, or an old one is going
    random   whatever it is

What a rank does is in the name of its process (`/proc/PID/comm`, as `ps` shows it). A random time of the phase's length after
the phase is seen, all ranks are stopped with SIGSTOP, the phase that they are really in is read and counted, and the victim is
killed; so nothing can change between looking and killing. `start` and `between` are what is none of the above.
Python 3 standard library only, Linux.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import runs
from runs import HIDDEN

# How long a phase lasts at most in the tiny recipe: kills are spread over so much of it.
LENGTH_SECONDS = {"rollout": 0.015, "update": 0.04, "save": 0.015, "commit": 0.06, "random": 0.0}
AIMS = {"sft": ["update", "save", "commit", "random"], "grpo": ["rollout", "update", "save", "commit", "random"]}


def command_of(arguments, stage, run_dir, extra=("--resume", "auto")):
    command = runs.stage_command(stage, arguments.recipe, run_dir, arguments.set, extra)
    if arguments.ranks > 1 and stage != "synth":
        command = ["launch", "--standalone", f"--nproc-per-node={arguments.ranks}", "--max-restarts=1", "--", *command]
    return [arguments.binary, *command]


def newest_step(names):
    return max((int(name[5:]) for name in names if name.startswith("step_")), default=None)


def phase_on_disk(checkpoints):
    """`save` or `commit` where a checkpoint is under way, else None."""
    try:
        names = os.listdir(checkpoints)
    except FileNotFoundError:
        return None
    hidden = [name for name in names if name.startswith(HIDDEN)]
    for name in hidden:
        if not name.startswith(HIDDEN + "step_"):
            return "commit"
        return "commit" if (checkpoints / name / "trainer" / "manifest.json").exists() else "save"
    try:
        latest = os.readlink(checkpoints / "latest")
    except FileNotFoundError:
        latest = None
    step = newest_step(names)
    return "commit" if step is not None and latest != f"step_{step}" else None


def phase_of(pid, checkpoints):
    """What the rank `pid` is doing."""
    saving = phase_on_disk(checkpoints)
    if saving is not None:
        return saving
    try:
        name = Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return "start"
    words = name.split()
    if len(words) < 3 or not words[1].isdigit():
        return "start"
    return {"samp": "rollout", "comp": "update", "upda": "update"}.get(words[2][:4], "between")


def send(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Trial:
    """One run that is killed once."""

    def __init__(self, arguments, stage, run_dir, log):
        command = command_of(arguments, stage, run_dir)
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.checkpoints = run_dir / stage / "checkpoints"
        self.num_ranks = arguments.ranks

    def find_ranks(self):
        """Process ids by rank, once all are there; None if the run has ended."""
        if self.num_ranks == 1:
            return {0: self.process.pid}
        ranks = {}

        def are_there():
            ranks.update(runs.ranks_below(self.process.pid))
            return len(ranks) == self.num_ranks

        return ranks if runs.wait_for("the ranks", are_there, self.process) else None

    def kill(self, aim, victim, moment, rng):
        """Kills the victim in the phase `aim`, at the first occasion after `moment` seconds. Returns the phase that it was
        in and the lines of metrics, or None if the run had ended by itself."""
        deadline = time.monotonic() + moment
        ranks = self.find_ranks()
        if ranks is None:
            return None
        watched = ranks[victim] if isinstance(victim, int) else ranks[0]
        while time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.0005)
        while aim != "random" and phase_of(watched, self.checkpoints) != aim:
            if self.process.poll() is not None:
                return None
            time.sleep(0.0001)
        time.sleep(rng.random() * LENGTH_SECONDS[aim])
        if self.process.poll() is not None:
            return None
        send([watched, *ranks.values()], signal.SIGSTOP)
        # A stop takes effect when the kernel next looks; those that compute are interrupted at once.
        time.sleep(0.001)
        phase, lines = phase_of(watched, self.checkpoints), runs.num_lines(self.checkpoints.parent)
        if isinstance(victim, int):
            send([watched], signal.SIGKILL)
        elif victim == "launcher":
            send([self.process.pid], signal.SIGKILL)
        else:
            send([self.process.pid, *ranks.values()], signal.SIGKILL)
        send(ranks.values(), signal.SIGCONT)
        return phase, lines

    def end(self, victim):
        """Waits for the end; whether it is the one to be expected. A launcher that lost a rank starts all again."""
        code = self.process.wait(runs.TIMEOUT_SECONDS)
        has_restarted = isinstance(victim, int) and self.num_ranks > 1
        return code == (0 if has_restarted else -signal.SIGKILL)


def prepare(source, target, stages):
    for stage in stages:
        shutil.copytree(source / stage, target / stage, symlinks=True)


def trial(arguments, stage, inputs, reference, expected, seconds, aim, rng, log):
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as scratch:
        run_dir = Path(scratch) / "run"
        folder = run_dir / stage
        prepare(reference, run_dir, inputs)
        victim = rng.choice([0, rng.randrange(1, arguments.ranks), "launcher", "all"]) if arguments.ranks > 1 else 0
        tried = Trial(arguments, stage, run_dir, log)
        killed = tried.kill(aim, victim, rng.uniform(0.05, 0.9) * seconds, rng)
        if killed is None:
            tried.process.wait(runs.TIMEOUT_SECONDS)
            return None
        phase, lines_at_kill = killed
        has_ended_well = tried.end(victim)
        left = runs.left_running(run_dir)
        bad = runs.unreadable(folder)
        runs.run(command_of(arguments, stage, run_dir), log)
        return {
            "aim": aim,
            "phase": phase,
            "victim": victim if isinstance(victim, str) else ("first rank" if victim == 0 else "other rank"),
            "wrong_end": not has_ended_well,
            "left_running": len(left),
            "metric_lines_at_kill": lines_at_kill,
            "metrics_identical": runs.metrics_without_timing(folder) == expected["metrics"],
            "weights_identical": runs.weights_digest(folder) == expected["weights"],
            "unreadable": bad + runs.unreadable(folder),
            "litter": runs.litter(run_dir),
        }


def test_stage(arguments, stage, inputs, reference, rng, log):
    seconds = runs.run(command_of(arguments, stage, reference), log)
    folder = reference / stage
    expected = {"metrics": runs.metrics_without_timing(folder), "weights": runs.weights_digest(folder)}
    trials, missed = [], 0
    aims = AIMS[stage]
    while len(trials) < arguments.kills:
        aim = aims[len(trials) % len(aims)]
        result = trial(arguments, stage, inputs, reference, expected, seconds, aim, rng, log)
        if result is None:
            missed += 1
            if missed > 10 * arguments.kills:
                runs.fail(f"`{stage}` ends before it can be killed; give it more steps")
            continue
        trials.append(result)
        print(f"{stage}: kill {len(trials)} of {arguments.kills}: {result}", file=sys.stderr, flush=True)
    counts = collections.Counter((result["phase"], result["victim"]) for result in trials)
    return {
        "unbroken_seconds": round(seconds, 2),
        "metric_lines": len(expected["metrics"]),
        "kills": len(trials),
        "by_phase": dict(collections.Counter(result["phase"] for result in trials)),
        "by_victim": dict(collections.Counter(result["victim"] for result in trials)),
        "by_phase_and_victim": {f"{phase}, {victim}": count for (phase, victim), count in sorted(counts.items())},
        "metric_lines_at_kill": sorted(result["metric_lines_at_kill"] for result in trials),
        "metrics_identical": sum(result["metrics_identical"] for result in trials),
        "weights_identical": sum(result["weights_identical"] for result in trials),
        "unreadable_checkpoints": [bad for result in trials for bad in result["unreadable"]],
        "wrong_ends": sum(result["wrong_end"] for result in trials),
        "left_running": sum(result["left_running"] for result in trials),
        "litter": [path for result in trials for path in result["litter"]],
    }


def is_good(stage):
    return (
        stage["metrics_identical"] == stage["weights_identical"] == stage["kills"]
        and not stage["unreadable_checkpoints"]
        and not stage["litter"]
        and stage["wrong_ends"] == stage["left_running"] == 0
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--recipe", required=True, type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--kills", type=int, default=20, help="kills per stage")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--work-dir", type=Path, help="where run folders are made; default: a temporary folder")
    parser.add_argument("--log", type=Path, default=Path("kill_test.log"), help="output of the program")
    arguments = parser.parse_args()
    arguments.binary = arguments.binary.resolve()
    arguments.recipe = arguments.recipe.resolve()
    rng = random.Random(arguments.seed)
    if arguments.work_dir is not None:
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as scratch, arguments.log.open("ab") as log:
        reference = Path(scratch) / "reference"
        runs.run(command_of(arguments, "synth", reference, extra=()), log)
        report = {
            "sft": test_stage(arguments, "sft", ["synth"], reference, rng, log),
            "grpo": test_stage(arguments, "grpo", ["synth", "sft"], reference, rng, log),
        }
    report["passed"] = all(is_good(stage) for stage in report.values())
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
