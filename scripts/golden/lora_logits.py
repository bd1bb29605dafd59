#!/usr/bin/env python3
"""Writes log-probs that PEFT computes for small models with adapters, for `crates/model/tests/adapters.rs`.

Needs `pip install torch==2.11.0 transformers==5.23.0 peft==0.18.0`. Weights of models and adapters are a formula of name and
index (`family_logits.weight`), so the golden file holds configurations and results only. With `--check DIR --binary BIN` it
instead loads an adapter folder that this project saved with PEFT and compares its log-probs with those of `BIN score`.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import warnings

import peft
import torch
import transformers
from family_logits import CONFIGS, model_of, sequence, weight
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/model/tests/golden/lora.json"
ADAPTER_WIDTH = 0.6

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Base model and options by name.
ADAPTERS = {
    "qwen3_plain": ("qwen3_plain", dict(r=4, lora_alpha=8, target_modules=ALL)),
    "qwen2_plain": ("qwen2_plain", dict(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], use_rslora=True)),
    "llama_all_biases": ("llama_all_biases", dict(r=1, lora_alpha=2, target_modules=["k_proj", "o_proj", "down_proj"])),
    "all_linear": ("llama_plain", dict(r=2, lora_alpha=4, target_modules="all-linear")),
    "expression": ("qwen3_plain", dict(
        r=2, lora_alpha=4, target_modules=r"model\.layers\.\d+\.(self_attn\.[qk]_proj|mlp\.up_proj)")),
    "expression_of_one_layer": ("qwen3_plain", dict(r=2, lora_alpha=4, target_modules=r".*\.1\..*_proj",
                                                    exclude_modules=r".*(gate|up)_proj")),
    "paths": ("llama_plain", dict(r=2, lora_alpha=4, exclude_modules=["0.mlp.down_proj"], target_modules=[
        "1.self_attn.k_proj", "mlp.down_proj", "model.layers.0.self_attn.o_proj"])),
    "some_layers": ("qwen2_plain", dict(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"], layers_to_transform=[1])),
    "a_layer_by_pattern": ("qwen2_plain", dict(r=2, lora_alpha=4, target_modules=["v_proj"], layers_to_transform=[0],
                                               layers_pattern="layers")),
}


def logprobs(model, ids):
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    return scores[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]


def case(base, options):
    """The adapters go through PEFT's own files, so that names and configuration are what it writes."""
    config = CONFIGS[base]
    with tempfile.TemporaryDirectory() as folder:
        adapted = get_peft_model(model_of(config, torch.float32), LoraConfig(task_type="CAUSAL_LM", **options))
        adapted.save_pretrained(folder)
        path = pathlib.Path(folder) / "adapter_model.safetensors"
        tensors = {key: weight(key, value.shape, ADAPTER_WIDTH) for key, value in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        model = PeftModel.from_pretrained(model_of(config, torch.float32), folder).eval()
        written = json.loads((pathlib.Path(folder) / "adapter_config.json").read_text())
    for key in ["target_modules", "exclude_modules"]:
        if isinstance(written[key], list):
            written[key] = sorted(written[key])
    return {
        "config": config,
        "adapter_config": written,
        "shapes": {key: list(value.shape) for key, value in sorted(tensors.items())},
        "logprobs": [round(value, 7) for value in logprobs(model, sequence(config["vocab_size"])).tolist()],
    }


def write():
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    content = {"made_with": versions, "ids": sequence(37), "adapter_width": ADAPTER_WIDTH,
               "cases": {name: case(*adapter) for name, adapter in ADAPTERS.items()}}
    OUT.write_text(json.dumps(content) + "\n")


def check(folder, binary):
    folder = pathlib.Path(folder)
    base_folder = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, folder).eval()
    ids = sequence(base.config.vocab_size)
    expected = logprobs(model, ids)
    line = json.dumps({"id": 0, "input_ids": ids})
    answer = subprocess.run([binary, "score", "--model", str(folder), "--device", "cpu", "-"], input=line, text=True,
                            stdout=subprocess.PIPE, check=True)
    ours = torch.tensor(json.loads(answer.stdout)["logprobs"], dtype=torch.float64)
    with torch.no_grad(), model.disable_adapter():
        effect = (logprobs(model, ids) - expected).abs().max().item()
    print(json.dumps({"folder": str(folder), "max_abs_difference": (ours - expected).abs().max().item(),
                      "effect_of_adapters": effect, "warnings": [str(warning.message) for warning in caught]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", metavar="DIR")
    parser.add_argument("--binary", metavar="BIN", default="target/release/asyncthink-train")
    arguments = parser.parse_args()
    check(arguments.check, arguments.binary) if arguments.check else write()
