#!/usr/bin/env bash
# All checks, from cheap to expensive: formatting, lints, the torch-free half, documentation, tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== [%dm%02ds] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }

step "setup"
scripts/setup.sh

step "formatting"
cargo fmt --all --check

step "crates without libtorch"
for crate in files protocol tasks recipe data coldstart launch metrics; do
  # Listed first: a failure of cargo must not look like an empty list.
  tree=$(cargo tree --locked --package "asyncthink-$crate" --edges normal,build,dev --prefix none)
  if grep -E '^(tch|torch-sys|asyncthink-torch) ' <<<"$tree"; then
    printf 'error: asyncthink-%s must not depend on libtorch\n' "$crate" >&2
    exit 1
  fi
  printf 'asyncthink-%s: no libtorch\n' "$crate"
done

step "structure of the crates"
scripts/check/structure.py --tasks

step "lints"
cargo clippy --locked --workspace --all-targets -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

step "scripts"
python3 -m unittest discover --start-directory scripts/check --pattern 'test_*.py'
python3 -m unittest discover --start-directory scripts/scaling --pattern 'test_*.py'

step "building the tests"
cargo test --locked --workspace --no-run
# The program that the end-to-end tests run, as they build it: nothing is left to compile while they run.
cargo build --locked --package asyncthink-cli --package asyncthink-tests

step "tests"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$log" || status=$?
step "done"
awk '/^test result: / { passed += $4; failed += $6 } END { printf "%d passed, %d failed\n", passed, failed }' "$log"
exit "$status"
