#!/usr/bin/env bash
# Writes the two locks from pyproject.toml. Both hold for every Python we support: markers say what differs.
# torch is in neither: PyPI's Linux build brings 4 GB of CUDA along, and no CPU test needs it. `make setup-dev` installs it first.
set -euo pipefail
cd "$(dirname "$0")/.."
without_torch=$(mktemp)
trap 'rm -f "$without_torch"' EXIT
printf "torch; sys_platform == 'never'\ntorchvision; sys_platform == 'never'\n" >"$without_torch"
compile() {
  local out=$1
  shift
  uv pip compile --quiet --universal --python-version 3.11 --override "$without_torch" \
    --no-emit-package torch --no-emit-package torchvision \
    --custom-compile-command requirements/lock.sh "$@" --output-file "$out" pyproject.toml
}
compile requirements/runtime.txt --extra test --extra book --extra small "$@"
compile requirements/dev.txt --extra test --extra book --extra small --extra eval --extra oracles "$@"
