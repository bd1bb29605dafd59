#!/usr/bin/env python3
"""Writes small Qwen3 models made by `transformers`, with their log-probs, for `crates/model/tests/transformers.rs`.

Needs `pip install torch==2.11.0 transformers`. Called with `--check DIR ...` it instead loads model folders that this
project saved, reports keys that did not fit, and prints the log-probs of a fixed sequence as JSON.
"""

import argparse
import json
import pathlib
import warnings

import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/model/tests/golden"
SHAPES = {
    # Head dimension unlike hidden / heads, one key-value head, tied.
    "tied_one_kv_head": dict(hidden_size=24, num_attention_heads=4, num_key_value_heads=1, head_dim=10,
                             intermediate_size=20, num_hidden_layers=2, tie_word_embeddings=True, rope_theta=10000.0),
    # Odd sizes, grouped heads, untied, another rotary base.
    "untied_grouped": dict(hidden_size=18, num_attention_heads=6, num_key_value_heads=2, head_dim=4,
                           intermediate_size=33, num_hidden_layers=3, tie_word_embeddings=False, rope_theta=1000000.0),
}


def sequence(vocab_size):
    return [(7 * index * index + 3 * index + 1) % vocab_size for index in range(21)]


@torch.no_grad()
def logprobs(model):
    ids = torch.tensor([sequence(model.config.vocab_size)])
    scores = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
    return scores[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()


def write():
    for number, (name, shape) in enumerate(SHAPES.items()):
        torch.manual_seed(number)
        rope_theta = shape.pop("rope_theta")
        config = Qwen3Config(vocab_size=37, max_position_embeddings=128, eos_token_id=0, bos_token_id=None,
                             initializer_range=0.4, **shape)
        config.rope_parameters = {"rope_type": "default", "rope_theta": rope_theta}
        model = Qwen3ForCausalLM(config).eval()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("norm.weight"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        folder = OUT / name
        model.save_pretrained(folder)
        expected = {"made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
                    "ids": sequence(config.vocab_size), "logprobs": logprobs(model)}
        (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def check(folders):
    for folder in folders:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        unfit = {key: sorted(map(str, value)) for key, value in info.items() if value}
        print(json.dumps({"folder": folder, "unfit": unfit, "warnings": [str(w.message) for w in caught],
                          "logprobs": logprobs(model.eval())}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", nargs="+", metavar="DIR")
    arguments = parser.parse_args()
    check(arguments.check) if arguments.check else write()
