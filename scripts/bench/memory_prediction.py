#!/usr/bin/env python3
"""Measures the memory of the first step of training beside what is predicted before it, for six recipes on the CPU.

    python3 scripts/bench/memory_prediction.py --binary target/release/asyncthink-train --work /tmp/memory

Each run trains one step of random weights (`make_model.py`) and leaves `memory.json` in its stage's folder: the prediction, part
by part, and the peak of the resident set beyond what the program took before it loaded the model. Exits 1 where a peak is
further from its prediction than `--bound`.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent

RECIPE = """
name = "memory"
run_dir = "{run_dir}"
device = "cpu"
num_threads = {threads}

[task.mcd]
num_numbers = 5
number_range = [1, 12]
target_range = [2, 30]
numbers_per_solution = [2, 2]
required_solutions = 2
num_train_problems = 100
num_test_problems = 20

[protocol]
capacity = 2
worker_max_tokens = 160
organizer_max_tokens = 192
organizer_total_tokens = 192

[prompts]
organizer = "This is main process. {{query}}\\n"
worker = "This is a subprocess. {{sub_query}}\\n"
query = "{{numbers}} = {{target}}"

[model]
path = "{model}"

[synth]
num_traces = 200

{stage}
"""

SFT = """
[sft]
num_steps = 1
batch_tokens = {tokens}
micro_batch_tokens = {tokens}
activation_checkpointing = {checkpointing}
optimizer = {{ learning_rate = 1e-4 }}
"""

GRPO = """
[grpo]
num_steps = 1
prompts_per_step = {prompts}
group_size = 8
micro_batch_tokens = {tokens}
activation_checkpointing = {checkpointing}
# Random weights earn the same everywhere; with a bonus every row has a gradient.
entropy_coefficient = 0.01
optimizer = {{ learning_rate = 1e-5 }}
"""

# Shape, stage, tokens of a micro-batch, checkpointing, prompts.
CASES = [
    ("nano", "sft", 16384, False, 0),
    ("nano", "grpo", 4096, True, 8),
    ("small", "sft", 4096, False, 0),
    ("small", "sft", 4096, True, 0),
    ("small", "grpo", 1024, False, 4),
    ("smollm2-135m", "sft", 1024, False, 0),
    ("smollm2-135m", "grpo", 1024, True, 1),
]


def model(work, shape):
    folder = work / "models" / shape
    if not folder.exists():
        make = [sys.executable, HERE / "make_model.py", "--shape", shape, "--out", folder, "--dtype", "f32"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    return folder


def measure(options, case):
    shape, stage, tokens, checkpointing, prompts = case
    run_dir = options.work / "-".join([shape, stage, "checkpointing" if checkpointing else "plain"])
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    flag = str(checkpointing).lower()
    section = (SFT if stage == "sft" else GRPO).format(tokens=tokens, checkpointing=flag, prompts=prompts)
    text = RECIPE.format(run_dir=run_dir / "run", model=model(options.work, shape), stage=section, threads=options.threads)
    recipe = run_dir / "recipe.toml"
    recipe.write_text(text)
    sets = [word for change in options.set for word in ("--set", change)]
    for command in ("synth", stage):
        subprocess.run([options.binary, command, recipe, *sets], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return json.loads((run_dir / "run" / stage / "memory.json").read_text())


def mib(count):
    return f"{count / 2**20:,.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--bound", type=float, default=0.1, help="largest share by which a peak may differ")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--parts", action="store_true", help="print every part")
    parser.add_argument("--set", action="append", default=[], help="key of the recipe to set in every run")
    options = parser.parse_args()
    worst = 0.0
    print("| recipe | predicted, MiB | peak, MiB | predicted / peak |\n|---|---|---|---|")
    for case in CASES:
        name = f"{case[0]}, {case[1]}, {case[2]} tokens{', checkpointing' if case[3] else ''}"
        if options.only and options.only not in name:
            continue
        found = measure(options, case)
        ratio = found["predicted_bytes"] / found["peak_bytes"]
        worst = max(worst, abs(ratio - 1))
        print(f"| {name} | {mib(found['predicted_bytes'])} | {mib(found['peak_bytes'])} | {ratio:.2f} |", flush=True)
        if options.parts:
            for part in found["predicted"]["parts"]:
                print(f"    {part['name']:24} {mib(part['device_bytes']):>8} {part['when']}")
    sys.exit(worst > options.bound)


if __name__ == "__main__":
    main()
