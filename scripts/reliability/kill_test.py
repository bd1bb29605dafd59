#!/usr/bin/env python3
"""Kills training at random moments with SIGKILL, resumes it, and compares with a run that was never killed.

    python3 scripts/reliability/kill_test.py --binary target/release/asyncthink-train \\
        --recipe scripts/reliability/tiny.toml --kills 20 --seed 1

For `sft` and for `grpo`: one unbroken run, then KILLS trials. A trial starts the stage in a fresh run folder, kills it at
a random moment (every second trial waits for a checkpoint that is being written and kills inside it), checks that every
checkpoint in place is whole, resumes with `--resume auto` to the end, and compares `metrics.jsonl` without `timing` byte
for byte, and the final weights. Prints one JSON object; exit code 1 if anything differs or a checkpoint is unreadable.

With `--ranks N` the stage runs under `asyncthink-train launch` with N ranks, and each trial kills one rank (the launcher
then starts all again), the launcher, or everything. Nothing may be left running afterwards.
Python 3 standard library only, Linux.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

HIDDEN = ".partial-"
TIMEOUT_SECONDS = 600


def command_of(arguments, stage, run_dir, extra):
    command = [stage, arguments.recipe, "--set", f'run_dir="{run_dir}"', *extra]
    if arguments.ranks > 1 and stage != "synth":
        command = ["launch", "--standalone", f"--nproc-per-node={arguments.ranks}", "--max-restarts=1", "--", *command]
    return [arguments.binary, *command]


def start(arguments, stage, run_dir, log):
    return subprocess.Popen(command_of(arguments, stage, run_dir, ["--resume", "auto"]), stdout=log, stderr=log)


def run(arguments, stage, run_dir, log, extra=("--resume", "auto")):
    command = command_of(arguments, stage, run_dir, extra)
    began = time.monotonic()
    result = subprocess.run(command, stdout=log, stderr=log, timeout=TIMEOUT_SECONDS, check=False)
    if result.returncode != 0:
        sys.exit(f"error: `{' '.join(map(str, command))}` ended with {result.returncode}; see {log.name}")
    return time.monotonic() - began


def metrics_without_timing(folder):
    """Lines as written, cut before their last key, which is `timing`."""
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    for line in lines:
        assert b',"timing":' in line, f"no timing in {line!r}"
    return [line.rsplit(b',"timing":', 1)[0] for line in lines]


def weights_digest(folder):
    return hashlib.sha256((folder / "checkpoints" / "latest" / "model.safetensors").read_bytes()).hexdigest()


def unreadable(folder):
    """Checkpoints under their own name whose files are not those of their manifest, and a dangling `latest`."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        return []
    bad = []
    for checkpoint in sorted(checkpoints.glob("step_*")):
        try:
            manifest = json.loads((checkpoint / "trainer" / "manifest.json").read_bytes())
            for name, expected in manifest["files"].items():
                content = (checkpoint / name).read_bytes()
                if len(content) != expected["size_bytes"] or f"{zlib.crc32(content):08x}" != expected["crc32"]:
                    raise ValueError(f"{name} differs from the manifest")
        except (OSError, ValueError, KeyError) as error:
            bad.append(f"{checkpoint.name}: {error}")
    latest = checkpoints / "latest"
    if latest.is_symlink() and not latest.exists():
        bad.append("latest: points nowhere")
    return bad


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The program's name, in parentheses, may hold anything.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


def left_running(run_dir):
    """Processes that name the run folder, after those that were killed have had time to go."""
    deadline = time.monotonic() + 30
    while True:
        found = []
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(run_dir).encode() in cmdline.read_bytes() and int(cmdline.parent.name) != os.getpid():
                    found.append(int(cmdline.parent.name))
            except OSError:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def is_saving(folder):
    return any((folder / "checkpoints").glob(HIDDEN + "*"))


def kill(process, victim, rng):
    """Kills a rank, the launcher, or both with all ranks; without ranks, the process."""
    ranks = children(process.pid) if victim in ("rank", "all") else []
    if victim == "rank":
        targets = [rng.choice(ranks)] if ranks else []
    else:
        targets = [process.pid, *ranks]
    for pid in targets:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if victim != "rank":
        process.wait()
    return bool(targets)


def kill_at(process, folder, moment, aim_at_save, victim, rng):
    """Kills after `moment` seconds, or inside the first save after it. Returns whether a save was under way, or None
    if the process had ended by itself."""
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.0005)
    if aim_at_save:
        while process.poll() is None and not is_saving(folder):
            time.sleep(0.0001)
        time.sleep(rng.random() * 0.003)
    ended = process.poll() is not None
    during_save = is_saving(folder)
    if not kill(process, victim, rng):
        process.wait()
        ended = True
    return None if ended else during_save


def prepare(source, target, stages):
    for stage in stages:
        shutil.copytree(source / stage, target / stage, symlinks=True)


def trial(arguments, stage, inputs, reference, expected, seconds, aim_at_save, rng, log):
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as scratch:
        run_dir = Path(scratch) / "run"
        folder = run_dir / stage
        prepare(reference, run_dir, inputs)
        victim = rng.choice(["rank", "launcher", "all"]) if arguments.ranks > 1 else "process"
        process = start(arguments, stage, run_dir, log)
        during_save = kill_at(process, folder, rng.uniform(0.05, 0.95) * seconds, aim_at_save, victim, rng)
        if during_save is None:
            return None
        # A launcher that lost a rank starts all again and ends well.
        restarted = process.wait(TIMEOUT_SECONDS) if victim == "rank" else 0
        left = left_running(run_dir)
        bad = unreadable(folder)
        lines_at_kill = len((folder / "metrics.jsonl").read_bytes().splitlines()) if (folder / "metrics.jsonl").exists() else 0
        run(arguments, stage, run_dir, log)
        return {
            "victim": victim,
            "restart_failed": restarted != 0,
            "left_running": len(left),
            "during_save": during_save,
            "metric_lines_at_kill": lines_at_kill,
            "metrics_identical": metrics_without_timing(folder) == expected["metrics"],
            "weights_identical": weights_digest(folder) == expected["weights"],
            "unreadable": bad + unreadable(folder),
        }


def test_stage(arguments, stage, inputs, reference, rng, log):
    seconds = run(arguments, stage, reference, log)
    folder = reference / stage
    expected = {"metrics": metrics_without_timing(folder), "weights": weights_digest(folder)}
    trials, missed = [], 0
    while len(trials) < arguments.kills:
        aim_at_save = len(trials) % 2 == 1
        result = trial(arguments, stage, inputs, reference, expected, seconds, aim_at_save, rng, log)
        if result is None:
            missed += 1
            if missed > 10 * arguments.kills:
                sys.exit(f"error: `{stage}` ends before it can be killed; give it more steps")
            continue
        trials.append(result)
        print(f"{stage}: kill {len(trials)} of {arguments.kills}: {result}", file=sys.stderr)
    return {
        "unbroken_seconds": round(seconds, 2),
        "metric_lines": len(expected["metrics"]),
        "kills": len(trials),
        "victims": {name: sum(result["victim"] == name for result in trials) for name in {result["victim"] for result in trials}},
        "restarts_failed": sum(result["restart_failed"] for result in trials),
        "left_running": sum(result["left_running"] for result in trials),
        "kills_during_save": sum(result["during_save"] for result in trials),
        "metric_lines_at_kill": sorted(result["metric_lines_at_kill"] for result in trials),
        "metrics_identical": sum(result["metrics_identical"] for result in trials),
        "weights_identical": sum(result["weights_identical"] for result in trials),
        "unreadable_checkpoints": [bad for result in trials for bad in result["unreadable"]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--recipe", required=True, type=Path)
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
        run(arguments, "synth", reference, log, extra=())
        report = {
            "sft": test_stage(arguments, "sft", ["synth"], reference, rng, log),
            "grpo": test_stage(arguments, "grpo", ["synth", "sft"], reference, rng, log),
        }
    report["passed"] = all(
        stage["metrics_identical"] == stage["weights_identical"] == stage["kills"]
        and not stage["unreadable_checkpoints"]
        and stage["restarts_failed"] == stage["left_running"] == 0
        for stage in report.values()
    )
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    main()
