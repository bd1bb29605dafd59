"""How long ranks decode, and how long they wait for the slowest.

Python 3 standard library only.
"""

import heapq
import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Episodes:
    """What episodes are like. Lengths are log-normal and cut at `max_tokens`; those of one problem correlate."""

    mean_tokens: float  # of the critical path: decoding steps
    variation: float  # standard deviation over mean
    correlation: float  # of the logarithms within a group
    max_tokens: int
    concurrency: float  # mean number of agents that decode at a time
    num_agents: float
    prompt_tokens: int  # of each agent

    def draw(self, num_prompts, group_size, seed):
        """Lengths by problem."""
        rng = random.Random(seed)
        sigma = math.sqrt(math.log(1 + self.variation**2))
        shared, own = math.sqrt(self.correlation), math.sqrt(1 - self.correlation)
        groups = []
        for _ in range(num_prompts):
            of_problem = rng.gauss(0, 1)
            deviations = [shared * of_problem + own * rng.gauss(0, 1) for _ in range(group_size)]
            lengths = [self.mean_tokens * math.exp(sigma * z - sigma**2 / 2) for z in deviations]
            groups.append([max(1, min(self.max_tokens, round(length))) for length in lengths])
        return groups

    def trained_tokens(self, length):
        return length * self.concurrency + self.num_agents * self.prompt_tokens


@dataclass(frozen=True)
class Decoder:
    """What one decoding step costs."""

    weight_bytes: float  # read at every step
    kv_bytes_per_token: float
    flops_per_token: float
    bytes_per_second: float
    flops_per_second: float
    num_slots: int  # agents whose keys and values fit


def decode_seconds(lengths, episodes, decoder):
    """Time of one rank: episodes run side by side as slots allow, each agent one token per step, and the next one starts
    when one ends. A step reads the weights and every cached key and value, or is bound by arithmetic."""
    at_a_time = int(decoder.num_slots // episodes.concurrency)
    if at_a_time < 1:
        raise ValueError("not one episode fits")
    waiting = list(reversed(lengths))
    ends, starts, step, seconds = [], 0, 0, 0.0
    while waiting or ends:
        while waiting and len(ends) < at_a_time:
            length = waiting.pop()
            heapq.heappush(ends, (step + length, step))
            starts += step
        num_steps = ends[0][0] - step
        agents = len(ends) * episodes.concurrency
        mean_step = step + num_steps / 2
        context = episodes.concurrency * (len(ends) * (episodes.prompt_tokens + mean_step) - starts)
        memory = (decoder.weight_bytes + context * decoder.kv_bytes_per_token) / decoder.bytes_per_second
        arithmetic = agents * decoder.flops_per_token / decoder.flops_per_second
        seconds += num_steps * max(memory, arithmetic)
        step += num_steps
        while ends and ends[0][0] == step:
            starts -= heapq.heappop(ends)[1]
    prompts = len(lengths) * episodes.num_agents * episodes.prompt_tokens
    return seconds + prompts * decoder.flops_per_token / decoder.flops_per_second


def expected_maximum(count):
    """Expected largest of `count` independent standard normals, by Blom's approximation."""
    if count < 2:
        return 0.0
    target = (count - 0.375) / (count + 0.25)
    low, high = 0.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < target:
            low = middle
        else:
            high = middle
    return low


def expected_largest_sum(num_ranks, num_prompts_per_rank, group_size, mean, deviation, correlation):
    """Expected largest of the ranks' sums of episode lengths; `correlation` is that of lengths within a group."""
    num_episodes = num_prompts_per_rank * group_size
    variance = num_episodes * deviation**2 * (1 + (group_size - 1) * correlation)
    return num_episodes * mean + expected_maximum(num_ranks) * math.sqrt(variance)


def share_of(count, rank, num_ranks):
    """A rank's contiguous share, as `Ranks::share_of` cuts it."""
    return range(rank * count // num_ranks, (rank + 1) * count // num_ranks)
