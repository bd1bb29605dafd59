#!/usr/bin/env bash
# From a fresh checkout to a trained organizer-worker model: setup, build, cold-start traces, format fine-tuning,
# policy optimisation, and a comparison of the model before and after.
#
#   scripts/quickstart.sh [KEY=VALUE ...]
#
# Each KEY=VALUE changes a value of the recipe, as `--set KEY=VALUE` does. Every stage keeps what an earlier call
# finished and goes on from its last checkpoint if it was stopped, so the script may be stopped and called again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly recipe=recipes/quickstart/mcd.toml
readonly binary="${CARGO_TARGET_DIR:-target}/release/asyncthink-train"

settings=()
run_dir=runs/quickstart
for argument in "$@"; do
  case "$argument" in
    run_dir=*) run_dir=${argument#run_dir=} ;;&
    *=*) settings+=(--set "$argument") ;;
    *)
      # shellcheck disable=SC2016  # the backticks are text
      printf 'error: unknown argument `%s`\n\nhint: usage: scripts/quickstart.sh [KEY=VALUE ...]\n' "$argument" >&2
      exit 2
      ;;
  esac
done

clock() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }
title() { printf '\n== [%s] %s\n' "$(clock "$SECONDS")" "$*"; }

title "Setup"
scripts/setup.sh

title "Build (about 8 minutes on two cores the first time)"
cargo build --locked --release --package asyncthink-cli

title "1/4 Problems and cold-start traces"
"$binary" synth "$recipe" "${settings[@]}"

title "2/4 Format fine-tuning (SFT)"
"$binary" sft "$recipe" "${settings[@]}"

title "3/4 Policy optimisation (GRPO)"
"$binary" grpo "$recipe" "${settings[@]}"

title "4/4 Evaluation on problems with unseen targets, before and after GRPO"
"$binary" eval "$recipe" "${settings[@]}"

printf '\ntry it:\n  %s think --model %s "3 7 8 12 15 = 022"\n' "$binary" "$run_dir"
printf '\ntotal time: %s\n' "$(clock "$SECONDS")"
