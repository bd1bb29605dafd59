#!/usr/bin/env python3
"""Compares `asyncthink-train bench rollout` with `generate` of `transformers`: decoded tokens per second on one machine.

    cargo build --locked --release -p asyncthink-cli
    python3 scripts/bench/rollout_vs_transformers.py --shape nano --num-prompts 20 --group 10 --prompt-tokens 32 --new-tokens 128
    python3 scripts/bench/rollout_vs_transformers.py --model models/smollm2-135m --num-prompts 8 --new-tokens 64 --threads 2

Both decode the same number of tokens after prompts of the same length, from the same folder of weights, in turns, so that a
machine whose clock varies slows both down. No end of sequence stops either. Times are of prefill and decoding; loading is
outside, and each has warmed up. `transformers` gets all sequences as one batch, `sdpa` attention and its default cache. With
`--group G` the prompts of G sequences are equal, and ours computes them once; `--no-share-prompts` makes all prompts differ.
Prints one JSON object; `ratio` is our tokens per second over theirs, of the medians. `--device cuda` runs both on the first
GPU. Needs `pip install torch==2.11.0 transformers==5.23.0`.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import transformers
from transformers import AutoModelForCausalLM

from our_rollout import BINARY, ROOT, run_rollout

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@torch.inference_mode()
def theirs(model, arguments, prompts, new_tokens):
    """Seconds of one `generate`."""
    sampling = {"do_sample": False}
    if arguments.temperature > 0:
        sampling = {"do_sample": True, "temperature": arguments.temperature, "top_k": 0, "top_p": 1.0}
    before = time.perf_counter()
    answer = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new_tokens, use_cache=True,
                            pad_token_id=0, eos_token_id=None, **sampling)
    if prompts.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - before
    if answer.shape[1] != prompts.shape[1] + new_tokens:
        raise SystemExit(f"`generate` gave {answer.shape[1] - prompts.shape[1]} tokens, not {new_tokens}")
    return seconds


def load(arguments, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[arguments.dtype], attn_implementation="sdpa").eval()
    # The folder's own settings would end sequences and cut distributions.
    model.generation_config = transformers.GenerationConfig()
    return model.to(arguments.device)


def compare(arguments, folder):
    model = load(arguments, folder)
    generator = torch.Generator().manual_seed(arguments.seed)
    size = (arguments.num_prompts, arguments.prompt_tokens)
    draw = lambda: torch.randint(model.config.vocab_size, size, generator=generator).repeat_interleave(arguments.group, 0)
    num_tokens = arguments.num_prompts * arguments.group * arguments.new_tokens
    rates, lines = {"asyncthink": [], "transformers": []}, []
    theirs(model, arguments, draw().to(arguments.device), min(8, arguments.new_tokens))  # warm-up
    for _ in range(arguments.repeats):
        lines.append(run_rollout(arguments, folder))
        rates["asyncthink"].append(lines[-1]["tokens_per_s"])
        rates["transformers"].append(num_tokens / theirs(model, arguments, draw().to(arguments.device), arguments.new_tokens))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "shape": arguments.shape or str(arguments.model), "parameters": lines[0]["parameters"], "dtype": arguments.dtype,
        "device": torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu", "threads": arguments.threads,
        "num_prompts": arguments.num_prompts, "group": arguments.group, "share_prompts": arguments.share_prompts,
        "prompt_tokens": arguments.prompt_tokens, "new_tokens": arguments.new_tokens, "temperature": arguments.temperature,
        "repeats": arguments.repeats,
        "tokens_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "ratio": round(medians["asyncthink"] / medians["transformers"], 3),
        "ours": {key: [line[key] for line in lines] for key in ("flops_share", "bandwidth_share", "ceiling_tflops")},
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=pathlib.Path, metavar="DIR")
    model.add_argument("--shape", help="random weights of a shape of make_model.py")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=1, help="sequences of each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--share-prompts", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further keys of our recipe")
    parser.add_argument("--binary", type=pathlib.Path, default=BINARY)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model
        if folder is None:
            folder = pathlib.Path(scratch) / arguments.shape
            command = [sys.executable, str(ROOT / "scripts/bench/make_model.py"), "--shape", arguments.shape,
                       "--dtype", arguments.dtype, "--device", arguments.device, "--out", str(folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(json.dumps(compare(arguments, folder), indent=2))


if __name__ == "__main__":
    main()
