#!/usr/bin/env python3
"""Trains under two agents of the real torchrun, kills ranks and agents, and compares with an unbroken run.

    python3 scripts/reliability/torchrun_agents.py --binary target/release/asyncthink-train --torchrun PATH --kills 10

Two agents on this machine, `torchrun --no-python --nnodes 2 --nproc-per-node 1` with the c10d rendezvous, one rank each. Where a
rank is lost, its agent counts a restart and goes back to the rendezvous; the other agent restarts its rank for the change of
membership and counts nothing, so `TORCHELASTIC_RESTART_COUNT` differs between the ranks from then on. For `sft` and `grpo`, and for
both values of `TORCH_DISABLE_SHARE_RDZV_TCP_STORE` (0: the store of the first agent serves the ranks of all attempts; 1: rank 0 serves
one of its own), the kills are taken in turn:

    rank 0, rank 1   SIGKILL to that rank
    agent            SIGKILL to the second agent and its rank, as where a machine is lost; then the agent is started again. Where agents
                     share their store, torchrun does not let a new agent into a later round (it waits in vain for the store's
                     address, whatever the program is), so there all are killed and both agents started again

Every second launch is given `--resume never`, which counts for the launch and not for each of its attempts: nothing may be moved
aside. `metrics.jsonl` without `timing` and the final weights must be those of the unbroken run to the bit.
Prints one JSON object; exit code 1 if something is not as it should be. Python 3 standard library only, Linux.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import runs

ROOT = Path(__file__).resolve().parents[2]
SETS = ["num_threads=1", "distributed.timeout_secs=30"]
KILLED_AFTER_LINES = {"sft": 40, "grpo": 6}
INPUTS = {"sft": ["synth"], "grpo": ["synth", "sft"]}
TRIALS = [
    (victim, shares_store, stage)
    for shares_store, victim, stage in itertools.product((True, False), ("rank 1", "rank 0", "agent"), ("sft", "grpo"))
]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Agents:
    """The agents of one launch."""

    def __init__(self, arguments, shares_store, run_dir, program):
        self.arguments, self.shares_store, self.run_dir, self.program = arguments, shares_store, run_dir, program
        self.port = free_port()
        self.outputs, self.processes = [], [None, None]

    def start(self, index):
        options = [
            "--no-python",
            "--nnodes=2",
            "--nproc-per-node=1",
            "--max-restarts=3",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{self.port}",
            "--rdzv-id=two-agents",
            f"--rdzv-conf=is_host={int(index == 0)}",
            "--local-addr=127.0.0.1",
        ]
        environment = {
            **os.environ,
            "LOGLEVEL": "INFO",
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0" if self.shares_store else "1",
        }
        output = self.run_dir / f"output{len(self.outputs)}.txt"
        self.outputs.append(output)
        with output.open("wb") as out:
            command = [self.arguments.torchrun, *options, *self.program]
            self.processes[index] = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def start_both(self):
        for index in (0, 1):
            self.start(index)
            # The agent with the lower process id starts rank 0.
            time.sleep(0.2)

    def ranks(self):
        """Process ids by rank."""
        return {rank: pid for agent in self.processes for rank, pid in runs.ranks_below(agent.pid).items()}

    def wait(self):
        """Exit codes of both agents."""
        done = lambda: all(agent.poll() is not None for agent in self.processes)  # noqa: E731
        runs.wait_for(f"the end of the agents; see {self.outputs}", done, seconds=runs.TIMEOUT_SECONDS)
        return [agent.returncode for agent in self.processes]

    def text(self):
        return "".join(output.read_text(errors="replace") for output in self.outputs)


class Runner:
    def __init__(self, arguments, scratch, log):
        self.arguments, self.scratch, self.log = arguments, scratch, log

    def program(self, stage, run_dir, resume="auto"):
        command = runs.stage_command(stage, self.arguments.recipe, run_dir, SETS, ["--resume", resume])
        return [self.arguments.binary, *command]

    def unbroken(self, run_dir):
        """All stages, the later ones by two agents that lose nothing."""
        runs.run(self.program("synth", run_dir), self.log)
        for stage in ("sft", "grpo"):
            agents = Agents(self.arguments, True, run_dir, self.program(stage, run_dir))
            agents.start_both()
            codes = agents.wait()
            self.log.write(agents.text().encode())
            if codes != [0, 0]:
                runs.fail(f"the unbroken run of {stage} ended with {codes}; see {self.log.name}")

    def killed(self, number, victim, shares_store, stage, reference):
        run_dir = self.scratch / f"trial{number}"
        for name in INPUTS[stage]:
            shutil.copytree(reference / name, run_dir / name, symlinks=True)
        folder, resume = run_dir / stage, ("auto", "never")[number % 2]
        agents = Agents(self.arguments, shares_store, run_dir, self.program(stage, run_dir, resume))
        agents.start_both()
        num_lines = KILLED_AFTER_LINES[stage]
        has_begun = lambda: runs.num_lines(folder) >= num_lines  # noqa: E731
        if not runs.wait_for(f"{num_lines} steps of {stage}", has_begun, agents.processes[0]):
            runs.fail(f"an agent ended before anything was killed; see {agents.outputs}")
        pids = agents.ranks()
        if victim == "agent":
            lost = (0, 1) if shares_store else (1,)
            for index in lost:
                agents.processes[index].kill()
                os.kill(pids[index], signal.SIGKILL)
                agents.processes[index].wait()
            if shares_store:
                # Another launch, for which `never` would mean to begin anew.
                agents.program = self.program(stage, run_dir, "auto")
                agents.port = free_port()
                agents.start_both()
            else:
                agents.start(1)
        else:
            os.kill(pids[int(victim[-1])], signal.SIGKILL)
        lines_at_kill = runs.num_lines(folder)
        codes = agents.wait()
        text = agents.text()
        self.log.write(text.encode())
        resumed = re.findall(r"going on from `[^`]*/step_(\d+)`", text)
        is_done = codes == [0, 0]
        expected = reference / stage
        return {
            "victim": victim,
            "shares_store": shares_store,
            "stage": stage,
            "resume": resume,
            "exit_codes": codes,
            "lines_at_kill": lines_at_kill,
            "restarts_counted": len(re.findall("attempts left; will restart worker group", text)),
            "restarts_not_counted": len(re.findall("new nodes from group_rank=", text)),
            "resumed_from_step": int(resumed[-1]) if resumed else None,
            "metrics_identical": is_done and runs.metrics_without_timing(folder) == runs.metrics_without_timing(expected),
            "weights_identical": is_done and runs.weights_digest(folder) == runs.weights_digest(expected),
            "moved_aside": sorted(path.name for path in run_dir.glob("*.old-*")),
            "left_running": len(runs.left_running(run_dir)),
            "unreadable": runs.unreadable(folder),
            "litter": runs.litter(run_dir),
        }


def is_good(trial):
    wanted = ("metrics_identical", "weights_identical")
    unwanted = ("moved_aside", "left_running", "unreadable", "litter")
    return (
        trial["exit_codes"] == [0, 0]
        and trial["resumed_from_step"] is not None
        and all(trial[key] for key in wanted)
        and not any(trial[key] for key in unwanted)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--torchrun", required=True, type=Path, help="of PyTorch 2.11; torchrun_test.py makes one")
    parser.add_argument("--recipe", type=Path, default=ROOT / "tests" / "tiny.toml")
    parser.add_argument("--kills", type=int, default=len(TRIALS))
    parser.add_argument("--victim", choices=sorted({victim for victim, _, _ in TRIALS}), help="kill nothing else")
    parser.add_argument("--work-dir", type=Path, help="where run folders are made; default: a temporary folder")
    parser.add_argument("--log", type=Path, default=Path("torchrun_agents.log"), help="output of the agents")
    arguments = parser.parse_args()
    arguments.binary, arguments.recipe = arguments.binary.resolve(), arguments.recipe.resolve()
    if arguments.work_dir is not None:
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as scratch, arguments.log.open("ab") as log:
        scratch = Path(scratch).resolve()
        runner = Runner(arguments, scratch, log)
        reference = scratch / "reference"
        reference.mkdir()
        runner.unbroken(reference)
        trials = []
        kinds = [kind for kind in TRIALS if arguments.victim in (None, kind[0])]
        for number in range(arguments.kills):
            victim, shares_store, stage = kinds[number % len(kinds)]
            trial = runner.killed(number, victim, shares_store, stage, reference)
            print(trial, file=sys.stderr, flush=True)
            trials.append(trial)
    passed = all(is_good(trial) for trial in trials)
    counts = {"kills": len(trials), "identical": sum(is_good(trial) for trial in trials)}
    print(json.dumps({**counts, "trials": trials, "passed": passed}, indent=2))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
