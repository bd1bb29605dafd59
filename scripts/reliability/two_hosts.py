#!/usr/bin/env python3
"""Trains on two hosts, compares with one host, kills a rank of the second host, and cuts the link between them.

    sudo python3 scripts/reliability/two_hosts.py --binary target/release/asyncthink-train \\
        --recipe tests/tiny.toml

The hosts are two network namespaces of this machine, joined by a virtual cable (`ip netns`, veth): each has addresses and a
loopback of its own, and they reach one another by the cable alone. Each runs `asyncthink-train launch --nnodes 2`. Needs root, or

    unshare --user --map-root-user --net --mount sh -c 'mount -t tmpfs none /run && exec python3 scripts/...'

where users may have namespaces. Namespaces are always removed. For `sft` and `grpo`:

    same     with 1 and 1 ranks, and with 1 and 2: metrics (without `timing`) and weights are those of as many ranks on one host
    kill     a rank of the second host is ended by SIGKILL: all start again, go on, and end with the same metrics and weights
    cut      the cable is unplugged: both launchers end with an error that names what was lost, and nothing is left running
    apart    each host has a run folder of its own: both launchers end with exit code 2 and name the rank, and nothing is trained

Prints one JSON object; exit code 1 if something is not as it should be. Python 3 standard library only, Linux, iproute2.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import runs

ADDRESSES = ["10.231.77.1", "10.231.77.2"]
PORT = 29400
# A launcher gives ranks one thread each where a host has several; as many threads everywhere make the same bits.
SETS = ["num_threads=1", "sft.num_steps=60", "grpo.num_steps=10"]
# Of a collective, in the run whose cable is cut.
TIMEOUT_SECS = 5
# Longer than the launchers may take: 30 s until a silent one is given up, and 30 s for its ranks to end.
CUT_SECONDS = 100


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Hosts:
    """Two network namespaces and the cable between them."""

    def __init__(self):
        tag = os.getpid()
        self.names = [f"asyncthink-{tag}-{host}" for host in (0, 1)]
        self.cables = [f"at{tag}-{host}" for host in (0, 1)]

    def __enter__(self):
        try:
            for name in self.names:
                ip("netns", "add", name)
            first, second = (("name", cable, "netns", name) for cable, name in zip(self.cables, self.names))
            ip("link", "add", *first, "type", "veth", "peer", *second)
            for name, cable, address in zip(self.names, self.cables, ADDRESSES):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
                ip("-n", name, "link", "set", "lo", "up")
            self.plug("up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)

    def plug(self, state):
        for name, cable in zip(self.names, self.cables):
            ip("-n", name, "link", "set", cable, state)

    def inside(self, host, command):
        return ["ip", "netns", "exec", self.names[host], *command]


class Pair:
    """A launcher on each host."""

    def __init__(self, arguments, hosts, shape, commands, run_id, max_restarts, folder):
        self.outputs, self.launchers = [], []
        for host, (num_ranks, command) in enumerate(zip(shape, commands)):
            options = [
                "--nnodes=2",
                f"--nproc-per-node={num_ranks}",
                f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}",
                f"--rdzv-id={run_id}",
                f"--max-restarts={max_restarts}",
            ]
            whole = hosts.inside(host, [arguments.binary, "launch", *options, "--", *command])
            output = folder / f"host{host}.txt"
            with output.open("wb") as out:
                self.launchers.append(subprocess.Popen(whole, stdout=out, stderr=out, stdin=subprocess.DEVNULL))
            self.outputs.append(output)

    def wait(self, seconds):
        """Exit codes and seconds until then, by host."""
        began, ends = time.monotonic(), {}
        while len(ends) < 2 and time.monotonic() < began + seconds:
            for host, launcher in enumerate(self.launchers):
                if host not in ends and launcher.poll() is not None:
                    ends[host] = (launcher.returncode, round(time.monotonic() - began, 1))
            time.sleep(0.02)
        return [ends.get(host, (None, None)) for host in (0, 1)]

    def texts(self):
        return [output.read_text(errors="replace") for output in self.outputs]


class Tester:
    def __init__(self, arguments, hosts, scratch, log):
        self.arguments, self.hosts, self.scratch, self.log = arguments, hosts, scratch, log
        self.num_runs = 0
        self.inputs = {"sft": ["synth"], "grpo": ["synth", "sft"]}

    def command(self, stage, run_dir, sets=()):
        return runs.stage_command(stage, self.arguments.recipe, run_dir, [*SETS, *sets])

    def fresh(self, stage, source):
        """A run folder with what the stage needs of an earlier one."""
        self.num_runs += 1
        run_dir = self.scratch / f"run{self.num_runs}"
        for name in self.inputs[stage]:
            shutil.copytree(source / name, run_dir / name, symlinks=True)
        return run_dir

    def one_host(self, num_ranks):
        """Both stages by so many ranks of one host."""
        run_dir = self.scratch / f"one_host_{num_ranks}"
        launch = ["launch", "--standalone", f"--nproc-per-node={num_ranks}", "--"]
        for stage in ("synth", "sft", "grpo"):
            before = [] if stage == "synth" else launch
            command = [self.arguments.binary, *before, *self.command(stage, run_dir)]
            runs.run(self.hosts.inside(0, command), self.log)
        return run_dir

    def start(self, shape, stage, run_dir, max_restarts=0, sets=(), second_run_dir=None):
        commands = [self.command(stage, folder, sets) for folder in (run_dir, second_run_dir or run_dir)]
        return Pair(self.arguments, self.hosts, shape, commands, run_dir.name, max_restarts, run_dir)

    def finish(self, pair, seconds=runs.TIMEOUT_SECONDS):
        ends = pair.wait(seconds)
        for text in pair.texts():
            self.log.write(text.encode())
        return ends

    def compared(self, stage, run_dir, expected, ends):
        folder, other = run_dir / stage, expected / stage
        is_done = all(code == 0 for code, _ in ends)
        return {
            "exit_codes": [code for code, _ in ends],
            "metrics_identical": is_done and runs.metrics_without_timing(folder) == runs.metrics_without_timing(other),
            "weights_identical": is_done and runs.weights_digest(folder) == runs.weights_digest(other),
            "left_running": len(runs.left_running(run_dir)),
            "unreadable": runs.unreadable(folder),
        }

    def same(self, stage, shape, expected):
        run_dir = self.fresh(stage, expected)
        ends = self.finish(self.start(shape, stage, run_dir))
        return {"what": "same", "stage": stage, "ranks": shape, **self.compared(stage, run_dir, expected, ends)}

    def begun(self, pair, stage, run_dir, num_lines):
        has_begun = lambda: runs.num_lines(run_dir / stage) >= num_lines  # noqa: E731
        if not runs.wait_for(f"{num_lines} steps of {stage}", has_begun, pair.launchers[0]):
            runs.fail(f"the launch ended early; see {pair.outputs[0].read_text(errors='replace')}")

    def kill(self, stage, expected):
        run_dir = self.fresh(stage, expected)
        pair = self.start([1, 1], stage, run_dir, max_restarts=1)
        self.begun(pair, stage, run_dir, 4)
        (rank,) = runs.ranks_below(pair.launchers[1].pid).values()
        os.kill(rank, signal.SIGKILL)
        ends = self.finish(pair)
        return {
            "what": "kill",
            "stage": stage,
            "restarts": [text.count("restart 1 of 1") for text in pair.texts()],
            **self.compared(stage, run_dir, expected, ends),
        }

    def cut(self, stage, expected):
        run_dir = self.fresh(stage, expected)
        sets = [f"{stage}.num_steps=100000", f"distributed.timeout_secs={TIMEOUT_SECS}"]
        pair = self.start([1, 1], stage, run_dir, sets=sets)
        self.begun(pair, stage, run_dir, 4)
        self.hosts.plug("down")
        ends = self.finish(pair, CUT_SECONDS)
        self.hosts.plug("up")
        texts = pair.texts()
        return {
            "what": "cut",
            "stage": stage,
            "exit_codes": [code for code, _ in ends],
            "seconds": [seconds for _, seconds in ends],
            "said": [text[text.rfind("\nerror: ") + 1 :].strip() for text in texts],
            "phase_and_step_named": [bool(re.search(rf"of 2 in `{stage}[^`]*step \d", text)) for text in texts],
            "left_running": len(runs.left_running(run_dir)),
            "unreadable": runs.unreadable(run_dir / stage),
        }


    def apart(self, stage, expected):
        run_dirs = [self.fresh(stage, expected) for _ in (0, 1)]
        sets = [f"distributed.timeout_secs={TIMEOUT_SECS}"]
        pair = self.start([1, 1], stage, run_dirs[0], max_restarts=1, sets=sets, second_run_dir=run_dirs[1])
        ends = self.finish(pair)
        return {
            "what": "apart",
            "stage": stage,
            "exit_codes": [code for code, _ in ends],
            "named": ["is not seen by rank 1 on " in text for text in pair.texts()],
            "trained": [(run_dir / stage).exists() for run_dir in run_dirs],
            "left_running": len(runs.left_running(run_dirs[0])),
            "unreadable": [],
        }


def is_good(result):
    is_quiet = result["left_running"] == 0 and not result["unreadable"]
    if result["what"] == "cut":
        is_named = all(said.startswith("error: ") for said in result["said"]) and all(result["phase_and_step_named"])
        return is_quiet and result["exit_codes"] == [1, 1] and is_named
    if result["what"] == "apart":
        return is_quiet and result["exit_codes"] == [2, 2] and all(result["named"]) and not any(result["trained"])
    is_same = result["metrics_identical"] and result["weights_identical"]
    return is_quiet and is_same and result.get("restarts", [1, 1]) == [1, 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--recipe", required=True, type=Path)
    parser.add_argument("--work-dir", type=Path, help="where run folders are made; default: a temporary folder")
    parser.add_argument("--log", type=Path, default=Path("two_hosts.log"), help="output of the program")
    arguments = parser.parse_args()
    arguments.binary = arguments.binary.resolve()
    arguments.recipe = arguments.recipe.resolve()
    if os.geteuid() != 0:
        runs.fail("network namespaces need root; `--help` says how to do without")
    if arguments.work_dir is not None:
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
    # A signal must not leave namespaces behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (
        Hosts() as hosts,
        tempfile.TemporaryDirectory(dir=arguments.work_dir) as scratch,
        arguments.log.open("ab") as log,
    ):
        tester = Tester(arguments, hosts, Path(scratch).resolve(), log)
        results = []

        def note(result):
            print(result, file=sys.stderr, flush=True)
            results.append(result)

        for shape in ([1, 1], [1, 2]):
            expected = tester.one_host(sum(shape))
            for stage in ("sft", "grpo"):
                note(tester.same(stage, shape, expected))
                if shape == [1, 1]:
                    note(tester.kill(stage, expected))
                    note(tester.cut(stage, expected))
                    note(tester.apart(stage, expected))
    passed = all(is_good(result) for result in results)
    print(json.dumps({"results": results, "passed": passed}, indent=2))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
