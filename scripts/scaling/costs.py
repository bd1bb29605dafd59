"""Sizes, bytes, memory and operations of a training step: the formulas of docs/scaling.md.

Python 3 standard library only.
"""

from dataclasses import dataclass

ALIGNMENT = 16  # elements that every parameter, and every rank's part of a vector, is a multiple of
MAX_CHUNK_LOGITS = 1 << 26  # logits that exist at a time
MAX_CHUNK_TOKENS = 4096
F32 = 4


def round_up(value, multiple):
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Shape:
    """A decoder of the Qwen3 architecture, by the keys of its `config.json`."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied: bool

    @classmethod
    def from_config(cls, name, config):
        return cls(
            name,
            config["vocab_size"],
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
            config["tie_word_embeddings"],
        )

    @property
    def query_size(self):
        return self.num_heads * self.head_dim

    @property
    def key_size(self):
        return self.num_kv_heads * self.head_dim

    @property
    def layer_matrices(self):
        h, a, k, i = self.hidden_size, self.query_size, self.key_size, self.intermediate_size
        return [a * h, k * h, k * h, h * a, i * h, i * h, h * i]

    @property
    def layer_tensors(self):
        return self.layer_matrices + [self.hidden_size] * 2 + [self.head_dim] * 2

    @property
    def root_tensors(self):
        matrix = self.vocab_size * self.hidden_size
        return [matrix] * (1 if self.tied else 2) + [self.hidden_size]

    @property
    def num_parameters(self):
        return sum(self.root_tensors) + self.num_layers * sum(self.layer_tensors)

    @property
    def num_read_by_decoding(self):
        """Parameters that every decoding step reads: all but an embedding that is not the head."""
        return self.num_parameters - (0 if self.tied else self.vocab_size * self.hidden_size)

    def kv_bytes_per_token(self, bytes_per_value):
        return 2 * self.num_layers * self.key_size * bytes_per_value


# From `config.json` of huggingface.co/Qwen/Qwen3-4B and Qwen/Qwen3-32B.
SHAPES = {
    "qwen3-4b": Shape("qwen3-4b", 151936, 2560, 9728, 36, 32, 8, 128, True),
    "qwen3-32b": Shape("qwen3-32b", 151936, 5120, 25600, 64, 64, 8, 128, False),
}


def vector_elements(tensors, num_ranks):
    """Elements of a flat vector of tensors, padded so that every rank gets an equal, aligned part."""
    return round_up(sum(round_up(size, ALIGNMENT) for size in tensors), ALIGNMENT * num_ranks)


def model_elements(shape, num_ranks):
    """Of the one vector that `shard = "optimizer"` cuts into buckets."""
    return vector_elements(shape.root_tensors + shape.layer_tensors * shape.num_layers, num_ranks)


def unit_elements(shape, num_ranks):
    """Of the root's vector and of one layer's, for `shard = "full"`."""
    return vector_elements(shape.root_tensors, num_ranks), vector_elements(shape.layer_tensors, num_ranks)


def default_bucket_bytes(num_ranks):
    """What an absent `distributed.bucket_mb` means."""
    return max(25, 5 * num_ranks) << 20


def bucket_sizes(num_elements, num_ranks, bucket_bytes):
    """Elements of each bucket, as `BucketCuts` of crates/distributed/src/flat/shards.rs makes them."""
    grain = ALIGNMENT * num_ranks
    bucket = max(round_up(bucket_bytes // F32, grain), grain)
    sizes = [bucket] * (num_elements // bucket)
    return sizes + ([num_elements % bucket] if num_elements % bucket else [])


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind: how many, and the bytes of the whole vectors."""

    messages: int
    whole_bytes: int

    def __add__(self, other):
        return Exchange(self.messages + other.messages, self.whole_bytes + other.whole_bytes)

    def __mul__(self, times):
        return Exchange(self.messages * times, self.whole_bytes * times)


def exchange_of_optimizer_shard(shape, num_ranks, num_updates, bucket_bytes, weight_bytes=F32):
    """What `shard = "optimizer"` exchanges in a step, by kind."""
    elements = model_elements(shape, num_ranks)
    messages = len(bucket_sizes(elements, num_ranks, bucket_bytes))
    return {
        "all_gather": Exchange(messages, elements * weight_bytes) * num_updates,
        "reduce_scatter": Exchange(messages, elements * F32) * num_updates,
    }


def exchange_of_full_shard(shape, num_ranks, num_rounds, num_forward_passes=0, weight_bytes=F32):
    """What `shard = "full"` exchanges, by kind: rounds of forward and backward passes, and passes that only need every
    unit once (the gathering for a rollout, a reference model's forward pass)."""
    root, layer = unit_elements(shape, num_ranks)
    layers = shape.num_layers
    round_gathers = Exchange(2 * layers, (root + (2 * layers - 1) * layer) * weight_bytes)
    forward_gathers = Exchange(1 + layers, (root + layers * layer) * weight_bytes)
    return {
        "all_gather": round_gathers * num_rounds + forward_gathers * num_forward_passes,
        "reduce_scatter": Exchange(1 + layers, (root + layers * layer) * F32) * num_rounds,
    }


def put_in_bytes(exchange, num_ranks):
    """What `ProcessGroup::traffic` counts: a rank puts its part into an all-gather and the whole into a reduce-scatter."""
    return {
        "all_gather": exchange["all_gather"].whole_bytes // num_ranks,
        "reduce_scatter": exchange["reduce_scatter"].whole_bytes,
    }


def sent_bytes(exchange, num_ranks, backend="nccl"):
    """What a rank sends, and receives, by ring algorithms."""
    share = (num_ranks - 1) / num_ranks
    # gloo's reduce-scatter is an all-reduce: a reduce-scatter and an all-gather.
    passes = 2 if backend == "gloo" else 1
    return share * (exchange["all_gather"].whole_bytes + passes * exchange["reduce_scatter"].whole_bytes)


def layer_activations(shape):
    """Values per token that autograd keeps of one layer. h: input, its normalised form and the gained one, twice (6).
    a: queries raw, normalised and rotated, keys and values repeated for every query head, the heads' output and its packed
    form (7). k: keys raw and normalised (2). i: gate, its activation, up, and their product (4). As `hidden_packed` computes
    on a CPU; norms that are one kernel keep 2 h + a + k less."""
    return 6 * shape.hidden_size + 7 * shape.query_size + 2 * shape.key_size + 4 * shape.intermediate_size


def head_bytes(shape):
    """Logits of a chunk, their log-softmax and the gradient, f32."""
    chunk = max(1, min(MAX_CHUNK_LOGITS // shape.vocab_size, MAX_CHUNK_TOKENS))
    return 3 * chunk * shape.vocab_size * F32


@dataclass(frozen=True)
class Setup:
    """What decides a rank's memory."""

    shard: str  # "optimizer" or "full"
    num_ranks: int
    recompute: bool
    micro_batches_per_gather: int = 1
    weight_bytes: int = F32
    has_reference: bool = False


def static_memory(shape, setup):
    """Bytes that a rank holds all the time, by part."""
    p, ranks = shape.num_parameters, setup.num_ranks
    shards = ranks if setup.shard == "full" else 1
    parts = {
        "weights": p * F32 / shards,
        "gradients": p * F32 / shards,
        "moments": 2 * p * F32 / ranks,
    }
    if setup.shard == "optimizer" and ranks > 1:
        parts["summed_gradients"] = p * F32 / ranks
    if setup.weight_bytes < F32 and setup.shard == "optimizer":
        parts["weights"] = p * setup.weight_bytes + p * F32 / ranks  # a copy to compute with, and masters
    if setup.has_reference:
        parts["reference"] = p * setup.weight_bytes / shards
    return parts


def training_memory(shape, setup, micro_batch_tokens):
    """Bytes of a rank in a training pass, by part."""
    parts = static_memory(shape, setup)
    of_layer = micro_batch_tokens * layer_activations(shape) * setup.weight_bytes
    if setup.shard == "full":
        root, layer = sum(shape.root_tensors), sum(shape.layer_tensors)
        parts["gathered_weights"] = (root + 2 * layer) * setup.weight_bytes
        parts["gathered_gradients"] = (root + 2 * layer) * F32
    if setup.recompute:
        inputs = micro_batch_tokens * shape.hidden_size * shape.num_layers * setup.weight_bytes
        parts["saved_inputs"] = inputs * setup.micro_batches_per_gather
        parts["activations"] = of_layer
    else:
        parts["activations"] = of_layer * shape.num_layers
    parts["head"] = head_bytes(shape)
    return parts


def rollout_memory(shape, setup):
    """Bytes of a rank in a rollout before any key or value is cached, by part."""
    parts = static_memory(shape, setup)
    if setup.shard == "full":
        parts["gathered_weights"] = shape.num_parameters * setup.weight_bytes
    return parts


def largest_micro_batch(shape, setup, memory_bytes, most_tokens, grain=256):
    """Most tokens per micro-batch that fit, up to `most_tokens`; 0 if none do."""
    empty = sum(training_memory(shape, setup, 0).values())
    per_token = sum(training_memory(shape, setup, 1).values()) - empty
    fitting = int((memory_bytes - empty) // per_token)
    return max(0, min(most_tokens, fitting if fitting >= most_tokens else fitting // grain * grain))


def layer_forward_flops(shape, row_tokens):
    """Operations of one layer's forward pass per token: two per parameter of a matrix, and causal attention over a row of
    `row_tokens`, whose mean context is half of it."""
    return 2 * sum(shape.layer_matrices) + 2 * shape.query_size * row_tokens


def head_flops(shape):
    """Operations of the head per trained token, forward and backward."""
    return 6 * shape.vocab_size * shape.hidden_size
