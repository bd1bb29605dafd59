#!/usr/bin/env python3
"""Compares `asyncthink-train bench train` with `transformers` and PyTorch's fused AdamW: tokens of an update per second.

    cargo build --locked --release -p asyncthink-cli
    python3 scripts/bench/train_vs_transformers.py --shape nano --num-rows 64 --micro-batch-tokens 4096
    python3 scripts/bench/train_vs_transformers.py --shape small --num-rows 16 --micro-batch-tokens 2048 --dtype bf16

An update is the gradient of all rows of random tokens, clipping, `torch.optim.AdamW(fused=True)`. Both get rows of the same
distribution of lengths, the same weights and threads, and run in turns, so that a machine whose clock varies slows both down;
each has warmed up. `transformers` gets micro-batches of at most the same number of tokens in both of its ways, and the faster
one counts: `padded`, rows of similar length filled up to the longest, or `packed`, rows end to end with positions that begin
anew, which `sdpa` separates by a mask. bf16 is autocast over f32 weights. Prints one JSON object; `ratio` is our tokens per
second over theirs, of the medians. Needs `pip install torch==2.11.0 transformers==5.23.0 safetensors`.
"""

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time

import torch
import transformers
from transformers import AutoModelForCausalLM

from our_training import add_arguments, make_model, run_bench

IGNORED = -100


def draw_rows(arguments, vocab_size, generator):
    """Ids of each row, and how many of the first are not trained."""
    least, most = arguments.row_tokens
    lengths = [generator.randint(least, most) for _ in range(arguments.num_rows)]
    rows = []
    for length in lengths:
        ids = torch.tensor([generator.randrange(vocab_size) for _ in range(length)])
        rows.append((ids, min(max(1, length - round(length * arguments.trained_share)), length - 1)))
    return rows


def micro_batches(rows, way, budget):
    """Rows by length, cut where a micro-batch would hold more than `budget` tokens, padding included."""
    batch, batches = [], []
    for row in sorted(rows, key=lambda row: -len(row[0])):
        grown = batch + [row]
        tokens = len(grown) * len(grown[0][0]) if way == "padded" else sum(len(ids) for ids, _ in grown)
        if batch and tokens > budget:
            batches.append(batch)
            grown = [row]
        batch = grown
    return batches + [batch]


def inputs(batch, way, device):
    labels = [torch.cat([torch.full((prompt,), IGNORED), ids[prompt:]]) for ids, prompt in batch]
    if way == "packed":
        positions = torch.cat([torch.arange(len(ids)) for ids, _ in batch])
        tensors = {"input_ids": torch.cat([ids for ids, _ in batch]), "labels": torch.cat(labels), "position_ids": positions}
        tensors = {name: tensor[None] for name, tensor in tensors.items()}
    else:
        pad = lambda tensors, value: torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
        mask = pad([torch.ones_like(ids) for ids, _ in batch], 0)
        tensors = {"input_ids": pad([ids for ids, _ in batch], 0), "labels": pad(labels, IGNORED), "attention_mask": mask}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def update(model, optimizer, rows, way, arguments):
    """Seconds of one update."""
    synchronize = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    autocast = lambda: torch.autocast(arguments.device, torch.bfloat16) if arguments.dtype == "bf16" else contextlib.nullcontext()
    num_trained = torch.tensor(sum(len(ids) - prompt for ids, prompt in rows), device=arguments.device)
    before = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    for batch in micro_batches(rows, way, arguments.micro_batch_tokens):
        with autocast():
            loss = model(**inputs(batch, way, arguments.device), use_cache=False, num_items_in_batch=num_trained).loss
        loss.backward()
    if arguments.optimizer:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    synchronize()
    return time.perf_counter() - before


def compare(arguments, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(arguments.device)
    model.train()
    if arguments.activation_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    generator = random.Random(arguments.seed)
    ways = ["padded", "packed"] if arguments.way == "both" else [arguments.way]
    rates = {"asyncthink": [], **{way: [] for way in ways}}
    draw = lambda: draw_rows(arguments, model.config.vocab_size, generator)
    workload = {
        "num_rows": arguments.num_rows, "row_tokens": arguments.row_tokens, "trained_share": arguments.trained_share,
        "micro_batch_tokens": arguments.micro_batch_tokens, "optimizer": arguments.optimizer,
        "activation_checkpointing": arguments.activation_checkpointing, "num_repeats": 1,
    }
    for way in ways:
        update(model, optimizer, draw(), way, arguments)  # warm-up
    lines = []
    for _ in range(arguments.repeats):
        lines.append(run_bench("train", arguments, folder, workload))
        rates["asyncthink"].append(lines[-1]["tokens_per_s"])
        for way in ways:
            rows = draw()
            rates[way].append(sum(len(ids) for ids, _ in rows) / update(model, optimizer, rows, way, arguments))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "shape": arguments.shape or str(arguments.model), "parameters": lines[0]["parameters"], "dtype": arguments.dtype,
        "device": torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu", "threads": arguments.threads,
        **workload, "num_repeats": arguments.repeats,
        "tokens_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "ratio": round(medians["asyncthink"] / max(medians[way] for way in ways), 3),
        "ours": {key: [line[key] for line in lines] for key in ("flops_share", "ceiling_tflops", "peak_bytes", "phases", "machine")},
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--num-rows", type=int, default=64)
    parser.add_argument("--row-tokens", type=int, nargs=2, default=[154, 512], metavar=("LEAST", "MOST"))
    parser.add_argument("--trained-share", type=float, default=1.0)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--optimizer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--way", choices=["both", "padded", "packed"], default="both", help="micro-batches of transformers")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(compare(arguments, make_model(arguments, scratch, sys.executable)), indent=2))


if __name__ == "__main__":
    main()
