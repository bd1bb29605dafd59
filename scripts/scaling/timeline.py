"""A training pass of one rank as two streams: computing and collectives.

Python 3 standard library only.
"""

from dataclasses import dataclass, field


@dataclass
class Streams:
    """Two queues, each of which does one thing at a time, in order."""

    overlap: bool = True
    compute_end: float = 0.0
    exchange_end: float = 0.0
    compute_seconds: float = 0.0
    exchange_seconds: float = 0.0
    messages: dict = field(default_factory=dict)
    whole_bytes: dict = field(default_factory=dict)

    def compute(self, seconds, not_before=0.0):
        """Queues work that may start at `not_before`; returns its end."""
        self.compute_end = max(self.compute_end, not_before) + seconds
        self.compute_seconds += seconds
        return self.compute_end

    def exchange(self, collective, not_before):
        """Queues a collective that is started at `not_before`; returns its end."""
        kind, whole_bytes, seconds = collective
        start = max(self.exchange_end, not_before)
        if not self.overlap:
            start = max(start, self.compute_end)
        self.exchange_end = start + seconds
        self.exchange_seconds += seconds
        self.messages[kind] = self.messages.get(kind, 0) + 1
        self.whole_bytes[kind] = self.whole_bytes.get(kind, 0) + whole_bytes
        if not self.overlap:
            self.compute_end = self.exchange_end
        return self.exchange_end

    @property
    def end(self):
        return max(self.compute_end, self.exchange_end)


@dataclass(frozen=True)
class Work:
    """Seconds of computing: of one layer, and of the head with its loss, forward and backward."""

    forward: float
    backward: float  # with the forward pass again where it is recomputed
    head: float


@dataclass(frozen=True)
class UnitCollectives:
    """Collectives of `shard = "full"`: `(kind, bytes of the whole vector, seconds)` each."""

    gather_root: tuple
    gather_layer: tuple
    reduce_root: tuple
    reduce_layer: tuple


def full_round(streams, num_layers, work, collectives):
    """A round of `shard = "full"`: `work` is that of all its micro-batches together.

    A layer's gather starts when the layer before begins to compute. Two buffers of gradients exist, so a layer's backward
    pass waits for the reduction of the one before the last.
    """
    forward_pass(streams, num_layers, work.forward, collectives)
    streams.compute(work.head)
    reduced = [0.0, 0.0]
    ready = streams.compute_end
    for layer in reversed(range(num_layers)):
        start = max(streams.compute_end, ready, reduced[-2])
        if layer > 0:
            ready = streams.exchange(collectives.gather_layer, start)
        end = streams.compute(work.backward, start)
        reduced.append(streams.exchange(collectives.reduce_layer, end))
    streams.exchange(collectives.reduce_root, streams.compute_end)


def forward_pass(streams, num_layers, seconds, collectives):
    """Every unit once, in the order of the forward pass, and `seconds` of computing per layer. Without any, it is what
    gathers a model for a rollout."""
    begin = streams.compute_end
    root_ready = streams.exchange(collectives.gather_root, begin)
    ready = streams.exchange(collectives.gather_layer, begin)
    for layer in range(num_layers):
        start = max(streams.compute_end, ready, root_ready)
        if layer + 1 < num_layers:
            ready = streams.exchange(collectives.gather_layer, start)
        streams.compute(seconds, start)


def optimizer_pass(streams, num_layers, num_micro_batches, work, units, buckets, reduce):
    """The micro-batches of an update with `shard = "optimizer"`: buckets of gradients are reduced as the last backward
    pass completes them, last layers first and the root at the end.

    `units` are the elements of root and layer, `buckets` those of each bucket in the order of completion, `reduce(elements)`
    a collective.
    """
    one = num_layers * (work.forward + work.backward) + work.head
    streams.compute(one * (num_micro_batches - 1))
    streams.compute(num_layers * work.forward + work.head)
    root, layer = units
    pending, complete = list(reversed(buckets)), 0
    for index in range(num_layers):
        end = streams.compute(work.backward)
        complete += layer
        is_last = index + 1 == num_layers
        complete += root if is_last else 0
        while pending and (is_last or pending[-1] <= complete):
            size = pending.pop()
            complete -= size
            streams.exchange(reduce(size), end)
    streams.compute(0.0, streams.exchange_end)
