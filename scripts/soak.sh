#!/usr/bin/env bash
# Kill one tiny run again and again (kill -9), resume it each time, and compare its end with that of a run nobody touched.
#
#   bash scripts/soak.sh [CYCLES] [SEED]        default: 200 cycles, seed 0
#
# Half of the kills come from outside at a random time, half from a failpoint inside a save. Exit 1 if a byte differs.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
use_venv ".[dev]"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
exec python scripts/soak.py "${1:-200}" "${2:-0}"
