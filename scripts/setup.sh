#!/usr/bin/env bash
# Makes a fresh checkout ready to build: checks the tools and fetches libtorch into third_party/. Safe to run again.
#
#   scripts/setup.sh [--cuda | --cpu]
#
# --cuda also fetches the CUDA libraries (about 4 GB on disk), --cpu leaves them out; the default is --cuda where
# `nvidia-smi` finds a GPU. Both fetch the headers of NCCL, of whose 200 MB only these 0.5 MB are kept by --cpu, and the
# CUDA compiler (150 MB on disk): what works on GPUs is compiled everywhere and runs where the libraries are. A libtorch
# named by LIBTORCH in the environment is used as it is and nothing is fetched.
set -euo pipefail

readonly TORCH_VERSION=2.11.0
# The libtorch of the PyPI wheel does not depend on the Python that fetches it; any supported version will do.
readonly WHEEL_PYTHON=3.12
# Beside libtorch itself: what `libtorch_cpu.so` is linked with, and headers for the CUDA side of the build.
readonly COMPANIONS=("nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*" "nvidia-cuda-crt==13.0.*")
# Headers that those of CUDA include.
readonly CUDA_CORE="nvidia-cuda-cccl==13.0.*"
# The compiler of the CUDA kernels.
readonly NVCC=("nvidia-cuda-nvcc==13.0.*" "nvidia-nvvm==13.0.*")
readonly PIP_TARGET_OPTIONS=(--only-binary=:all: --implementation cp --python-version "$WHEEL_PYTHON")

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly target="$root/third_party/libtorch"

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'error: %s\n' "$1" >&2
  if [ $# -gt 1 ]; then printf '\nhint: %s\n' "$2" >&2; fi
  exit 1
}

kind=""
for argument in "$@"; do
  case "$argument" in
    --cuda) kind=cuda ;;
    --cpu) kind=cpu ;;
    *) fail "unknown argument \`$argument\`" "usage: scripts/setup.sh [--cuda | --cpu]" ;;
  esac
done

check_rust() {
  command -v cargo >/dev/null ||
    fail "cargo is not installed" "install Rust from https://rustup.rs, then open a new shell"
  local wanted version
  wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml")
  # Run inside the checkout: rustup reads rust-toolchain.toml there, and may fetch that toolchain now.
  version=$(cd "$root" && rustc --version) ||
    fail "the Rust toolchain of rust-toolchain.toml cannot be used" "run \`rustup toolchain install\` in $root"
  version=$(printf '%s' "$version" | cut -d' ' -f2)
  [ "$(printf '%s\n' "$wanted" "$version" | sort -V | head -n 1)" = "$wanted" ] ||
    fail "Rust $version is too old: $wanted is needed" "run \`rustup update\`, or install from https://rustup.rs"
}

check_compiler() {
  local folder
  folder=$(mktemp -d)
  printf '#include <omp.h>\n#include <optional>\nint main() { return std::optional<int>(omp_get_max_threads()).value() < 1; }\n' \
    >"$folder/check.cpp"
  if ! "${CXX:-c++}" -std=c++17 -fopenmp "$folder/check.cpp" -o "$folder/check" 2>"$folder/log"; then
    cat "$folder/log" >&2
    rm -rf "$folder"
    fail "\`${CXX:-c++}\` cannot compile C++17 with OpenMP" "install a C++ compiler, on Debian and Ubuntu: sudo apt-get install g++"
  fi
  rm -rf "$folder"
}

check_pip() {
  command -v python3 >/dev/null ||
    fail "python3 is not installed; it fetches libtorch" "on Debian and Ubuntu: sudo apt-get install python3-pip"
  python3 -m pip --version >/dev/null 2>&1 ||
    fail "python3 has no pip; it fetches libtorch" "on Debian and Ubuntu: sudo apt-get install python3-pip"
}

# What is in $target, as the last run wrote it; nothing if there was none or it did not finish.
installed() { cat "$target/.asyncthink-setup" 2>/dev/null || true; }

# Fetches wheels into the folder $1: the options and requirements that follow.
pip_into() {
  export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
  python3 -m pip install "${PIP_TARGET_OPTIONS[@]}" --target "$@"
}

fetch() {
  local new="$target.new.$$"
  # shellcheck disable=SC2064  # the folder's name is wanted as it is now
  trap "rm -rf '$new'" EXIT
  mkdir -p "$new"
  pip_into "$new/wheels" --no-deps "torch==$TORCH_VERSION" "${COMPANIONS[@]}" ||
    fail "pip could not fetch libtorch" "check the network; or set LIBTORCH to a folder with libtorch $TORCH_VERSION"
  if [ "$kind" = cuda ]; then
    # The libraries that this very torch names, without its Python packages.
    local metadata="$new/wheels/torch-$TORCH_VERSION.dist-info/METADATA" requirements
    mapfile -t requirements < <(sed -n 's/^Requires-Dist: \(\(nvidia-\|cuda-toolkit\)[^;]*\);.*/\1/p' "$metadata")
    pip_into "$new/cuda" "${requirements[@]}" ||
      fail "pip could not fetch the CUDA libraries" "check the network and disk space, or use --cpu"
    cp -r "$new/cuda/nvidia/." "$new/wheels/nvidia/"
    rm -rf "$new/cuda"
  fi

  # Only headers and libraries are used; licences stay with them.
  mkdir -p "$new/keep/torch"
  mv "$new/wheels/torch/include" "$new/wheels/torch/lib" "$new/keep/torch/"
  mv "$new/wheels/nvidia" "$new/wheels"/*.dist-info "$new/keep/"
  rm -f "$new/keep/torch/lib/libtorch_python.so"
  # Read by torch-sys, which refuses a version that it was not made for.
  printf '%s\n' "$TORCH_VERSION" >"$new/keep/torch/build-version"
  printf '%s %s\n' "$TORCH_VERSION" "$kind" >"$new/keep/.asyncthink-setup"
  rm -rf "$target"
  mv "$new/keep" "$target"
}

# Adds to $target the headers by which collectives between GPUs are compiled, where they are missing: also to what an
# earlier version of this script has fetched.
add_nccl_headers() {
  local nvidia="$target/nvidia" new="$target.headers.$$" wanted=()
  # The version with which this very torch was compiled: sizes of its structures depend on it.
  local metadata="$target/torch-$TORCH_VERSION.dist-info/METADATA" nccl
  nccl=$(sed -n 's/^Requires-Dist: \(nvidia-nccl-cu13[^;]*\);.*/\1/p' "$metadata")
  if [ ! -e "$nvidia/nccl/include" ]; then wanted+=("$nccl"); fi
  if [ ! -e "$nvidia/cu13/include/nv" ]; then wanted+=("$CUDA_CORE"); fi
  if [ ${#wanted[@]} = 0 ]; then return; fi
  check_pip
  # shellcheck disable=SC2064  # the folder's name is wanted as it is now
  trap "rm -rf '$new'" EXIT
  say "fetching headers of ${wanted[*]}"
  if ! pip_into "$new" --no-deps "${wanted[@]}"; then
    say "pip could not fetch them; the build leaves collectives between GPUs out"
    return
  fi
  # Licences first. Each folder is moved as a whole, so that what is there is complete.
  cp -r "$new"/*.dist-info "$target/"
  mkdir -p "$nvidia/nccl"
  local folder
  for folder in nccl/include cu13/include/cccl cu13/include/nv; do
    if [ -e "$new/nvidia/$folder" ] && [ ! -e "$nvidia/$folder" ]; then mv "$new/nvidia/$folder" "$nvidia/$folder"; fi
  done
  rm -rf "$new"
}

# Adds the CUDA compiler to $target where it is missing: also to what an earlier version of this script has fetched.
add_nvcc() {
  local cuda="$target/nvidia/cu13" new="$target.nvcc.$$"
  if [ -e "$cuda/bin/nvcc" ]; then return; fi
  check_pip
  # shellcheck disable=SC2064  # the folder's name is wanted as it is now
  trap "rm -rf '$new'" EXIT
  say "fetching ${NVCC[*]}"
  if ! pip_into "$new" --no-deps "${NVCC[@]}"; then
    say "pip could not fetch them; the build leaves the CUDA kernels out"
    return
  fi
  cp -r "$new"/*.dist-info "$target/"
  # The linker of device code and what embeds files are not used.
  rm -f "$new/nvidia/cu13/bin"/{nvlink,bin2c,__nvcc_device_query}
  cp "$new/nvidia/cu13/include"/*.h "$cuda/include/"
  rm -rf "$cuda/nvvm"
  mkdir -p "$cuda/nvvm"
  mv "$new/nvidia/cu13/nvvm"/{bin,libdevice} "$cuda/nvvm/"
  # Last and as a whole: the compiler is there if all that it needs is.
  mv "$new/nvidia/cu13/bin" "$cuda/bin"
  rm -rf "$new"
}

check_rust
check_compiler

if [ -n "${LIBTORCH:-}" ]; then
  [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] ||
    fail "LIBTORCH is \`$LIBTORCH\`, which has no lib/libtorch_cpu.so" "unset LIBTORCH to let setup fetch libtorch $TORCH_VERSION"
  say "using libtorch in $LIBTORCH (from LIBTORCH)"
  exit 0
fi

if [ -z "$kind" ]; then
  kind=cpu
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then kind=cuda; fi
fi
case "$(installed)" in
  "$TORCH_VERSION $kind" | "$TORCH_VERSION cuda") say "libtorch $TORCH_VERSION is in third_party/libtorch" ;;
  *)
    [ "$(uname -sm)" = "Linux x86_64" ] ||
      fail "libtorch is fetched for Linux on x86-64 only" "set LIBTORCH to a folder with libtorch $TORCH_VERSION"
    check_pip
    say "fetching libtorch $TORCH_VERSION ($kind) into third_party/libtorch"
    fetch
    ;;
esac
add_nccl_headers
add_nvcc
say "ready: cargo build, cargo test and cargo run work with nothing exported"
