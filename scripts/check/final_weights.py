#!/usr/bin/env python3
"""Loads the copy of a finished model in bf16 (`final_dtype`) with `transformers` and compares it with the exact checkpoint.

    python3 scripts/check/final_weights.py runs/quickstart/grpo/checkpoints/latest

Every weight of the copy must be the checkpoint's, rounded once; of a checkpoint with adapters, that of `merged/` where it has
one. Prints one JSON object with the largest difference of next-token log-probs, and fails unless the weights are the same and the
distributions have a cosine above 0.9999. Needs `pip install torch==2.11.0 transformers==5.23.0`.
"""

import argparse
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

NUM_TOKENS = 64


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@torch.inference_mode()
def logits(model, ids):
    return model(ids).logits[0].double()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    arguments = parser.parse_args()
    merged = arguments.checkpoint / "merged"
    exact, rounded = load(merged if merged.is_dir() else arguments.checkpoint), load(arguments.checkpoint / "bf16")
    expected, found = exact.state_dict(), rounded.state_dict()
    wrong = sorted(name for name in expected.keys() | found.keys()
                   if name not in expected or name not in found or not torch.equal(expected[name].to(torch.bfloat16), found[name]))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(exact.config.vocab_size, (1, NUM_TOKENS), generator=generator)
    one, other = logits(exact, ids), logits(rounded, ids)
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=-1).min().item()
    difference = (one.log_softmax(-1) - other.log_softmax(-1)).abs().max().item()
    print(json.dumps({"dtype": str(rounded.dtype), "tensors": len(found), "wrong": wrong, "least_cosine": cosine,
                      "largest_logprob_difference": difference}))
    if wrong or rounded.dtype != torch.bfloat16 or cosine <= 0.9999:
        sys.exit(1)


if __name__ == "__main__":
    main()
