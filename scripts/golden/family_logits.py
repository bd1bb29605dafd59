#!/usr/bin/env python3
"""Writes log-probs that `transformers` computes for small models of every family and rope form, for
`crates/model/tests/families.rs`.

Needs `pip install torch==2.11.0 transformers==5.23.0`. Weights are a formula of name and index (`weight`), so the golden
file holds configurations and results only. With `--check DIR ...` it instead loads model folders that this project saved
with `AutoModelForCausalLM`, reports what does not fit, and compares every tensor with the file's, bit for bit.
"""

import argparse
import json
import pathlib
import warnings
import zlib

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/families.json"
NUM_TOKENS = 40
NUM_BF16_POSITIONS = 8
# Large weights make every slip visible; in bfloat16 they would make rounding as visible.
WIDTHS = {torch.float32: 1.2, torch.bfloat16: 0.25}

LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(factor=4.0, original_max_position_embeddings=16)


def sizes(model_type, hidden, heads, kv_heads, inner, layers, tied, **more):
    return dict(model_type=model_type, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
                intermediate_size=inner, num_hidden_layers=layers, tie_word_embeddings=tied, vocab_size=37,
                max_position_embeddings=128, hidden_act="silu", rms_norm_eps=1e-6, eos_token_id=0, bos_token_id=None,
                pad_token_id=None, **more)


# Both spellings of rope occur with every form.
CONFIGS = {
    "qwen3_plain": sizes("qwen3", 24, 4, 1, 20, 2, True, head_dim=10, rope_theta=10000.0),
    "qwen3_bias_yarn": sizes("qwen3", 18, 6, 2, 33, 2, False, head_dim=8, attention_bias=True,
                             rope_parameters=dict(rope_type="yarn", rope_theta=1000000.0, **YARN)),
    "qwen3_linear": sizes("qwen3", 20, 2, 2, 12, 1, True, head_dim=6, rope_theta=5000.0,
                          rope_scaling=dict(type="linear", factor=2.5)),
    "qwen2_plain": sizes("qwen2", 24, 4, 2, 28, 2, True, rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
    "qwen2_yarn_mscale": sizes("qwen2", 16, 2, 1, 21, 2, False, rope_theta=10000.0,
                               rope_scaling=dict(rope_type="yarn", mscale=0.7, mscale_all_dim=1.3, beta_fast=16,
                                                 beta_slow=2, **YARN)),
    "qwen2_linear": sizes("qwen2", 20, 5, 1, 15, 1, False,
                          rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=20000.0)),
    "llama_plain": sizes("llama", 24, 3, 3, 25, 2, False, rope_theta=10000.0),
    # A small base, so that there are long, short and blended waves.
    "llama_llama3": sizes("llama", 32, 4, 2, 40, 2, True, head_dim=16, rope_theta=100.0,
                          rope_scaling=dict(rope_type="llama3", **LLAMA3)),
    "llama_all_biases": sizes("llama", 16, 4, 1, 18, 2, False, head_dim=6, attention_bias=True, mlp_bias=True,
                              rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, **LLAMA3)),
    "llama_yarn": sizes("llama", 24, 2, 1, 30, 1, False, rope_theta=10000.0,
                        rope_scaling=dict(rope_type="yarn", attention_factor=1.2, truncate=False, beta_fast=1,
                                          beta_slow=0.05, **YARN)),
}


def weight(name, shape, width):
    """Uniform noise of a width (norms: around 1), a multiplicative hash of index and name."""
    count = int(torch.tensor(shape).prod())
    index = torch.arange(count, dtype=torch.int64) + zlib.crc32(name.encode())
    mixed = (index * 2654435761) % 2**32
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) % 2**32
    noise = (mixed.double() / 2**32 - 0.5) * width
    return ((1.0 + noise) if name.endswith("norm.weight") else noise).float().reshape(shape)


def sequence(vocab_size):
    return [(7 * index * index + 3 * index + 1) % vocab_size for index in range(NUM_TOKENS)]


def model_of(config, dtype):
    # As a file: the spellings of old and new configurations go through the same reader as a user's.
    config = dict(config)
    parsed = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForCausalLM.from_config(parsed, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weight(name, parameter.shape, WIDTHS[dtype]))
    return model.to(dtype)


@torch.no_grad()
def logits(config, dtype):
    return model_of(config, dtype)(torch.tensor([sequence(config["vocab_size"])])).logits[0].double()


def write():
    cases = {}
    for name, config in CONFIGS.items():
        ids = torch.tensor(sequence(config["vocab_size"]))
        scores = torch.log_softmax(logits(config, torch.float32), dim=-1)
        cases[name] = {
            "config": config,
            "logprobs": [round(value, 7) for value in scores[:-1].gather(1, ids[1:, None])[:, 0].tolist()],
            "bf16_logits": [[round(value, 4) for value in row]
                            for row in logits(config, torch.bfloat16)[-NUM_BF16_POSITIONS:].tolist()],
        }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    OUT.write_text(json.dumps({"made_with": versions, "ids": sequence(37), "cases": cases}) + "\n")


def check(folders):
    for folder in map(pathlib.Path, folders):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
        stored = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
        loaded = dict(model.named_parameters())
        different = [name for name, tensor in stored.items() if not torch.equal(tensor, loaded[name])]
        unfit = {key: sorted(map(str, value)) for key, value in info.items() if value}
        print(json.dumps({"folder": str(folder), "num_tensors": len(stored), "different": different, "unfit": unfit,
                          "warnings": [str(warning.message) for warning in caught]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", nargs="+", metavar="DIR")
    arguments = parser.parse_args()
    check(arguments.check) if arguments.check else write()
