"""Our side of comparisons of training: `asyncthink-train bench train` and `bench step` on a folder of weights."""

import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "target/release/asyncthink-train"
# Any recipe of the bench will do: its model and workload are replaced.
RECIPE = ROOT / "recipes/bench/nano.toml"


def run_bench(name, arguments, model, workload):
    """One measured repeat in a process of its own: the line that it prints."""
    sets = [f"bench.{name}.{key}={json.dumps(value)}" for key, value in workload.items()]
    sets += [f"model={{ path = {json.dumps(str(model))} }}", f"num_threads={arguments.threads}", f"device={arguments.device}"]
    if arguments.dtype != "f32":
        sets += [f"precision.compute={arguments.dtype}"]
    sets += arguments.set
    command = [str(arguments.binary), "bench", name, str(RECIPE)]
    for one in sets:
        command += ["--set", one]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout)


def make_model(arguments, scratch, python):
    """The folder of the weights: the one that was given, or a new one of a shape, in f32 as training holds it."""
    if arguments.model is not None:
        return arguments.model
    folder = pathlib.Path(scratch) / arguments.shape
    command = [python, str(ROOT / "scripts/bench/make_model.py"), "--shape", arguments.shape, "--dtype", "f32",
               "--device", arguments.device, "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def add_arguments(parser):
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=pathlib.Path, metavar="DIR")
    model.add_argument("--shape", help="random weights of a shape of make_model.py")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16: autocast there, `precision.compute` here")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further keys of our recipe")
    parser.add_argument("--binary", type=pathlib.Path, default=BINARY)
