#!/usr/bin/env python3
"""Measures how far runs with other numbers of ranks and threads come apart by rounding, and that it is no more than rounding.

    python3 scripts/reliability/rounding.py --binary target/release/asyncthink-train [--recipe recipes/quickstart/mcd.toml]

Sums over tokens are taken in another order with another number of ranks or threads, so a step's gradient differs in its last bits.
An update carries that into the weights, and the next step begins from there. At a learning rate that hardly moves the weights,
differences stay at that of one step: this is the check, and exit code 1 if a loss or a norm differs by more than 1e-5. At the recipe's
own rate they grow from step to step, as they do in any training; that is measured and asserted of nothing.
`sft` is run with 1 rank of 1 thread, to which 1 rank of 2 threads and 2 and 4 ranks are compared.
Prints one JSON object. Python 3 standard library only, Linux.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import runs

ROOT = Path(__file__).resolve().parents[2]
# Ranks and threads of each.
SHAPES = [(1, 1), (1, 2), (2, 1), (4, 1)]
SMALL_RATE = 1e-6
BOUND = 1e-5
FIGURES = ("loss", "grad_norm")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--recipe", type=Path, default=ROOT / "tests" / "tiny.toml")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--log", type=Path, default=Path("rounding.log"), help="output of the program")
    arguments = parser.parse_args()
    arguments.binary, arguments.recipe = arguments.binary.resolve(), arguments.recipe.resolve()
    with tempfile.TemporaryDirectory() as scratch, arguments.log.open("ab") as log:
        measured = {}
        for name, sets in (("1e-6", [f"sft.optimizer.learning_rate={SMALL_RATE}"]), ("the recipe's", [])):
            lines = {shape: metrics(arguments, Path(scratch) / name, shape, sets, log) for shape in SHAPES}
            expected = lines.pop(SHAPES[0])
            measured[name] = {
                f"{ranks} ranks, {threads} threads": {
                    figure: differences(expected, lines[ranks, threads], figure) for figure in FIGURES
                }
                for ranks, threads in lines
            }
    worst = max(figure["largest"] for shape in measured["1e-6"].values() for figure in shape.values())
    print(json.dumps({"steps": arguments.steps, "learning_rate": measured, "passed": worst < BOUND}, indent=2))
    sys.exit(0 if worst < BOUND else 1)


def metrics(arguments, folder, shape, sets, log):
    """The lines of a run of so many ranks and threads."""
    ranks, threads = shape
    run_dir = folder / f"{ranks}-{threads}"
    steps = [f"sft.num_steps={arguments.steps}", f"sft.save_every_steps={arguments.steps}", "sft.log_every_steps=1"]
    sets = [*steps, f"num_threads={threads}", *sets]
    for stage in ("synth", "sft"):
        command = runs.stage_command(stage, arguments.recipe, run_dir, sets)
        if stage == "sft" and ranks > 1:
            command = ["launch", "--standalone", f"--nproc-per-node={ranks}", "--", *command]
        runs.run([arguments.binary, *command], log)
    lines = (run_dir / "sft" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def differences(expected, found, figure):
    """Relative differences of a figure: the largest, and at some steps."""
    pairs = [(line[figure], other[figure]) for line, other in zip(expected, found, strict=True)]
    relative = [abs(a - b) / abs(a) for a, b in pairs]
    some = {step: float(f"{relative[step - 1]:.1e}") for step in (1, 2, 5, 10, 20, 50, 100) if step <= len(relative)}
    return {"largest": float(f"{max(relative):.1e}"), "at_step": some}


if __name__ == "__main__":
    main()
