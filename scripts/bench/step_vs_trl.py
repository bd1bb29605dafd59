#!/usr/bin/env python3
"""Compares `asyncthink-train bench step` with a step of TRL's `GRPOTrainer`: seconds of rollout, rewards and update.

    cargo build --locked --release -p asyncthink-cli
    python3 scripts/bench/step_vs_trl.py --shape nano --num-prompts 8 --group 8 --prompt-tokens 64 --new-tokens 128
    python3 scripts/bench/step_vs_trl.py --shape nano --prompt-tokens 512 --dtype bf16

Both start from the same weights, sample as many tokens after prompts of the same length (no end of sequence stops either), give
rewards that alternate within a group, and make one update without a reference model, with the same threads; they run in turns,
each step after one that warms up. TRL generates with `transformers` (vLLM needs a GPU), its fused AdamW, no gradient
checkpointing, `--micro-batch` episodes at a time; ours gets as many tokens in a micro-batch. bf16 is `bf16=True` there (autocast over
f32 weights). Prints one JSON object; `ratio` is their seconds over ours, of the medians. Needs `pip install torch==2.11.0
transformers==5.23.0 trl==1.16.0 safetensors`.
"""

import argparse
import contextlib
import json
import random
import statistics
import string
import sys
import tempfile
import time

import datasets
import torch
import transformers
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from our_training import add_arguments, make_model, run_bench

WARM_UP_STEPS = 1


class Clock(TrainerCallback):
    """Seconds of each step, from the end of the one before."""

    def __init__(self, device):
        self.device = device
        self.times = []

    def read(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def on_train_begin(self, *_arguments, **_more):
        self.read()

    def on_step_end(self, *_arguments, **_more):
        self.read()

    def seconds(self):
        return [end - start for start, end in zip(self.times, self.times[1:])]


def alternating(completions, completion_ids, **_more):
    """Rewards 0 and 1; also the place where lengths are checked."""
    alternating.lengths |= {len(ids) for ids in completion_ids}
    return [float(index % 2) for index in range(len(completions))]


def theirs(arguments, folder, generator):
    """Seconds of one step after the warm-up."""
    num_episodes = arguments.num_prompts * arguments.group
    num_steps = WARM_UP_STEPS + 1
    # One byte is a token of the folders that make_model.py writes.
    draw = lambda: "".join(generator.choice(string.ascii_letters) for _ in range(arguments.prompt_tokens))
    data = datasets.Dataset.from_dict({"prompt": [draw() for _ in range(arguments.num_prompts * num_steps)]})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = {len(tokenizer(row["prompt"])["input_ids"]) for row in data}
    if lengths != {arguments.prompt_tokens}:
        raise SystemExit(f"a letter is no token of `{folder}`: prompts have {sorted(lengths)} tokens; make the folder with make_model.py")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    accumulation = -(-num_episodes // arguments.micro_batch)
    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch, max_steps=num_steps, per_device_train_batch_size=num_episodes // accumulation,
            gradient_accumulation_steps=accumulation, steps_per_generation=accumulation, num_generations=arguments.group,
            max_completion_length=arguments.new_tokens, generation_kwargs={"min_new_tokens": arguments.new_tokens},
            temperature=1.0, beta=0.0, num_iterations=1, scale_rewards="none", learning_rate=1e-6, lr_scheduler_type="constant",
            optim="adamw_torch_fused", gradient_checkpointing=False, bf16=arguments.dtype == "bf16", use_cpu=arguments.device == "cpu",
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=arguments.seed,
        )
        clock = Clock(arguments.device)
        alternating.lengths = set()
        # It prints its metrics to standard output, which is for the result.
        with contextlib.redirect_stdout(sys.stderr):
            GRPOTrainer(model=model, reward_funcs=alternating, args=config, train_dataset=data, processing_class=tokenizer,
                        callbacks=[clock]).train()
    if alternating.lengths != {arguments.new_tokens}:
        raise SystemExit(f"completions have {sorted(alternating.lengths)} tokens, not {arguments.new_tokens}")
    return clock.seconds()[-1]


def compare(arguments, folder):
    generator = random.Random(arguments.seed)
    workload = {
        "num_prompts": arguments.num_prompts, "group_size": arguments.group, "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens, "num_repeats": 1,
        "micro_batch_tokens": arguments.micro_batch * (arguments.prompt_tokens + arguments.new_tokens),
    }
    seconds, lines = {"asyncthink": [], "trl": []}, []
    for _ in range(arguments.repeats):
        lines.append(run_bench("step", arguments, folder, workload))
        seconds["asyncthink"].append(lines[-1]["repeats"][0]["seconds"])
        seconds["trl"].append(theirs(arguments, folder, generator))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "shape": arguments.shape or str(arguments.model), "parameters": lines[0]["parameters"], "dtype": arguments.dtype,
        "device": torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu", "threads": arguments.threads,
        **workload, "num_repeats": arguments.repeats,
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "ratio": round(medians["trl"] / medians["asyncthink"], 3),
        "ours": {key: [line[key] for line in lines] for key in ("flops_share", "ceiling_tflops", "peak_bytes", "phases", "machine")},
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="episodes of each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=16, help="episodes in memory at a time; a divisor of all of a step")
    arguments = parser.parse_args()
    if (arguments.num_prompts * arguments.group) % arguments.micro_batch:
        parser.error("`--micro-batch` must divide the number of episodes")

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(compare(arguments, make_model(arguments, scratch, sys.executable)), indent=2))


if __name__ == "__main__":
    main()
