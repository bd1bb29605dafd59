#!/usr/bin/env python3
"""Converts a Hugging Face folder of the Llama or Qwen3 architecture to GGUF, for benchmarks with llama.cpp.

    python3 scripts/bench/to_gguf.py models/smollm2-135m --out models/smollm2-135m-bf16.gguf --dtype bf16

Writes weights and sizes, and a vocabulary of placeholder tokens: ids are given and taken, text is not. Needs
`pip install torch==2.11.0 safetensors gguf==0.19.0`.
"""

import argparse
import json
import pathlib

import gguf
import torch
from safetensors.torch import load_file

LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ENDS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight"}
FILE_TYPES = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "f32": gguf.LlamaFileType.ALL_F32}


def name_of(name):
    if name in ENDS:
        return ENDS[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def interleaved(weight, heads):
    """llama.cpp turns neighbouring pairs in the Llama architecture, where Hugging Face turns halves."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(rows, -1)


def tensors(folder, config):
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if config["model_type"] == "llama" and "q_proj" in name:
                tensor = interleaved(tensor, config["num_attention_heads"])
            if config["model_type"] == "llama" and "k_proj" in name:
                tensor = interleaved(tensor, config["num_key_value_heads"])
            yield name_of(name), tensor.contiguous()


def add_tensor(writer, name, tensor, dtype):
    # Norms are f32 in every GGUF file.
    if dtype == "f32" or tensor.dim() == 1:
        writer.add_tensor(name, tensor.float().numpy())
        return
    bits = tensor.to(torch.bfloat16).view(torch.uint8).numpy()
    writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)


def add_sizes(writer, config):
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def add_vocabulary(writer, size):
    tokens = [f"<{index}>" for index in range(size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * size)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--dtype", choices=FILE_TYPES, default="bf16")
    arguments = parser.parse_args()
    config = json.loads((arguments.model / "config.json").read_text())
    if config["model_type"] not in ("llama", "qwen3"):
        raise SystemExit(f"`model_type` is `{config['model_type']}`, and only llama and qwen3 are known here")
    writer = gguf.GGUFWriter(arguments.out, config["model_type"])
    writer.add_file_type(FILE_TYPES[arguments.dtype])
    add_sizes(writer, config)
    add_vocabulary(writer, config["vocab_size"])
    count = 0
    for name, tensor in tensors(arguments.model, config):
        if name == "output.weight" and config.get("tie_word_embeddings"):
            continue
        add_tensor(writer, name, tensor, arguments.dtype)
        count += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(json.dumps({"file": str(arguments.out), "tensors": count, "bytes": arguments.out.stat().st_size}))


if __name__ == "__main__":
    main()
