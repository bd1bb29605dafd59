"""What the scripts in this folder share: starting the program, and looking at processes and run folders from outside.

Python 3 standard library only, Linux.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tiny

HIDDEN = ".partial-"
TIMEOUT_SECONDS = 600


def fail(text):
    sys.exit(f"error: {text}")


def run(command, log, **options):
    """Runs a command to its end, which must be a good one; returns the seconds."""
    began = time.monotonic()
    result = subprocess.run(command, stdout=log, stderr=log, timeout=TIMEOUT_SECONDS, check=False, **options)
    if result.returncode != 0:
        fail(f"`{' '.join(map(str, command))}` ended with {result.returncode}; see {log.name}")
    return time.monotonic() - began


def stage_command(stage, recipe, run_dir, sets=(), extra=()):
    """The program's arguments for a stage."""
    changes = [f'run_dir="{run_dir}"', *tiny.sets_of(recipe), *sets]
    return [stage, recipe, *(word for change in changes for word in ("--set", change)), *extra]


def metrics_without_timing(folder):
    """Lines as written, cut before their last key, which is `timing`."""
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    for line in lines:
        assert b',"timing":' in line, f"no timing in {line!r}"
    return [line.rsplit(b',"timing":', 1)[0] for line in lines]


def weights_digest(folder):
    return hashlib.sha256((folder / "checkpoints" / "latest" / "model.safetensors").read_bytes()).hexdigest()


def num_lines(folder):
    try:
        return len((folder / "metrics.jsonl").read_bytes().splitlines())
    except FileNotFoundError:
        return 0


def unreadable(folder):
    """Checkpoints under their own name whose files are not those of their manifest, and a dangling `latest`."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        return []
    bad = []
    for checkpoint in sorted(checkpoints.glob("step_*")):
        try:
            manifest = json.loads((checkpoint / "trainer" / "manifest.json").read_bytes())
            for name, expected in manifest["files"].items():
                content = (checkpoint / name).read_bytes()
                if len(content) != expected["size_bytes"] or f"{zlib.crc32(content):08x}" != expected["crc32"]:
                    raise ValueError(f"{name} differs from the manifest")
        except (OSError, ValueError, KeyError) as error:
            bad.append(f"{checkpoint.name}: {error}")
    latest = checkpoints / "latest"
    if latest.is_symlink() and not latest.exists():
        bad.append("latest: points nowhere")
    return bad


def litter(run_dir):
    """What only an unfinished run may leave: parts of checkpoints and of episode files."""
    names = ("/.partial-", "/.tmp", ".rank_")
    paths = (f"/{path.relative_to(run_dir)}" for path in run_dir.rglob("*"))
    return sorted(path for path in paths if any(name in path for name in names) and "/optimizer/rank_" not in path)


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The program's name, in parentheses, may hold anything.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


def environment(pid):
    """The environment that a process was started with; empty for one that is gone."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (word.decode(errors="replace").partition("=") for word in words if word)
    return {name: value for name, _, value in pairs}


def ranks_below(pid):
    """Process ids by rank among the children of a launcher."""
    found = ((environment(child).get("RANK"), child) for child in children(pid))
    return {int(rank): child for rank, child in found if rank is not None}


def wait_for(what, is_true, process=None, seconds=120):
    """Waits until something is so; False if the process ended first."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if process is not None and process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            fail(f"waited {seconds} s in vain for {what}")
        time.sleep(0.002)
    return True


def left_running(run_dir):
    """Processes that name the run folder, after those that were killed have had time to go."""
    deadline = time.monotonic() + 30
    while True:
        found = []
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(run_dir).encode() in cmdline.read_bytes() and int(cmdline.parent.name) != os.getpid():
                    found.append(int(cmdline.parent.name))
            except OSError:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)
