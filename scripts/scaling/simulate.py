#!/usr/bin/env python3
"""Simulates training steps on many GPUs: memory, bytes, time by part, efficiency.

    python3 scripts/scaling/simulate.py --table
    python3 scripts/scaling/simulate.py --models qwen3-4b --num-gpus 64 --stages sft --bucket-mb 400

A step is a queue of computing and a queue of collectives per GPU (`timeline.py`), and for GRPO a rollout of drawn episode
lengths before it (`rollout.py`); sizes and operations are the formulas of docs/scaling.md (`costs.py`). Nothing here was
measured: rates are peaks of data sheets times an assumed share. Prints JSON, one object per line; `--table` a Markdown table.
Efficiency is mean computing time over the time of the step.
Python 3 standard library only.
"""

import argparse
import json
import math
from dataclasses import dataclass

import costs
import rollout
import timeline

GB = 1e9
# H100 and H200 SXM, dense, without sparsity; data sheets of H100 and H200, and for the decimals table 1 of the "NVIDIA H100
# Tensor Core GPU Architecture" whitepaper. f32 without TF32 runs beside the tensor cores.
PEAK_FLOPS = {"f32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12}
GPUS = {"h100": (80 * GB, 3.35e12), "h200": (141 * GB, 4.8e12)}


@dataclass(frozen=True)
class Cluster:
    """Rates per GPU and direction, in bytes and seconds."""

    nvlink: float
    network: float
    gpus_per_node: int
    link_share: float
    base_latency: float
    nvlink_hop: float
    network_hop: float

    def collective_seconds(self, num_ranks, whole_bytes):
        """A ring all-gather or reduce-scatter of a vector of `whole_bytes`. Every GPU of a node has a network card of its
        own and a ring through it, so a ring leaves the node at the rate of all of them together."""
        if num_ranks == 1 or whole_bytes == 0:
            return 0.0
        num_nodes = -(-num_ranks // self.gpus_per_node)
        rate = self.nvlink
        if num_nodes > 1:
            rate = min(rate, self.network * min(self.gpus_per_node, num_ranks))
        hops = (num_ranks - num_nodes) * self.nvlink_hop + (num_nodes - 1) * self.network_hop
        moved = whole_bytes * (num_ranks - 1) / num_ranks
        return self.base_latency + hops + moved / (rate * self.link_share)


@dataclass(frozen=True)
class Case:
    """One row of the results."""

    shape: costs.Shape
    shard: str
    stage: str
    scaling: str
    num_ranks: int


class Simulation:
    """All cases of one set of options."""

    def __init__(self, options):
        self.options = options
        self.cluster = Cluster(
            options.nvlink_gb_s * GB,
            options.network_gbit_s * GB / 8,
            options.gpus_per_node,
            options.link_share,
            options.base_latency_us * 1e-6,
            options.nvlink_hop_us * 1e-6,
            options.network_hop_us * 1e-6,
        )
        memory, bandwidth = GPUS[options.gpu]
        self.memory = memory - options.reserve_gb * GB
        self.bandwidth = bandwidth * options.hbm_share
        self.flops = PEAK_FLOPS[options.precision] * options.mfu
        self.weight_bytes = 2 if options.precision == "bf16" else costs.F32
        self.episodes = rollout.Episodes(
            options.mean_tokens,
            options.variation,
            options.correlation,
            options.max_tokens,
            options.concurrency,
            options.num_agents,
            options.prompt_tokens,
        )

    def setup(self, case):
        recompute = self.options.recompute
        return costs.Setup(
            case.shard,
            case.num_ranks,
            case.shard == "full" if recompute == "auto" else recompute == "yes",
            self.options.micro_batches_per_gather if case.shard == "full" else 1,
            self.weight_bytes,
            self.options.kl and case.stage == "grpo",
        )

    def run(self, case):
        """Figures of one case as a dictionary; times are None where it does not fit."""
        setup, shape = self.setup(case), case.shape
        tokens = costs.largest_micro_batch(shape, setup, self.memory, self.options.micro_batch_tokens)
        tokens = 0 if tokens < self.options.row_tokens else tokens
        training = costs.training_memory(shape, setup, tokens or self.options.row_tokens)
        result = {
            "model": shape.name,
            "shard": case.shard,
            "stage": case.stage,
            "scaling": case.scaling,
            "num_gpus": case.num_ranks,
            "micro_batch_tokens": tokens,
            "training_gb": {name: size / GB for name, size in training.items()},
            "smallest_training_gb": self.smallest_training(shape, setup) / GB,
        }
        seconds = self.grpo(case, setup, tokens, result) if case.stage == "grpo" else self.sft(case, setup, tokens, result)
        result["seconds"] = seconds
        result["efficiency"] = seconds and seconds["compute"] / seconds["total"]
        return result

    def smallest_training(self, shape, setup):
        """With micro-batches of one row."""
        return sum(costs.training_memory(shape, setup, self.options.row_tokens).values())

    def sft(self, case, setup, micro_batch, result):
        batch = self.options.sft_tokens * (case.num_ranks if case.scaling == "weak" else self.options.strong_gpus)
        result["batch_tokens"] = batch
        if micro_batch == 0:
            return None
        streams = self.training(case.shape, setup, batch / case.num_ranks, micro_batch, 1.0)
        self.note_exchange(result, streams, setup)
        return self.seconds_of(streams)

    def grpo(self, case, setup, micro_batch, result):
        options, shape, ranks = self.options, case.shape, case.num_ranks
        prompts = options.grpo_prompts * (ranks if case.scaling == "weak" else options.strong_gpus)
        static = sum(costs.rollout_memory(shape, setup).values())
        slot_tokens = options.prompt_tokens + options.max_tokens
        kv_bytes = shape.kv_bytes_per_token(self.weight_bytes)
        slots = min(options.max_agents, int((self.memory - static) // (kv_bytes * slot_tokens)))
        smallest = static + options.concurrency * kv_bytes * slot_tokens
        result.update(
            num_episodes=prompts * options.group_size, smallest_rollout_gb=smallest / GB, slots=max(0, slots)
        )
        if micro_batch == 0 or slots < options.concurrency or prompts < ranks:
            return None
        groups = self.episodes.draw(prompts, options.group_size, options.seed)
        shares = [sum((groups[p] for p in rollout.share_of(prompts, rank, ranks)), []) for rank in range(ranks)]
        decoder = rollout.Decoder(
            shape.num_read_by_decoding * self.weight_bytes,
            kv_bytes,
            2 * shape.num_read_by_decoding,
            self.bandwidth,
            self.flops,
            slots,
        )
        decode = [rollout.decode_seconds(share, self.episodes, decoder) for share in shares]
        trained = [sum(map(self.episodes.trained_tokens, share)) for share in shares]
        decoded = sum(map(sum, shares)) * self.episodes.concurrency / sum(trained)
        gather = timeline.Streams(self.options.overlap)
        if setup.shard == "full" and ranks > 1:
            timeline.forward_pass(gather, shape.num_layers, 0.0, self.collectives(shape, setup))
        slowest = self.training(shape, setup, max(trained), micro_batch, decoded, self.options.num_updates)
        mean = sum(trained) / ranks / max(trained)
        self.note_exchange(result, slowest, setup, gather)
        of_slowest, rollout_mean = self.seconds_of(slowest), sum(decode) / ranks
        compute = rollout_mean + of_slowest["compute"] * mean
        total = gather.end + max(decode) + of_slowest["total"]
        return {
            "rollout_gather": gather.end,
            "rollout": rollout_mean,
            "rollout_wait": max(decode) - rollout_mean,
            "train": of_slowest["compute"] * mean,
            "train_wait": of_slowest["compute"] * (1 - mean),
            "exposed_exchange": of_slowest["exposed_exchange"],
            "compute": compute,
            "total": total,
        }

    def training(self, shape, setup, tokens, micro_batch, trained_share, num_updates=1):
        """The updates of one rank with so many tokens, as streams."""
        streams = timeline.Streams(self.options.overlap)
        num_micro_batches = max(1, math.ceil(tokens / micro_batch))
        work = self.work(shape, setup, tokens / num_micro_batches, trained_share)
        for _ in range(num_updates):
            if setup.shard == "full":
                self.full_update(streams, shape, setup, num_micro_batches, work)
            else:
                self.optimizer_update(streams, shape, setup, num_micro_batches, work)
        return streams

    def work(self, shape, setup, tokens, trained_share):
        """Of one micro-batch."""
        forward = costs.layer_forward_flops(shape, self.options.row_tokens) * tokens / self.flops
        head = costs.head_flops(shape) * tokens * trained_share / self.flops
        return timeline.Work(forward, forward * (3 if setup.recompute else 2), head)

    def full_update(self, streams, shape, setup, num_micro_batches, work):
        collectives = self.collectives(shape, setup)
        left = num_micro_batches
        while left > 0:
            count = min(left, setup.micro_batches_per_gather)
            left -= count
            of_round = timeline.Work(work.forward * count, work.backward * count, work.head * count)
            if setup.has_reference:
                timeline.forward_pass(streams, shape.num_layers, of_round.forward, collectives)
                streams.compute(of_round.head / 3)
            timeline.full_round(streams, shape.num_layers, of_round, collectives)
        self.update(streams, shape, setup)

    def optimizer_update(self, streams, shape, setup, num_micro_batches, work):
        ranks = setup.num_ranks
        elements = costs.model_elements(shape, ranks)
        buckets = costs.bucket_sizes(elements, ranks, self.options.bucket_mb << 20 or costs.default_bucket_bytes(ranks)) if ranks > 1 else []
        units = costs.unit_elements(shape, 1)
        reduce = lambda size: self.collective("reduce_scatter", ranks, size * costs.F32)
        if setup.has_reference:
            streams.compute(num_micro_batches * (shape.num_layers * work.forward + work.head / 3))
        timeline.optimizer_pass(streams, shape.num_layers, num_micro_batches, work, units, buckets, reduce)
        self.update(streams, shape, setup)
        for size in buckets:
            streams.exchange(self.collective("all_gather", ranks, size * self.weight_bytes), streams.compute_end)
        streams.compute(0.0, streams.exchange_end)

    def update(self, streams, shape, setup):
        """AdamW reads weight, gradient and both moments, and writes all but the gradient: 28 bytes per value of the rank."""
        seconds = 7 * costs.F32 * shape.num_parameters / setup.num_ranks / self.bandwidth
        streams.compute(seconds, streams.exchange_end)

    def collective(self, kind, num_ranks, whole_bytes):
        return kind, whole_bytes, self.cluster.collective_seconds(num_ranks, whole_bytes)

    def collectives(self, shape, setup):
        root, layer = costs.unit_elements(shape, setup.num_ranks)
        gather = lambda size: self.collective("all_gather", setup.num_ranks, size * setup.weight_bytes)
        reduce = lambda size: self.collective("reduce_scatter", setup.num_ranks, size * costs.F32)
        return timeline.UnitCollectives(gather(root), gather(layer), reduce(root), reduce(layer))

    @staticmethod
    def seconds_of(streams):
        return {
            "compute": streams.compute_seconds,
            "exchange": streams.exchange_seconds,
            "exposed_exchange": streams.end - streams.compute_seconds,
            "total": streams.end,
        }

    @staticmethod
    def note_exchange(result, *all_streams):
        streams = [one for one in all_streams if isinstance(one, timeline.Streams)]
        (setup,) = [one for one in all_streams if isinstance(one, costs.Setup)]
        whole = sum(sum(one.whole_bytes.values()) for one in streams)
        result["sent_gb"] = whole * (setup.num_ranks - 1) / setup.num_ranks / GB
        result["messages"] = sum(sum(one.messages.values()) for one in streams)


def cases(options):
    for model in options.models:
        for stage in options.stages:
            for shard in options.shards:
                for scaling in options.scaling:
                    for num_ranks in options.num_gpus:
                        yield Case(costs.SHAPES[model], shard, stage, scaling, num_ranks)


def table(results, options):
    lines = [
        "| model | stage | `shard` | batch | GPUs | micro-batch, tokens | least GB per GPU | 80 / 141 GB | GB sent | collectives "
        "| rollout, its wait | computing | exposed exchange | step | efficiency |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        seconds = result["seconds"]
        need = result["smallest_training_gb"]
        need = max(need, result.get("smallest_rollout_gb", 0.0))
        fits = [need + options.reserve_gb <= size / GB for size, _ in GPUS.values()]
        cells = [
            result["model"],
            result["stage"],
            result["shard"],
            result["scaling"],
            result["num_gpus"],
            result["micro_batch_tokens"] or "-",
            f"{need:.0f}",
            " / ".join("yes" if fit else "no" for fit in fits),
        ]
        if seconds is None:
            cells += ["-"] * 7
        else:
            is_grpo = "rollout" in seconds
            waiting = seconds.get("train_wait", 0.0)
            exposed = seconds["exposed_exchange"] + seconds.get("rollout_gather", 0.0)
            cells += [
                f"{result['sent_gb']:.0f}",
                result["messages"],
                f"{seconds['rollout']:.1f}, {seconds['rollout_wait']:.1f}" if is_grpo else "",
                f"{seconds['train']:.2f}, {waiting:.2f}" if is_grpo else f"{seconds['compute']:.2f}",
                f"{exposed:.2f}",
                f"{seconds['total']:.2f}",
                f"{100 * result['efficiency']:.0f} %",
            ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", action="store_true", help="a Markdown table instead of JSON lines")
    add("--models", nargs="+", choices=costs.SHAPES, default=list(costs.SHAPES))
    add("--stages", nargs="+", choices=["sft", "grpo"], default=["sft", "grpo"])
    add("--shards", nargs="+", choices=["optimizer", "full"], default=["optimizer", "full"])
    add("--scaling", nargs="+", choices=["weak", "strong"], default=["weak", "strong"])
    add("--num-gpus", nargs="+", type=int, default=[8, 64, 512])
    add("--strong-gpus", type=int, default=64, help="strong scaling keeps the batch that weak scaling has at so many GPUs")
    machine = parser.add_argument_group("machine (rates per GPU)")
    add = machine.add_argument
    add("--gpu", choices=GPUS, default="h200", help="memory and its bandwidth; data sheets")
    add("--precision", choices=PEAK_FLOPS, default="tf32", help="bf16: weights and activations in 2 bytes, gradients and moments in 4")
    add("--mfu", type=float, default=0.4, help="share of the peak that computing reaches; assumed")
    add("--hbm-share", type=float, default=0.8, help="share of the memory's bandwidth that is reached; assumed")
    add("--reserve-gb", type=float, default=5.0, help="memory for context, collectives and fragments; assumed")
    add("--nvlink-gb-s", type=float, default=450.0, help="one direction; data sheet: 900 for both")
    add("--network-gbit-s", type=float, default=400.0, help="one direction; DGX H100: one 400 Gbit/s card per GPU")
    add("--gpus-per-node", type=int, default=8)
    add("--link-share", type=float, default=0.8, help="share of the links' rate that large collectives reach; assumed")
    add("--base-latency-us", type=float, default=8.4, help="of a collective; NCCL, src/graph/tuning.cc, ring, Simple")
    add("--nvlink-hop-us", type=float, default=3.4, help="of one hop of a ring inside a node; same source")
    add("--network-hop-us", type=float, default=9.6, help="of one hop between nodes; same source")
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--sft-tokens", type=int, default=65536, help="tokens of an SFT batch per GPU, weak scaling")
    add("--micro-batch-tokens", type=int, default=16384, help="lowered to what fits; the recipe's default")
    add("--micro-batches-per-gather", type=int, default=1)
    add("--row-tokens", type=int, default=2048, help="length of a row: the context of attention, and the smallest micro-batch")
    add("--recompute", choices=["auto", "yes", "no"], default="auto", help="auto: with shard = full")
    add("--bucket-mb", type=int, default=0, help="as distributed.bucket_mb; 0: its default, 5 per rank and at least 25")
    add("--no-overlap", dest="overlap", action="store_false", help="collectives and computing take turns")
    grpo = parser.add_argument_group("GRPO")
    add = grpo.add_argument
    add("--grpo-prompts", type=int, default=8, help="problems of a step per GPU, weak scaling")
    add("--group-size", type=int, default=8)
    add("--num-updates", type=int, default=1)
    add("--kl", action="store_true", help="with a reference model")
    add("--max-agents", type=int, default=1024, help="as engine.max_agents; lowered to what fits")
    add("--mean-tokens", type=float, default=1024, help="decoding steps of an episode; assumed, as the rest of its shape")
    add("--max-tokens", type=int, default=4096)
    add("--variation", type=float, default=0.6, help="standard deviation of the lengths over their mean")
    add("--correlation", type=float, default=0.5, help="of the logarithms of lengths within a group")
    add("--concurrency", type=float, default=2.0, help="agents that decode at a time, mean")
    add("--num-agents", type=float, default=4.0, help="agents of an episode")
    add("--prompt-tokens", type=int, default=300, help="of each agent")
    add("--seed", type=int, default=1, help="of the drawn lengths")
    return parser.parse_args(arguments)


def main():
    options = parse()
    simulation = Simulation(options)
    results = [simulation.run(case) for case in cases(options)]
    if options.table:
        print(table(results, options))
    else:
        for result in results:
            print(json.dumps(result))


if __name__ == "__main__":
    main()
