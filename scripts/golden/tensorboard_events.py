#!/usr/bin/env python3
"""Event files of TensorBoard: the bytes that ours must have, and a look at those of a run.

    python3 scripts/golden/tensorboard_events.py --write crates/metrics/tests/golden/events.out.tfevents.golden
    python3 scripts/golden/tensorboard_events.py --check RUN_DIR/grpo

`--write` makes the file that a test of the crate `metrics` compares with. `--check` reads the folder of a stage whose recipe says
`metrics = ["tensorboard"]` as TensorBoard does, and compares every number with `metrics.jsonl`: none is missing, twice or
different. Needs `pip install tensorboard==2.21.0`.
"""

import argparse
import json
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def write(path):
    value = Summary.Value
    summary = Summary(value=[value(tag="loss", simple_value=0.5), value(tag="timing/step_seconds", simple_value=1e-3)])
    events = [
        Event(wall_time=1.5, file_version="brain.Event:2"),
        Event(wall_time=2.5, step=300, session_log=SessionLog(status=SessionLog.START)),
        Event(wall_time=3.25, step=300, summary=summary),
    ]
    with open(path, "wb") as file:
        for event in events:
            RecordWriter(file).write(event.SerializeToString(deterministic=True))


def numbers(value, tag=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{tag}/{key}" if tag else key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield tag, struct.unpack("f", struct.pack("f", value))[0]


def check(stage):
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    expected = {}
    for line in lines:
        for tag, value in numbers(line):
            if tag != "step":
                expected.setdefault(tag, []).append((line["step"], value))
    # Without purging: the files themselves hold every step once.
    events = EventAccumulator(str(stage / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    wrong = sorted(tag for tag in expected.keys() | found.keys() if expected.get(tag) != found.get(tag))
    print(json.dumps({"lines": len(lines), "tags": len(found), "wrong": wrong}))
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", type=pathlib.Path, metavar="FILE")
    task.add_argument("--check", type=pathlib.Path, metavar="STAGE_DIR")
    arguments = parser.parse_args()
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        write(arguments.write)
    elif not check(arguments.check):
        sys.exit(1)


if __name__ == "__main__":
    main()
