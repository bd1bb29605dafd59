#!/usr/bin/env python3
"""Runs the quickstart's recipe under the real torchrun, kills a rank in every training stage, and compares with unbroken runs.

    python3 scripts/reliability/torchrun_test.py --binary target/release/asyncthink-train [--torchrun PATH]

`synth`, `sft` and `grpo` of `recipes/quickstart/mcd.toml`, made short by `--set`, by two ranks under `torchrun --no-python
--max-restarts 1`. For each training stage: one unbroken run, and one in which a rank is ended by SIGKILL in the middle of the
steps. torchrun must start all ranks again, these must go on from the newest complete checkpoint, and `metrics.jsonl` without
`timing` and the final weights must be the same to the bit. The kinds of rendezvous are taken in turn, because the ranks meet in
another way with each: `standalone` (c10d) and `static`, where torchrun hosts the store, and `own-store`, where rank 0 does.
Last, a run whose input is wrong: torchrun must print our message from the error file.

Without `--torchrun`, PyTorch is installed into a virtual environment of its own (`--venv`): the CPU build where download.pytorch.org
can be reached, else that of PyPI with its CUDA libraries, 5 GB. Nothing of it is used by the program.
Prints one JSON object; exit code 1 if something is not as it should be. Python 3 standard library only, Linux.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import runs

ROOT = Path(__file__).resolve().parents[2]
TORCH_VERSION = "2.11.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NUM_RANKS = 2
SETS = [
    "task.mcd.num_train_problems=200",
    "task.mcd.num_test_problems=20",
    "eval.num_problems=20",
    "synth.num_traces=1000",
    "sft.num_steps=60",
    "sft.save_every_steps=7",
    "sft.log_every_steps=1",
    "grpo.num_steps=8",
    "grpo.prompts_per_step=4",
    "grpo.group_size=4",
    "grpo.save_every_steps=2",
    "grpo.dump_episodes_every_steps=3",
]
KILLED_AFTER_LINES = {"sft": 25, "grpo": 3}


def install_torchrun(folder):
    """The torchrun of a virtual environment, which is made if there is none."""
    torchrun = folder / "bin" / "torchrun"
    if torchrun.exists():
        return torchrun
    venv.create(folder, with_pip=True, clear=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--retries", "1"]
    install = [*pip, f"torch=={TORCH_VERSION}"]
    for options in (["--index-url", CPU_INDEX], []):
        if subprocess.run([*install, *options], check=False, stdout=sys.stderr).returncode == 0:
            return torchrun
    runs.fail(f"pip could not install torch {TORCH_VERSION}: check the network, or give `--torchrun PATH`")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def rendezvous(kind):
    """Options of torchrun, and what it needs in its environment."""
    if kind == "static":
        return ["--master-addr=127.0.0.1", f"--master-port={free_port()}"], {}
    # torchrun then leaves the store to rank 0.
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if kind == "own-store" else {}
    return ["--standalone"], own_store


class Runner:
    def __init__(self, arguments, torchrun, log):
        self.arguments, self.torchrun, self.log = arguments, torchrun, log

    def command(self, stage, run_dir, options, sets=(), max_restarts=1):
        program = [self.arguments.binary, *runs.stage_command(stage, self.arguments.recipe, run_dir, [*SETS, *sets])]
        options = ["--no-python", f"--nproc-per-node={NUM_RANKS}", f"--max-restarts={max_restarts}", *options]
        return [self.torchrun, *options, *program]

    def environment(self, more):
        return {**os.environ, "LOGLEVEL": "INFO", "OMP_NUM_THREADS": "1", **more}

    def unbroken(self, stage, run_dir):
        options, more = rendezvous("standalone")
        return runs.run(self.command(stage, run_dir, options), self.log, env=self.environment(more))

    def killed(self, stage, run_dir, kind, victim):
        """Runs a stage to its end, with a rank killed on the way."""
        options, more = rendezvous(kind)
        folder, output = run_dir / stage, run_dir / "output.txt"
        with output.open("wb") as out:
            environment = self.environment(more)
            process = subprocess.Popen(self.command(stage, run_dir, options), stdout=out, stderr=out, env=environment)
            num_lines = KILLED_AFTER_LINES[stage]
            has_begun = lambda: runs.num_lines(folder) >= num_lines  # noqa: E731
            if not runs.wait_for(f"{num_lines} steps of {stage}", has_begun, process):
                runs.fail(f"torchrun ended with {process.returncode} before a rank was killed; see {output}")
            ranks = runs.ranks_below(process.pid)
            found = runs.environment(ranks[victim])
            os.kill(ranks[victim], signal.SIGKILL)
            lines_at_kill = runs.num_lines(folder)
            runs.wait_for("the end of the run", lambda: process.poll() is not None, seconds=runs.TIMEOUT_SECONDS)
        text = output.read_text(errors="replace")
        self.log.write(text.encode())
        resumed = re.findall(r"going on from `[^`]*/step_(\d+)`", text)
        return {
            "stage": stage,
            "rendezvous": kind,
            "victim": victim,
            "exit_code": process.returncode,
            "use_agent_store": found.get("TORCHELASTIC_USE_AGENT_STORE"),
            "torchrun_restarted": "will restart worker group" in text,
            "metric_lines_at_kill": lines_at_kill,
            "resumed_from_step": int(resumed[-1]) if resumed else None,
            "left_running": len(runs.left_running(run_dir)),
            "unreadable": runs.unreadable(folder),
            "litter": runs.litter(run_dir),
        }

    def refused(self, run_dir):
        """What torchrun prints of ranks that refuse their input."""
        options, more = rendezvous("standalone")
        command = self.command("grpo", run_dir, options, sets=["grpo.prompts_per_step=1"], max_restarts=0)
        result = subprocess.run(command, capture_output=True, text=True, env=self.environment(more), check=False)
        self.log.write(result.stderr.encode())
        _, _, summary = result.stderr.partition("Root Cause")
        return {
            "exit_code": result.returncode,
            "root_cause": [line.strip() for line in summary.splitlines() if line.strip(" =")],
            "is_ours": "`grpo.prompts_per_step` is 1, fewer than the 2 ranks" in summary
            and "hint: " in summary
            and "error.json" in summary
            and "exitcode  : 2 " in summary,
        }


def is_good(trial):
    return (
        trial["exit_code"] == 0
        and trial["torchrun_restarted"]
        and trial["use_agent_store"] == ("False" if trial["rendezvous"] == "own-store" else "True")
        and trial["resumed_from_step"] is not None
        and trial["metrics_identical"]
        and trial["weights_identical"]
        and trial["left_running"] == 0
        and not trial["unreadable"]
        and not trial["litter"]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart" / "mcd.toml")
    parser.add_argument("--torchrun", type=Path, help="the program; default: that of --venv")
    parser.add_argument("--venv", type=Path, default=ROOT / "third_party" / "torchrun", help="made if it is not there")
    parser.add_argument("--seed", type=int, default=1, help="of the ranks that are killed")
    parser.add_argument("--work-dir", type=Path, help="where run folders are made; default: a temporary folder")
    parser.add_argument("--log", type=Path, default=Path("torchrun_test.log"), help="output of torchrun")
    arguments = parser.parse_args()
    arguments.binary = arguments.binary.resolve()
    arguments.recipe = arguments.recipe.resolve()
    # Not resolved: a virtual environment is known by the path of its Python.
    torchrun = arguments.torchrun or install_torchrun(arguments.venv)
    rng = random.Random(arguments.seed)
    if arguments.work_dir is not None:
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as scratch, arguments.log.open("ab") as log:
        runner = Runner(arguments, torchrun, log)
        reference = Path(scratch) / "reference"
        seconds = {stage: round(runner.unbroken(stage, reference), 1) for stage in ("synth", "sft", "grpo")}
        trials = []
        for kind in ("standalone", "static", "own-store"):
            for stage, inputs in (("sft", ["synth"]), ("grpo", ["synth", "sft"])):
                run_dir = Path(scratch) / kind / stage
                for name in inputs:
                    shutil.copytree(reference / name, run_dir / name, symlinks=True)
                trial = runner.killed(stage, run_dir, kind, rng.randrange(NUM_RANKS))
                folder, expected = run_dir / stage, reference / stage
                equal = lambda figure: figure(folder) == figure(expected)  # noqa: B023, E731
                trial["metrics_identical"] = trial["exit_code"] == 0 and equal(runs.metrics_without_timing)
                trial["weights_identical"] = trial["exit_code"] == 0 and equal(runs.weights_digest)
                print(trial, file=sys.stderr, flush=True)
                trials.append(trial)
        refused = runner.refused(reference)
    passed = all(is_good(trial) for trial in trials) and refused["exit_code"] == 1 and refused["is_ours"]
    report = {"unbroken_seconds": seconds, "trials": trials, "refused": refused, "passed": passed}
    print(json.dumps(report, indent=2))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
