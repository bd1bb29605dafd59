#!/usr/bin/env python3
"""The parts of `check.sh`, in order of importance, each with a time limit of its own.

A part that fails, hangs or is not in this build leaves a line that says so, and the others run all the same. When the time of
the whole check is up, the rest is skipped. The exit code is 1 if a part failed or ran out of its time.
"""

import argparse
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
# Log-probs of the GPU in f32 against those of the CPU.
MAX_DIFFERENCE = 1e-3
QUICKSTART = ["task.mcd.num_train_problems=200", "task.mcd.num_test_problems=20", "synth.num_traces=400", "eval.num_problems=20",
              "sft.optimizer.warmup_steps=0", "grpo.optimizer.warmup_steps=0"]


class Failed(Exception):
    """A part did not do what it should."""


class Skipped(Exception):
    """A part cannot run here."""


class Check:
    """What parts share: the program, folders, time."""

    def __init__(self, arguments, scratch):
        self.cpu = arguments.cpu
        self.device = "cpu" if arguments.cpu else "cuda"
        self.program = pathlib.Path(os.environ["ASYNCTHINK_TRAIN"]).absolute()
        self.out = pathlib.Path(os.environ["OUT"]).absolute()
        self.out.mkdir(parents=True, exist_ok=True)
        self.scratch = scratch
        self.end = time.monotonic() + arguments.budget
        self.limit = 0.0
        self.log = (self.out / "check.log").open("w")
        self.keys = None

    def run(self, command, check=True):
        """Standard output of a command within the time that the part has left."""
        command = [str(part) for part in command]
        print("$", *command, file=self.log, flush=True)
        timeout = max(1.0, self.limit - time.monotonic())
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.scratch,
                                   start_new_session=True)
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # The command and all that it started.
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            self.log.write(output + errors)
            raise
        self.log.write(output + errors)
        self.log.flush()
        if check and process.returncode != 0:
            text = (errors or output).strip()
            raise Failed(f"exit code {process.returncode}: {text[:800]}")
        return output

    def ours(self, *command):
        return self.run([self.program, *command])

    def python(self, script, *command):
        return self.run([sys.executable, ROOT / script, *command])

    def has_key(self, key):
        """Whether recipes of this build know a key."""
        if self.keys is None:
            self.keys = json.loads(self.ours("schema"))
        schema = self.keys
        for part in key.split("."):
            schema = schema.get("properties", {}).get(part)
            if schema is None:
                return False
        return True

    def model(self, shape, dtype):
        """A folder of random weights, made once."""
        folder = self.scratch / f"{shape}-{dtype}"
        if not folder.is_dir():
            part = folder.with_suffix(".part")
            self.python("scripts/bench/make_model.py", "--shape", shape, "--dtype", dtype, "--device", self.device, "--out", part)
            part.rename(folder)
        return folder


def machine(check):
    import torch
    import transformers
    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "cores": os.cpu_count(),
             "program_bytes": check.program.stat().st_size}
    if not check.cpu:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        facts |= {"gpu": check.run(query).strip(), "cuda": torch.version.cuda}
    return facts


def doctor(check):
    text = check.ours("doctor")
    rows = dict(line.split("  ", 1) for line in text.splitlines() if "  " in line)
    found = rows.get("device `auto`", "").strip()
    if not check.cpu and "Cuda" not in found:
        raise Failed(f"device `auto` is {found or 'unknown'}:\n{text}")
    return {name.strip(): value.strip() for name, value in rows.items()}


def self_test(check):
    if "--self-test" not in check.ours("doctor", "--help"):
        raise Skipped("this build has no `doctor --self-test`")
    return {"output": check.ours("doctor", "--self-test")[-4000:]}


def score(check):
    """Log-probs of random tokens on the device against those on the CPU."""
    folder = check.model("tiny", "f32")
    draw = random.Random(1)
    lines = check.scratch / "ids.jsonl"
    lines.write_text("".join(json.dumps({"id": index, "input_ids": [draw.randrange(512) for _ in range(length)]}) + "\n"
                             for index, length in enumerate([1, 7, 64, 200, 512, 33])))

    def logprobs(*options):
        text = check.ours("score", "--model", folder, lines, *options)
        return [value for line in text.splitlines() for value in json.loads(line)["logprobs"]]

    def largest(one, other):
        return max(abs(a - b) for a, b in zip(one, other, strict=True))

    expected = logprobs("--device", "cpu")
    facts = {"tokens": len(expected)}
    if check.cpu:
        facts["f32"] = largest(expected, logprobs("--device", "cpu", "--batch-tokens", "64"))
    else:
        facts["f32"] = largest(expected, logprobs("--device", "cuda"))
    facts["bf16"] = largest(expected, logprobs("--device", check.device, "--dtype", "bf16"))
    # Written so that a NaN fails too.
    if not facts["f32"] <= MAX_DIFFERENCE:
        raise Failed(f"log-probs are off by {facts['f32']}, more than {MAX_DIFFERENCE}")
    return facts


def training(check, launcher=(), keys=(), name="trained"):
    """A few steps of the quickstart's SFT and GRPO."""
    run = check.scratch / ("launched" if launcher else name)
    steps, grpo_steps, prompts = (4, 1, 2) if check.cpu else (30, 3, 8)
    sets = [*QUICKSTART, *keys, f"run_dir={run}", f"device={check.device}", f"sft.num_steps={steps}", f"sft.save_every_steps={steps}",
            "sft.log_every_steps=1", f"grpo.num_steps={grpo_steps}", f"grpo.prompts_per_step={prompts}", "grpo.group_size=4"]
    options = [argument for one in sets for argument in ("--set", one)]
    stages = ["synth", "sft"] if launcher else ["synth", "sft", "grpo"]
    for stage in stages:
        prefix = launcher if stage != "synth" else ()
        check.ours(*prefix, stage, RECIPES / "quickstart/mcd.toml", *options)
    facts = {}
    for stage in stages[1:]:
        lines = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in lines if "loss" in line]
        if not lines or not all(math.isfinite(line["loss"]) for line in lines):
            raise Failed(f"{stage}: losses are {[line['loss'] for line in lines]}")
        facts[stage] = {"losses": [round(line["loss"], 4) for line in lines], "last": lines[-1]}
    return facts


def training_bf16(check):
    """The same in bf16 with f32 master weights; on a GPU by the fused kernels and flash attention."""
    if not check.has_key("precision.tf32"):
        raise Skipped("this build trains in f32 only")
    # Sampler and trainer round in different places.
    keys = ["precision.compute=bf16", "engine.dtype=bf16", "grpo.max_logprob_mismatch=5.0"]
    if check.cpu:
        keys.append("precision.allow_slow_bf16=true")
    return training(check, keys=keys, name="trained_bf16")


def launch(check):
    """The launcher with one rank. NCCL of one rank is part of `doctor --self-test`."""
    return training(check, ("launch", "--nproc-per-node", "1", "--"))


def bench(recipe, dtype="f32", shape=None, graphs=True, kind="rollout", **numbers):
    """A bench of a recipe with other numbers, on a folder of random weights if a shape is given."""
    def part(check):
        sets = [f"bench.{kind}.{key}={json.dumps(value)}" for key, value in numbers.items()] + [f"device={check.device}"]
        if check.cpu:
            # Whatever else runs there must not hold it up.
            sets.append("num_threads=1")
        if dtype != "f32":
            if not check.has_key("engine.dtype"):
                raise Skipped("this build has no `engine.dtype`")
            sets.append(f"engine.dtype={dtype}")
            if kind != "rollout":
                if not check.has_key("precision.tf32"):
                    raise Skipped("this build trains in f32 only")
                sets.append(f"precision.compute={dtype}")
                if check.cpu:
                    sets.append("precision.allow_slow_bf16=true")
        if not graphs:
            if not check.has_key("engine.cuda_graphs"):
                raise Skipped("this build has no `engine.cuda_graphs`")
            sets.append("engine.cuda_graphs=false")
        if shape:
            sets.append(f"model={{ path = {json.dumps(str(check.model(shape, dtype)))} }}")
        options = [argument for one in sets for argument in ("--set", one)]
        line = json.loads(check.ours("bench", kind, RECIPES / f"bench/{recipe}.toml", *options))
        if not line["tokens_per_s"] > 0:
            raise Failed(f"tokens_per_s is {line['tokens_per_s']}")
        return line
    return part


def transformers(shape, dtype, **numbers):
    def part(check):
        if dtype != "f32" and not check.has_key("engine.dtype"):
            raise Skipped("this build has no `engine.dtype`")
        options = [f"--{key.replace('_', '-')}={value}" for key, value in numbers.items()]
        text = check.python("scripts/bench/rollout_vs_transformers.py", "--model", check.model(shape, dtype), "--dtype", dtype,
                            "--device", check.device, "--threads", 1 if check.cpu else os.cpu_count(), "--binary", check.program, *options)
        return json.loads(text)
    return part


def gpu_parts():
    """Name, seconds, function."""
    def sizes(recipe, dtype, counts, graphs=True, **numbers):
        for count in counts:
            name = f"rollout {recipe} {dtype} x{count}" + ("" if graphs else " no graphs")
            group = min(count, 8)
            yield name, 60, bench(recipe, dtype, recipe, graphs, num_prompts=count // group, group_size=group, **numbers)
    medium = dict(prompt_tokens=128, new_tokens=128, num_repeats=2)
    long = dict(prompt_tokens=512, new_tokens=128, num_repeats=2)
    yield "machine", 60, machine
    yield "doctor", 60, doctor
    yield "self test", 120, self_test
    yield "score", 60, score
    yield from sizes("qwen3-0.6b", "bf16", (64, 1, 256), **medium)
    yield "training", 120, training
    yield "training bf16", 120, training_bf16
    yield "train qwen3-0.6b bf16", 60, bench("qwen3-0.6b", "bf16", "qwen3-0.6b", kind="train", num_repeats=2)
    yield "train qwen3-4b bf16", 90, bench("qwen3-4b", "bf16", "qwen3-4b", kind="train", num_repeats=1)
    yield "step qwen3-0.6b bf16", 90, bench("qwen3-0.6b", "bf16", "qwen3-0.6b", kind="step", num_repeats=1)
    yield "train nano f32", 60, bench("nano", kind="train", num_repeats=2)
    yield from sizes("qwen3-4b", "bf16", (64, 1, 256), **long)
    yield "transformers qwen3-0.6b x64", 90, transformers("qwen3-0.6b", "bf16", num_prompts=8, group=8, new_tokens=64, repeats=2)
    yield from sizes("smollm2-135m", "bf16", (64, 256), **medium)
    yield "rollout nano f32 x200", 60, bench("nano", num_repeats=2)
    yield "episodes c=2", 60, bench("episodes-c2", num_repeats=2)
    yield "episodes c=4", 60, bench("episodes-c4", num_repeats=2)
    yield from sizes("qwen3-0.6b", "bf16", (1, 64), graphs=False, **medium)
    yield "launch", 60, launch
    yield from sizes("nano", "f32", (1, 64), prompt_tokens=32, new_tokens=128, num_repeats=2)
    yield from sizes("smollm2-135m", "bf16", (1,), **medium)
    yield "transformers nano x200", 60, transformers("nano", "f32", num_prompts=20, group=10, prompt_tokens=32, new_tokens=128, repeats=2)
    yield from sizes("qwen3-0.6b", "bf16", (256,), graphs=False, **medium)
    yield from sizes("qwen3-4b", "bf16", (1, 64), graphs=False, **long)


def cpu_parts():
    few = dict(num_prompts=2, group_size=2, num_repeats=1)
    yield "machine", 60, machine
    yield "doctor", 60, doctor
    yield "self test", 60, self_test
    yield "score", 60, score
    yield "training", 60, training
    yield "training bf16", 60, training_bf16
    yield "train nano f32", 30, bench("nano", kind="train", num_rows=8, num_repeats=1)
    yield "train nano bf16", 30, bench("nano", "bf16", kind="train", num_rows=4, num_repeats=1)
    yield "step nano f32", 30, bench("nano", kind="step", new_tokens=8, num_prompts=2, group_size=2, num_repeats=1)
    yield "rollout nano f32", 30, bench("nano", new_tokens=8, **few)
    yield "rollout tiny f32 of a folder", 30, bench("nano", "f32", "tiny", new_tokens=8, **few)
    yield "rollout nano bf16", 30, bench("nano", "bf16", new_tokens=8, **few)
    yield "episodes c=2", 30, bench("episodes-c2", **few)
    yield "episodes c=4", 30, bench("episodes-c4", **few)
    yield "transformers tiny", 60, transformers("tiny", "f32", num_prompts=2, prompt_tokens=16, new_tokens=8, repeats=1)
    yield "launch", 60, launch


def run_part(check, name, seconds, function):
    start = time.monotonic()
    check.limit = min(start + seconds, check.end)
    line = {"part": name, "status": "ok"}
    try:
        if check.limit - start < 5:
            raise Skipped("the time of the check is up")
        line["result"] = function(check)
    except Skipped as reason:
        line |= {"status": "skipped", "reason": str(reason)}
    except subprocess.TimeoutExpired:
        line |= {"status": "timeout", "reason": f"not done after {time.monotonic() - start:.0f} s"}
    except Exception as error:  # whatever it is, the next part runs
        line |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    line["seconds"] = round(time.monotonic() - start, 1)
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes, on a machine without a GPU")
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS", help="time of the whole check")
    parser.add_argument("--only", metavar="TEXT", help="parts whose name holds this")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        check = Check(arguments, pathlib.Path(scratch))
        parts = [part for part in (cpu_parts() if arguments.cpu else gpu_parts()) if (arguments.only or "") in part[0]]
        lines = []
        with (check.out / "check.jsonl").open("w") as file:
            for part in parts:
                line = run_part(check, *part)
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
                note = line.get("reason", "")
                rate = line.get("result", {}).get("tokens_per_s")
                note = note.partition("\n")[0] or (f"{rate:.0f} tokens/s" if rate else "")
                print(f"{line['status']:8}{line['seconds']:7.1f} s  {line['part']}  {note}".rstrip(), flush=True)
    by_status = {status: [line["part"] for line in lines if line["status"] == status]
                 for status in ("ok", "failed", "timeout", "skipped")}
    summary = {"device": check.device, "seconds": round(time.monotonic() - start, 1), **by_status, "parts": lines}
    (check.out / "check.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({"seconds": summary["seconds"], **{status: len(parts) for status, parts in by_status.items()}}))
    return 1 if by_status["failed"] or by_status["timeout"] else 0


if __name__ == "__main__":
    sys.exit(main())
