"""Our side of comparisons of rollouts: `asyncthink-train bench rollout` on a folder of weights."""

import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "target/release/asyncthink-train"
# Any recipe of the bench will do: its model and workload are replaced.
RECIPE = ROOT / "recipes/bench/nano.toml"


def run_rollout(arguments, model):
    """One measured rollout in a process of its own: the line that it prints."""
    rollout = {
        "num_prompts": arguments.num_prompts, "group_size": arguments.group, "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens, "share_prompts": arguments.share_prompts, "temperature": arguments.temperature,
        "num_repeats": 1,
    }
    sets = [f"bench.rollout.{key}={json.dumps(value)}" for key, value in rollout.items()]
    sets += [f"model={{ path = {json.dumps(str(model))} }}", f"num_threads={arguments.threads}", f"device={arguments.device}"]
    if arguments.dtype != "f32":
        sets.append(f"engine.dtype={arguments.dtype}")
    sets += arguments.set
    command = [str(arguments.binary), "bench", "rollout", str(RECIPE)]
    for one in sets:
        command += ["--set", one]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout)
