#!/usr/bin/env python3
"""Writes log-probs that `transformers` computes for model folders whose files contradict each other or hold more than the
model needs, for `crates/model/tests/foreign_folders.rs`.

Needs `pip install torch==2.11.0 transformers==5.23.0`. Weights are a formula of name and index (`family_logits.weight`), so
the golden file holds configurations, names, shapes and results only.
"""

import json
import logging
import pathlib
import tempfile

import torch
import transformers
from family_logits import CONFIGS, WIDTHS, model_of, sequence, weight
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/model/tests/golden/foreign_folders.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def shapes(config):
    """Name and shape of every tensor that the model saves; each has the values of its own name."""
    return {name: {"shape": list(parameter.shape), "values_of": name}
            for name, parameter in model_of(config, torch.float32).named_parameters()}


def case(config, change=lambda tensors: None, **more_files):
    tensors = shapes(config)
    change(tensors)
    return {"config": config, "files": {SINGLE: tensors, **more_files}, "index": {}}


def add(name, shape, values_of=None):
    return lambda tensors: tensors.update({name: {"shape": shape, "values_of": values_of or name}})


def head_only(tensors):
    tensors[HEAD] = {**tensors.pop(EMBEDDING), "values_of": HEAD}


def cases():
    tied, untied = CONFIGS["qwen3_plain"], CONFIGS["llama_plain"]
    table = [tied["vocab_size"], tied["hidden_size"]]
    both = case(tied)
    # Shards of an older state of the model, whose index is still there.
    old = {name: {**tensor, "values_of": f"old.{name}"} for name, tensor in shapes(tied).items()}
    stale = case(tied, **{"model-00001-of-00001.safetensors": old})
    stale["index"] = {name: "model-00001-of-00001.safetensors" for name in old}
    gone = case(tied)
    gone["index"] = {name: "model-00001-of-00009.safetensors" for name in both["files"][SINGLE]}
    yarn = {**CONFIGS["llama_yarn"], "rope_scaling": dict(type="yarn", factor=4.0, original_max_position_embeddings=16,
                                                          attn_factor=1.7)}
    return {
        "tied_head_differs": case(tied, add(HEAD, table)),
        "tied_head_equal": case(tied, add(HEAD, table, EMBEDDING)),
        "tied_head_alone": case(tied, head_only),
        "stale_shards": stale,
        "shards_gone": gone,
        "inv_freq": case(untied, add("model.layers.1.self_attn.rotary_emb.inv_freq", [4])),
        "surplus_tensor": case(untied, add("model.layers.0.self_attn.q_proj.bias", [24])),
        "yarn_attn_factor": case(yarn),
    }


class Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


@torch.no_grad()
def results(content):
    width = WIDTHS[torch.float32]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps(content["config"]))
        for file, tensors in content["files"].items():
            values = {name: weight(it["values_of"], it["shape"], width) for name, it in tensors.items()}
            save_file(values, folder / file, metadata={"format": "pt"})
        if content["index"]:
            (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": content["index"]}))
        caught = Warnings()
        logger = logging.getLogger("transformers")
        logger.addHandler(caught)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        logger.removeHandler(caught)
    ids = torch.tensor(sequence(content["config"]["vocab_size"]))
    scores = torch.log_softmax(model(ids[None]).logits[0].double(), dim=-1)
    return {"logprobs": [round(value, 7) for value in scores[:-1].gather(1, ids[1:, None])[:, 0].tolist()],
            "is_tied": model.lm_head.weight is model.model.embed_tokens.weight,
            "warns": bool(caught.texts)}


if __name__ == "__main__":
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    content = {name: {**it, **results(it)} for name, it in cases().items()}
    OUT.write_text(json.dumps({"made_with": versions, "ids": sequence(37), "cases": content}) + "\n")
    for name, it in content.items():
        print(name, it["is_tied"], it["warns"])
