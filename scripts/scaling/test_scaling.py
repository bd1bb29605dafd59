#!/usr/bin/env python3
"""Tests of the formulas and of the simulator: `python3 -m unittest discover -s scripts/scaling -p 'test_*.py'`."""

import random
import unittest
from dataclasses import replace

import check_bytes
import costs
import rollout
import simulate
import timeline

TINY = costs.Shape("tiny", 40, 64, 128, 2, 2, 1, 32, True)
# Root 1 s to gather and to reduce, a layer 2 s.
COLLECTIVES = timeline.UnitCollectives(
    ("all_gather", 10, 1.0), ("all_gather", 20, 2.0), ("reduce_scatter", 10, 1.0), ("reduce_scatter", 20, 2.0)
)
WORK = timeline.Work(forward=3.0, backward=4.0, head=1.0)


def simulated(*arguments):
    options = simulate.parse(arguments)
    return [simulate.Simulation(options).run(case) for case in simulate.cases(options)]


class Sizes(unittest.TestCase):
    def test_the_shapes_have_the_published_numbers_of_parameters(self):
        self.assertEqual(costs.SHAPES["qwen3-4b"].num_parameters, 4_022_468_096)
        self.assertEqual(costs.SHAPES["qwen3-32b"].num_parameters, 32_762_123_264)

    def test_vectors_are_padded_to_equal_aligned_parts(self):
        self.assertEqual(costs.vector_elements([17, 3], 1), 48)
        self.assertEqual(costs.vector_elements([17, 3], 4), 64)

    def test_buckets_cover_the_vector(self):
        # A bucket of 300 bytes is 75 elements, rounded to 128 with 4 ranks.
        self.assertEqual(costs.bucket_sizes(320, 4, 300), [128, 128, 64])
        self.assertEqual(costs.bucket_sizes(256, 4, 300), [128, 128])

    def test_a_small_exchange_by_hand(self):
        # root 40 * 64 + 64 = 2624; layer 64 * 64 * 2 + 32 * 64 * 2 + 3 * 128 * 64 + 128 + 64 = 37056; with 4 ranks
        # both are multiples of 64.
        self.assertEqual(costs.unit_elements(TINY, 4), (2624, 37056))
        full = costs.exchange_of_full_shard(TINY, 4, num_rounds=3, num_forward_passes=1)
        gathered = 4 * (3 * (2624 + 3 * 37056) + 2624 + 2 * 37056)
        self.assertEqual(full["all_gather"], costs.Exchange(3 * 4 + 3, gathered))
        self.assertEqual(full["reduce_scatter"], costs.Exchange(3 * 3, 3 * 4 * (2624 + 2 * 37056)))
        self.assertEqual(costs.put_in_bytes(full, 4)["all_gather"], gathered // 4)
        optimizer = costs.exchange_of_optimizer_shard(TINY, 4, 2, 1 << 20)
        whole = 4 * (2624 + 2 * 37056)
        self.assertEqual(optimizer["reduce_scatter"], costs.Exchange(2, 2 * whole))
        self.assertEqual(costs.sent_bytes(optimizer, 4), 0.75 * 4 * whole)
        self.assertEqual(costs.sent_bytes(optimizer, 4, "gloo"), 0.75 * 6 * whole)

    def test_memory_falls_with_ranks_only_where_it_is_sharded(self):
        shape = costs.SHAPES["qwen3-4b"]
        static = lambda shard, ranks: costs.static_memory(shape, costs.Setup(shard, ranks, False))
        self.assertEqual(static("optimizer", 1)["weights"], static("optimizer", 64)["weights"])
        self.assertEqual(static("full", 64)["weights"] * 64, static("full", 1)["weights"])
        self.assertEqual(sum(static("full", 64).values()), 16 * shape.num_parameters / 64)

    def test_the_largest_micro_batch_fits_and_one_step_more_does_not(self):
        shape, setup = costs.SHAPES["qwen3-4b"], costs.Setup("optimizer", 8, False)
        tokens = costs.largest_micro_batch(shape, setup, 80e9, 16384)
        memory = lambda count: sum(costs.training_memory(shape, setup, count).values())
        self.assertTrue(0 < tokens < 16384 and memory(tokens) <= 80e9 < memory(tokens + 256))
        self.assertEqual(costs.largest_micro_batch(shape, setup, 10e9, 16384), 0)


class Timeline(unittest.TestCase):
    def test_a_round_by_hand(self):
        # gathers: root 0-1, layer 0 1-3, layer 1 3-5; forward 3-6, 6-9; head 9-10; layer 0 again 10-12;
        # backward of layer 1 10-14, reduced 14-16; of layer 0 14-18, reduced 18-20; root reduced 20-21.
        streams = timeline.Streams()
        timeline.full_round(streams, 2, WORK, COLLECTIVES)
        self.assertEqual((streams.compute_end, streams.end), (18.0, 21.0))
        self.assertEqual((streams.compute_seconds, streams.exchange_seconds), (15.0, 12.0))
        self.assertEqual(streams.messages, {"all_gather": 4, "reduce_scatter": 3})
        self.assertEqual(streams.whole_bytes, {"all_gather": 70, "reduce_scatter": 50})

    def test_a_forward_pass_by_hand(self):
        # Gathers: root 0-1, layer 0 1-3, layer 1 3-5; computing 3-6 and 6-9.
        streams = timeline.Streams()
        timeline.forward_pass(streams, 2, 3.0, COLLECTIVES)
        self.assertEqual((streams.compute_end, streams.exchange_end, streams.compute_seconds), (9.0, 5.0, 6.0))
        # A rollout gathers everything before it begins.
        streams = timeline.Streams()
        timeline.forward_pass(streams, 2, 0.0, COLLECTIVES)
        self.assertEqual((streams.compute_end, streams.compute_seconds), (5.0, 0.0))

    def test_a_round_is_bound_by_collectives_that_are_slower(self):
        slow = timeline.Work(forward=0.1, backward=0.1, head=0.1)
        streams = timeline.Streams()
        timeline.full_round(streams, 2, slow, COLLECTIVES)
        # Nothing hides but the head and the backward pass of layer 1 beside the second gather of layer 0.
        self.assertAlmostEqual(streams.end, 12.0 + 0.1 + 0.1)

    def test_without_overlap_the_parts_add_up(self):
        streams = timeline.Streams(overlap=False)
        timeline.full_round(streams, 2, WORK, COLLECTIVES)
        self.assertEqual(streams.end, 15.0 + 12.0)
        for shard in ["optimizer", "full"]:
            for stage in ["sft", "grpo"]:
                arguments = ("--models", "qwen3-4b", "--stages", stage, "--shards", shard, "--num-gpus", "64")
                (result, _) = simulated(*arguments, "--no-overlap")
                seconds = result["seconds"]
                if stage == "sft":
                    self.assertAlmostEqual(seconds["total"], seconds["compute"] + seconds["exchange"])
                (overlapped, _) = simulated(*arguments)
                self.assertLess(overlapped["seconds"]["total"], seconds["total"])

    def test_buckets_go_out_as_layers_complete(self):
        # Two layers of 30 elements and a root of 20, buckets of 40: the first is complete after both layers.
        reduce = lambda size: ("reduce_scatter", size, size / 10)
        streams = timeline.Streams()
        timeline.optimizer_pass(streams, 2, 1, WORK, (20, 30), [40, 40], reduce)
        # Forward 6, head 1, backward to 15; both buckets follow.
        self.assertEqual((streams.compute_seconds, streams.end), (15.0, 23.0))
        # Buckets of 30: the first beside the backward pass of layer 0, 11-14, the others after it.
        streams = timeline.Streams()
        timeline.optimizer_pass(streams, 2, 1, WORK, (20, 30), [30, 30, 20], reduce)
        self.assertEqual(streams.end, 15.0 + 5.0)
        self.assertEqual(streams.whole_bytes, {"reduce_scatter": 80})


class Simulator(unittest.TestCase):
    def test_infinite_bandwidth_leaves_computing_alone(self):
        free = ["--nvlink-gb-s", "inf", "--network-gbit-s", "inf"]
        free += ["--base-latency-us", "0", "--nvlink-hop-us", "0", "--network-hop-us", "0"]
        for result in simulated("--models", "qwen3-4b", "--stages", "sft", *free):
            self.assertAlmostEqual(result["efficiency"], 1.0, places=12)
        equal = ["--variation", "0", "--concurrency", "2"]
        for result in simulated("--models", "qwen3-4b", "--stages", "grpo", *free, *equal):
            self.assertAlmostEqual(result["efficiency"], 1.0, places=9)

    def test_what_the_streams_move_is_what_the_formulas_say(self):
        shape = costs.SHAPES["qwen3-4b"]
        for result in simulated("--models", "qwen3-4b", "--stages", "sft", "--scaling", "weak"):
            ranks = result["num_gpus"]
            rounds = -(-65536 // result["micro_batch_tokens"])
            if result["shard"] == "full":
                exchange = costs.exchange_of_full_shard(shape, ranks, rounds)
            else:
                exchange = costs.exchange_of_optimizer_shard(shape, ranks, 1, costs.default_bucket_bytes(ranks))
            self.assertAlmostEqual(result["sent_gb"] * 1e9, costs.sent_bytes(exchange, ranks), delta=1)
            self.assertEqual(result["messages"], sum(kind.messages for kind in exchange.values()))

    def test_a_gather_for_several_micro_batches_moves_as_many_times_less(self):
        one, four = (
            simulated("--models", "qwen3-4b", "--stages", "sft", "--shards", "full", "--num-gpus", "64",
                      "--scaling", "weak", "--micro-batch-tokens", "2048", "--micro-batches-per-gather", count)[0]
            for count in ["1", "4"]
        )
        self.assertAlmostEqual(one["sent_gb"], 4 * four["sent_gb"])
        extra = four["training_gb"]["saved_inputs"] - one["training_gb"]["saved_inputs"]
        self.assertAlmostEqual(extra, 3 * 2048 * 2560 * 36 * 4 / 1e9)

    def test_the_network_bounds_a_ring_that_leaves_the_node(self):
        cluster = simulate.Cluster(450e9, 50e9, 8, 1.0, 0.0, 0.0, 0.0)
        self.assertAlmostEqual(cluster.collective_seconds(8, 8 * 450e9), 7.0)
        self.assertAlmostEqual(cluster.collective_seconds(16, 16 * 400e9), 15.0)
        late = replace(cluster, base_latency=1.0, nvlink_hop=0.1, network_hop=10.0)
        self.assertAlmostEqual(late.collective_seconds(16, 16 * 400e9), 15.0 + 1.0 + 14 * 0.1 + 10.0)
        self.assertEqual(late.collective_seconds(1, 100), 0.0)

    def test_what_does_not_fit_has_no_times(self):
        (result,) = simulated("--models", "qwen3-32b", "--stages", "sft", "--shards", "optimizer", "--num-gpus", "8",
                              "--scaling", "weak")
        self.assertIsNone(result["seconds"])
        self.assertGreater(result["smallest_training_gb"], 141)


class CheckedBytes(unittest.TestCase):
    def line(self, gathered, reduced, **figures):
        exchanged = {"all_gather": gathered, "reduce_scatter": reduced}
        return {"step": 2, "num_micro_batches": 6, "num_rows": 0, "num_tokens": 0, "held_out_loss": None, "timing": {"exchanged_bytes": exchanged}, **figures}

    def test_every_byte_of_an_optimizer_shard_is_explained(self):
        # 76,736 parameters; a question, a digest, 2 + 13 + 1 figures beside them.
        elements = 2624 + 2 * 37056
        check = lambda *bytes: check_bytes.check_optimizer_shard(TINY, "sft", {"sft": {}}, self.line(*bytes), 4)["ok"]
        self.assertTrue(check(elements + 152, 4 * elements))
        self.assertFalse(check(elements + 144, 4 * elements))
        self.assertFalse(check(elements + 152, 8 * elements))

    def test_a_full_shard_has_whole_and_possible_rounds(self):
        # 6 micro-batches on 4 ranks: two rounds at least.
        of_round, of_pass = 2624 + 3 * 37056, 2624 + 2 * 37056
        check = lambda *bytes: check_bytes.check_full_shard(TINY, "sft", {"sft": {}}, self.line(*bytes), 4)
        result = check(2 * of_round + 150, 2 * 4 * of_pass)
        self.assertEqual((result["rounds"], result["forward_passes"], result["other_bytes"]), (2, 0, 150))
        self.assertTrue(result["ok"])
        self.assertFalse(check(of_round, 4 * of_pass)["ok"], "too few rounds")
        self.assertFalse(check(2 * of_round, 2 * 4 * of_pass + 4)["ok"], "half a round")
        self.assertFalse(check(2 * of_round - 8, 2 * 4 * of_pass)["ok"], "gathered too little")
        self.assertFalse(check(2 * of_round + 5000, 2 * 4 * of_pass)["ok"], "gathered too much")
        self.assertFalse(check(2 * of_round + of_pass, 2 * 4 * of_pass)["ok"], "a pass that nothing asks for")
        recipe = {"grpo": {"num_updates_per_rollout": 1, "kl_beta": 0.01}}
        grpo = lambda passes: check_bytes.check_full_shard(
            TINY, "grpo", recipe, self.line(2 * of_round + passes * of_pass, 2 * 4 * of_pass), 4
        )
        self.assertTrue(grpo(3)["ok"], "the rollout, and the reference once a round")
        self.assertFalse(grpo(2)["ok"])


class Rollout(unittest.TestCase):
    EPISODES = rollout.Episodes(100, 0.5, 0.5, 1000, 1.0, 1.0, 0)

    def test_decoding_by_hand(self):
        # Two slots, lengths 4, 2, 3: two agents for 4 steps, then one for 1. A step reads 10 bytes of weights and 1 per
        # cached token: contexts 2 * (0 + 1) mean over steps 0-2, (3 + 1) over steps 2-4, and 2.5 over the last.
        decoder = rollout.Decoder(10, 1, 0, 1.0, 1.0, 2)
        self.assertAlmostEqual(
            rollout.decode_seconds([4, 2, 3], self.EPISODES, decoder), 2 * (10 + 2) + 2 * (10 + 4) + 12.5
        )

    def test_arithmetic_bounds_many_agents(self):
        decoder = rollout.Decoder(10, 0, 8, 1.0, 1.0, 4)
        self.assertAlmostEqual(rollout.decode_seconds([5] * 4, self.EPISODES, decoder), 5 * 4 * 8)

    def test_the_expected_largest_sum_is_that_of_drawn_sums(self):
        rng = random.Random(3)
        ranks, prompts, group = 16, 4, 2
        total = 0.0
        for _ in range(3000):
            sums = []
            for _ in range(ranks):
                # Correlation 0.36: each length is 10 + 3 * (0.6 * shared + 0.8 * own).
                sums.append(
                    sum(
                        2 * 10 + 3 * (2 * 0.6 * rng.gauss(0, 1) + 0.8 * (rng.gauss(0, 1) + rng.gauss(0, 1)))
                        for _ in range(prompts)
                    )
                )
            total += max(sums)
        expected = rollout.expected_largest_sum(ranks, prompts, group, 10, 3, 0.36)
        self.assertAlmostEqual(total / 3000 / expected, 1.0, delta=0.01)

    def test_shares_cover_the_problems(self):
        shares = [list(rollout.share_of(5, rank, 4)) for rank in range(4)]
        self.assertEqual(shares, [[0], [1], [2], [3, 4]])


if __name__ == "__main__":
    unittest.main()
