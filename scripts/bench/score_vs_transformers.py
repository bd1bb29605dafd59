#!/usr/bin/env python3
"""Compares `asyncthink-train score` with the same computation in `transformers`: speed, memory while loading, results.

    cargo build --locked --release -p asyncthink-cli
    python3 scripts/bench/make_model.py --shape qwen3-0.6b --out models/random-0.6b
    python3 scripts/bench/score_vs_transformers.py --model models/random-0.6b --num-sequences 16 --length 256 --threads 2

Both score the same random sequences on the CPU, in turns, so that a machine whose clock varies slows both down. Times are of
scoring alone: reading lines, loading the model and writing results are outside. `transformers` gets batches of the same
number of tokens, sorted by length, with `sdpa` attention, and the head in chunks, so that it never holds logits of a whole
batch. Prints one JSON object; `ratio` is our tokens per second over theirs, of the medians. Needs
`pip install torch==2.11.0 transformers==5.23.0`.
"""

import argparse
import json
import pathlib
import random
import re
import resource
import statistics
import subprocess
import tempfile
import time

import torch
import transformers
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def sequences(arguments, vocab_size):
    draw = random.Random(arguments.seed)
    lengths = [draw.randint(arguments.min_length or arguments.length, arguments.length)
               for _ in range(arguments.num_sequences)]
    return [[draw.randrange(vocab_size) for _ in range(length)] for length in lengths]


def ours(arguments, lines):
    command = [arguments.binary, "score", "--model", arguments.model, "--device", "cpu", "--dtype", arguments.dtype,
               "--batch-tokens", arguments.batch_tokens, "--num-threads", arguments.threads, "--verbose", lines]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(run.stderr)
    report = dict(re.findall(r"(\w+)=(\S+)", run.stderr.strip().splitlines()[-1]))
    answers = [json.loads(line)["logprobs"] for line in run.stdout.splitlines()]
    return answers, {name: float(value) for name, value in report.items()}


def batches(sequences, batch_tokens):
    """Indices of batches of at most `batch_tokens` tokens with their padding, longest sequences first."""
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    while order:
        size = max(1, batch_tokens // len(sequences[order[0]]))
        yield order[:size]
        order = order[size:]


@torch.inference_mode()
def theirs(model, sequences, batch_tokens, chunk_tokens):
    answers = [None] * len(sequences)
    for members in batches(sequences, batch_tokens):
        width = len(sequences[members[0]])
        lengths = torch.tensor([len(sequences[index]) for index in members])
        ids = torch.tensor([sequences[index] + [0] * (width - len(sequences[index])) for index in members])
        is_token = torch.arange(width)[None] < lengths[:, None]
        mask = None if bool(is_token.all()) else is_token.long()
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        is_scored = is_token[:, 1:]
        hidden, targets = hidden[:, :-1][is_scored], ids[:, 1:][is_scored]
        parts = [
            torch.log_softmax(model.lm_head(hidden_chunk).float(), dim=-1).gather(-1, target_chunk[:, None])[:, 0]
            for hidden_chunk, target_chunk in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens))
        ]
        for index, logprobs in zip(members, torch.cat(parts).split((lengths - 1).tolist())):
            answers[index] = logprobs.tolist()
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--num-sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--min-length", type=int, help="draw lengths from here to --length; default: all are equal")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--chunk-tokens", type=int, default=512, help="tokens of a chunk of the head in `transformers`")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/asyncthink-train")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    before = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=DTYPES[arguments.dtype], attn_implementation="sdpa").eval()
    load_seconds = time.perf_counter() - before
    # Kilobytes on Linux; the interpreter and its libraries are in it.
    load_peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    ids = sequences(arguments, model.config.vocab_size)
    num_tokens = sum(map(len, ids))
    rates = {"asyncthink": [], "transformers": []}
    difference = 0.0
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder) / "ids.jsonl"
        lines.write_text("".join(json.dumps({"id": index, "input_ids": row}) + "\n" for index, row in enumerate(ids)))
        theirs(model, ids[:2], arguments.batch_tokens, arguments.chunk_tokens)  # warm-up
        for _ in range(arguments.repeats):
            our_answers, report = ours(arguments, lines)
            rates["asyncthink"].append(report["tokens_per_second"])
            before = time.perf_counter()
            their_answers = theirs(model, ids, arguments.batch_tokens, arguments.chunk_tokens)
            rates["transformers"].append(num_tokens / (time.perf_counter() - before))
            pairs = [(a, b) for ours_, theirs_ in zip(our_answers, their_answers, strict=True)
                     for a, b in zip(ours_, theirs_, strict=True)]
            difference = max([difference, *(abs(a - b) for a, b in pairs)])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(json.dumps({
        "model": str(arguments.model), "dtype": arguments.dtype, "threads": arguments.threads,
        "num_sequences": len(ids), "num_tokens": num_tokens, "longest": max(map(len, ids)),
        "batch_tokens": arguments.batch_tokens, "repeats": arguments.repeats,
        "tokens_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "ratio": round(medians["asyncthink"] / medians["transformers"], 3),
        "max_abs_difference": difference,
        "load_seconds": {"asyncthink": report["load_seconds"], "transformers": round(load_seconds, 3)},
        "load_peak_mib": {"asyncthink": report["load_peak_mib"], "transformers": round(load_peak_mib, 1)},
        "weights_mib": round(sum(file.stat().st_size for file in arguments.model.glob("*.safetensors")) / 2**20, 1),
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
    }, indent=2))


if __name__ == "__main__":
    main()
