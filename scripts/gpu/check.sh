#!/usr/bin/env bash
# Checks a build on a GPU: correctness, training, speed. Needs no Rust and nothing fetched.
#
#   ASYNCTHINK_TRAIN=target/release/asyncthink-train OUT=gpu-check scripts/gpu/check.sh
#   scripts/gpu/check.sh --cpu     the same parts in tiny sizes, on a machine without a GPU
#
# ASYNCTHINK_TRAIN: the program; default `target/release/asyncthink-train` of this checkout.
# PYTHON: a Python with torch 2.11, safetensors and transformers; default `python3`. Its libtorch is the one that the program runs on.
# OUT: folder for `check.jsonl` (a line for each part as it ends), `check.json` (summary) and `check.log`; default `gpu-check`.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
libraries=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")') || {
    echo "error: \`$python\` has no torch; name one that has as PYTHON" >&2
    exit 2
}
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export ASYNCTHINK_TRAIN=${ASYNCTHINK_TRAIN:-$root/target/release/asyncthink-train} OUT=${OUT:-gpu-check}
exec "$python" "$root/scripts/gpu/check.py" "$@"
