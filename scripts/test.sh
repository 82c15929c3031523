#!/usr/bin/env bash
# Install what the tests need and run them. The first time this makes .venv; after that it is reused.
#
#   bash scripts/test.sh                the fast suite
#   bash scripts/test.sh --slow         everything that needs no GPU, the real model included
#   bash scripts/test.sh --faults       crashes, full disks, damaged files, hostile input; ends with the fault matrix
#   bash scripts/test.sh --distributed  several processes that train together
#   bash scripts/test.sh -k dora        anything else goes to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

selection="not slow and not gpu and not faults and not distributed"
# Two processes; `-n 0` makes it one.
arguments=(-n 2 --dist worksteal)
for argument in "$@"; do
  case $argument in
    # One at a time: some of these measure, and a real model fills the memory.
    --slow) selection="not gpu" arguments=(-n 0) ;;
    --faults) selection="faults" ;;
    --distributed) selection="distributed" ;;
    *) arguments+=("$argument") ;;
  esac
done

use_venv ".[dev]"
use_smollm2
# The suite's models are tiny: more threads only get in each other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest -m "$selection" "${arguments[@]}"
