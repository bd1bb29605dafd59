#!/usr/bin/env bash
# From a fresh checkout to a trained organizer-worker model: setup, build, cold-start traces, format fine-tuning,
# policy optimisation, and a comparison of the model before and after.
#
#   scripts/quickstart.sh [KEY=VALUE ...]
#
# Each KEY=VALUE changes a value of the recipe, as `--set KEY=VALUE` does. What an earlier call with the same recipe
# and values finished is reused, and a stage that was stopped goes on from its last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly recipe=recipes/quickstart/mcd.toml
readonly binary=target/release/asyncthink-train

run_dir=$(sed -n 's/^run_dir *= *"\(.*\)"/\1/p' "$recipe")
settings=()
for argument in "$@"; do
  case "$argument" in
    --set) continue ;;
    run_dir=*) run_dir=${argument#run_dir=} run_dir=${run_dir//\"/} ;;
    *=*) ;;
    *)
      # shellcheck disable=SC2016  # the backticks are text
      printf 'error: unknown argument `%s`\n\nhint: usage: scripts/quickstart.sh [KEY=VALUE ...]\n' "$argument" >&2
      exit 2
      ;;
  esac
  settings+=(--set "$argument")
done

clock() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }
title() { printf '\n== [%s] %s\n' "$(clock "$SECONDS")" "$*"; }

# stage NAME TITLE COMMAND...: runs the command unless an earlier call finished it with the same recipe and values.
# A stage that runs makes those after it run again.
stage() {
  local name=$1 text=$2 started=$SECONDS mark="$run_dir/.quickstart/$1"
  shift 2
  if [ "$reuse" = yes ] && [ "$(cat "$mark" 2>/dev/null)" = "$fingerprint" ]; then
    title "$text: done by an earlier call"
    return
  fi
  reuse=no
  title "$text"
  mkdir -p "$run_dir/.quickstart"
  rm -f "$mark"
  "$@"
  printf '%s\n' "$fingerprint" >"$mark"
  printf '%s took %s\n' "$name" "$(clock $((SECONDS - started)))"
}

# evaluate NAME ARGUMENT...: keeps the table for the end.
evaluate() {
  local name=$1
  shift
  "$binary" eval "$recipe" "${settings[@]}" "$@" | tee "$run_dir/.quickstart/$name.txt.part"
  mv "$run_dir/.quickstart/$name.txt.part" "$run_dir/.quickstart/$name.txt"
}

title "Setup"
scripts/setup.sh

title "Build"
cargo build --locked --release --package asyncthink-cli

fingerprint=$(cat "$recipe" - <<<"${settings[*]}" | cksum)
reuse=yes
readonly sft_model="$run_dir/sft/checkpoints/latest"
readonly grpo_model="$run_dir/grpo/checkpoints/latest"
stage synth "Cold-start traces" "$binary" synth "$recipe" "${settings[@]}"
stage sft "Format fine-tuning (SFT)" "$binary" sft "$recipe" "${settings[@]}" --resume auto
stage eval-sft "Evaluation before GRPO" evaluate eval-sft --set "model.path=\"$sft_model\""
stage grpo "Policy optimisation (GRPO)" "$binary" grpo "$recipe" "${settings[@]}" --resume auto
stage eval-grpo "Evaluation after GRPO" evaluate eval-grpo --set "model.path=\"$grpo_model\""

title "Before GRPO"
cat "$run_dir/.quickstart/eval-sft.txt"
title "After GRPO"
cat "$run_dir/.quickstart/eval-grpo.txt"
printf '\ntotal time: %s\ntrained model: %s\n' "$(clock "$SECONDS")" "$grpo_model"
