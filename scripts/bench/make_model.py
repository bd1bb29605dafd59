#!/usr/bin/env python3
"""Makes a Hugging Face model folder with random weights, for benchmarks and tests that need a model's shape and not its mind.

    python3 scripts/bench/make_model.py --shape qwen3-0.6b --out models/random-0.6b

The tokenizer is byte-level BPE without merges: one token per byte, ChatML's special tokens and a chat template. Nothing is
fetched. Needs `pip install torch==2.11.0 safetensors`.
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

SHAPES = {
    # As in the recipes of these names in `recipes/bench/`.
    "nano": dict(hidden_size=192, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
                 intermediate_size=512, vocab_size=512, max_position_embeddings=1024, rope_theta=10000),
    "small": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4, head_dim=64,
                  intermediate_size=2048, vocab_size=16384, max_position_embeddings=2048, rope_theta=10000),
    # As published, `config.json` of HuggingFaceTB/SmolLM2-135M.
    "smollm2-135m": dict(family="llama", hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                         head_dim=64, intermediate_size=1536, vocab_size=49152, max_position_embeddings=8192,
                         rope_theta=100000),
    # As published, `config.json` of Qwen/Qwen3-0.6B.
    "qwen3-0.6b": dict(hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
                       intermediate_size=3072, vocab_size=151936, max_position_embeddings=40960, rope_theta=1000000),
    # As published, `config.json` of Qwen/Qwen3-4B.
    "qwen3-4b": dict(hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                     intermediate_size=9728, vocab_size=151936, max_position_embeddings=40960, rope_theta=1000000),
    "tiny": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                 intermediate_size=128, vocab_size=512, max_position_embeddings=2048, rope_theta=1000000),
}
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
END_OF_TEXT, TURN_START, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_BYTES = 256
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def special_id(token):
    return NUM_BYTES + SPECIAL.index(token)


FAMILIES = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-06},
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-05, "mlp_bias": False},
}


def config(shape, dtype):
    shape = dict(SHAPES[shape])
    return {
        **FAMILIES[shape.pop("family", "qwen3")], **shape, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": special_id(END_OF_TEXT), "eos_token_id": special_id(TURN_END), "initializer_range": 0.02,
        "rope_scaling": None, "sliding_window": None, "use_sliding_window": False, "use_cache": True,
        "torch_dtype": str(DTYPES[dtype]).removeprefix("torch."),
    }


def weights(config, dtype, seed, device):
    """Normal with a deviation of 0.02, norms at one; tensor by tensor, so that equal seeds on one device give equal files."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key_value = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    layer = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden), "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    draw = lambda shape: torch.empty(shape, device=device).normal_(0, 0.02, generator=generator)
    return {name: (torch.ones(shape) if len(shape) == 1 else draw(shape)).to(dtype).cpu() for name, shape in shapes.items()}


def byte_alphabet():
    """GPT-2's table: printable bytes stand for themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + rank) for rank, byte in enumerate(others)}
    return [table[byte] for byte in range(NUM_BYTES)]


def tokenizer():
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": special_id(token), "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for token in SPECIAL],
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {character: byte for byte, character in enumerate(byte_alphabet())}, "merges": []},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where the weights are drawn; a GPU takes seconds for billions")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = config(arguments.shape, arguments.dtype)
    files = {
        "config.json": model,
        "generation_config.json": {"do_sample": True, "eos_token_id": [special_id(TURN_END), special_id(END_OF_TEXT)],
                                   "pad_token_id": special_id(END_OF_TEXT), "temperature": 0.6, "top_k": 20, "top_p": 0.95},
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": TURN_END,
                                  "pad_token": END_OF_TEXT, "clean_up_tokenization_spaces": False,
                                  "model_max_length": model["max_position_embeddings"], "chat_template": CHAT_TEMPLATE},
    }
    for name, content in files.items():
        (arguments.out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    tensors = weights(model, DTYPES[arguments.dtype], arguments.seed, arguments.device)
    save_file(tensors, arguments.out / "model.safetensors", metadata={"format": "pt"})
    print(json.dumps({"folder": str(arguments.out), "parameters": sum(tensor.numel() for tensor in tensors.values())}))


if __name__ == "__main__":
    main()
