#!/usr/bin/env bash
# Measure dorakit against TRL + PEFT, a bare PEFT loop, lm-eval and transformers' generate, on the same rows.
#
#   bash scripts/bench/run.sh [--data DIR] [--output DIR] [--quick | --toy] [bench.py's other options]
#
#   --data DIR    holds ARC-Easy.train.json and ARC-Easy.test.json (AGI-Edgerunners/LLM-Adapters, dataset/ARC-Easy/);
#                 without it, made rows of the same form are used: the ratios are those of made rows
#   --quick       one round of two timed steps
#   --toy         a tiny random model, one round: checks that the benchmark runs, its figures mean nothing
#
# The peers get an environment of their own, .venv-bench. Nothing else should run on the machine: two threads beside
# another process wait for each other, and the figures then show that.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/venv.sh

data= output=bench-results options=()
while [ $# -gt 0 ]; do
  case $1 in
    --data) data=$2; shift 2 ;;
    --output) output=$2; shift 2 ;;
    --quick) options+=(--rounds 1 --steps 3); shift ;;
    --toy) options+=(--toy --rounds 1 --steps 2); shift ;;
    *) options+=("$1"); shift ;;
  esac
done

use_venv ".[dev]"
use_smollm2
if [ ! -f .venv-bench/installed ]; then
  "${PYTHON:-python3}" -m venv .venv-bench
  .venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c "$CONSTRAINTS" \
    torch transformers peft trl==1.16.0 lm_eval==0.4.13 datasets matplotlib
  touch .venv-bench/installed
fi
[ -n "$data" ] || printf 'no --data: made rows of the form of ARC-Easy are used\n' >&2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} TOKENIZERS_PARALLELISM=false
exec .venv-bench/bin/python scripts/bench/bench.py --ours .venv/bin/python --peers .venv-bench/bin/python \
  --data "$data" --output "$output" "${options[@]}"
