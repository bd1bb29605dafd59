#!/usr/bin/env python3
"""Compares `asyncthink-train bench rollout` with llama.cpp on the CPU: prefill and decoding, in tokens per second.

    pip install llama-cpp-python==0.3.36 gguf==0.19.0
    python3 scripts/bench/to_gguf.py models/smollm2-135m --out models/smollm2-135m-bf16.gguf --dtype bf16
    python3 scripts/bench/rollout_vs_llama_cpp.py --model models/smollm2-135m --gguf models/smollm2-135m-bf16.gguf --dtype bf16 \\
        --num-prompts 64 --prompt-tokens 128 --new-tokens 32

Both run in turns, on the same weights and numbers of tokens; loading is outside, and each has warmed up. llama.cpp gets all
sequences in one unified KV cache through its C interface (`llama_decode`). It does not sample: the next tokens are random, and
its logits are not looked at, which is in its favour. All prompts differ. Without `--model` only llama.cpp runs. Prints one JSON
object; `ratio` is ours over theirs, of the medians.
"""

import argparse
import json
import pathlib
import random
import statistics
import time

import llama_cpp

from our_rollout import BINARY, run_rollout

MAX_BATCH = 2048


class Peer:
    """A model and a context in llama.cpp."""

    def __init__(self, arguments):
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(quiet, None)
        self.quiet = quiet
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(arguments.gguf).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot read {arguments.gguf}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_seq_max = arguments.num_prompts
        parameters.n_ctx = arguments.num_prompts * (arguments.prompt_tokens + arguments.new_tokens)
        parameters.n_batch = MAX_BATCH
        parameters.n_threads = parameters.n_threads_batch = arguments.threads
        parameters.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise SystemExit("llama.cpp cannot make a context of this size")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(MAX_BATCH, 0, 1)
        self.draw = random.Random(arguments.seed)

    def decode(self, rows):
        """Rows are (position, sequence, whether logits are wanted)."""
        self.batch.n_tokens = len(rows)
        for index, (position, sequence, wanted) in enumerate(rows):
            self.batch.token[index] = self.draw.randrange(self.vocab_size)
            self.batch.pos[index] = position
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = sequence
            self.batch.logits[index] = wanted
        before = time.perf_counter()
        code = llama_cpp.llama_decode(self.context, self.batch)
        llama_cpp.llama_synchronize(self.context)
        if code != 0:
            raise SystemExit(f"llama_decode gave {code}")
        return time.perf_counter() - before

    def rollout(self, arguments, new_tokens):
        """Seconds of prefill and of decoding."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        length, sequences = arguments.prompt_tokens, range(arguments.num_prompts)
        rows = [(position, sequence, position + 1 == length) for sequence in sequences for position in range(length)]
        prefill = sum(self.decode(rows[start:start + MAX_BATCH]) for start in range(0, len(rows), MAX_BATCH))
        # The prompt's last row gave the first new token.
        steps = range(length, length + new_tokens - 1)
        return prefill, sum(self.decode([(position, sequence, True) for sequence in sequences]) for position in steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--model", type=pathlib.Path, metavar="DIR", help="the same weights for ours")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of ours; the file has llama.cpp's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further keys of our recipe")
    parser.add_argument("--binary", type=pathlib.Path, default=BINARY)
    parser.set_defaults(group=1, share_prompts=False, temperature=1.0, device="cpu")
    arguments = parser.parse_args()

    if arguments.num_prompts > MAX_BATCH or arguments.new_tokens < 2:
        raise SystemExit(f"`--num-prompts` may be {MAX_BATCH} at most, and `--new-tokens` 2 at least")
    peer = Peer(arguments)
    num_prompt, num_new = (arguments.num_prompts * count for count in (arguments.prompt_tokens, arguments.new_tokens - 1))
    rates = {"llama.cpp": {"prefill": [], "decode": []}}
    if arguments.model:
        rates["asyncthink"] = {"prefill": [], "decode": []}
    peer.rollout(arguments, min(8, arguments.new_tokens))  # warm-up
    for _ in range(arguments.repeats):
        if arguments.model:
            phases = run_rollout(arguments, arguments.model)["phases"]
            rates["asyncthink"]["prefill"].append(phases["prefill"]["tokens_per_s"])
            rates["asyncthink"]["decode"].append(phases["decode"]["sampled_tokens"] / phases["decode"]["seconds"])
        prefill, decode = peer.rollout(arguments, arguments.new_tokens)
        rates["llama.cpp"]["prefill"].append(num_prompt / prefill)
        rates["llama.cpp"]["decode"].append(num_new / decode)
    medians = {name: {phase: statistics.median(values) for phase, values in phases.items()} for name, phases in rates.items()}
    print(json.dumps({
        "gguf": str(arguments.gguf), "dtype": arguments.dtype, "threads": arguments.threads,
        "num_prompts": arguments.num_prompts, "prompt_tokens": arguments.prompt_tokens, "new_tokens": arguments.new_tokens,
        "repeats": arguments.repeats,
        "tokens_per_second": {name: {phase: [round(value, 1) for value in values] for phase, values in phases.items()}
                              for name, phases in rates.items()},
        "ratio": {phase: round(medians["asyncthink"][phase] / medians["llama.cpp"][phase], 3)
                  for phase in ("prefill", "decode")} if arguments.model else None,
        "made_with": {"llama-cpp-python": llama_cpp.__version__,
                      "system": llama_cpp.llama_print_system_info().decode().strip()},
    }, indent=2))


if __name__ == "__main__":
    main()
