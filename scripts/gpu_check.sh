#!/usr/bin/env bash
# What only a machine with a CUDA GPU can show: the four adapter modes on it, a paged optimizer, and the tests there.
#
#   bash scripts/gpu_check.sh             in .venv, made if absent
#   bash scripts/gpu_check.sh --here      in the Python environment that is active, which has dorakit[dev] installed
#
# Exit codes: 0 all passed, 3 no GPU here, anything else a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

if [ "${1:-}" != --here ]; then
  command -v nvidia-smi >/dev/null || fail "no GPU here: nvidia-smi is not installed. Nothing was checked."
  use_venv ".[dev]"
  use_smollm2
fi
python - <<'PYTHON' || fail "no GPU here that torch can use. Nothing was checked."
import sys, torch
if not torch.cuda.is_available():
    print(f"torch {torch.__version__} sees no CUDA device", file=sys.stderr)
    sys.exit(1)
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16: {torch.cuda.is_bf16_supported()}")
PYTHON

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
train() { # NAME, then settings
  local name=$1
  shift
  local settings=()
  for setting in "$@"; do settings+=(--set "$setting"); done
  dorakit train recipes/quickstart.yaml --set "output_dir=$place/$name" --set training.max_steps=30 \
    "${settings[@]}" --quiet --json >"$place/$name.json"
}

for mode in lora dora qlora qdora; do
  printf '== %s on SmolLM2-135M: train, eval, merge, quantize\n' "$mode"
  train "$mode" "adapter.mode=$mode"
  dorakit eval "$place/$mode" --limit 16 --quiet
  dorakit merge "$place/$mode" --quiet
  dorakit quantize "$place/$mode" --quiet
done

for optimizer in paged_adamw_8bit paged_adamw_32bit; do
  printf '== %s: what pages\n' "$optimizer"
  train "$optimizer" "optimizer.name=$optimizer"
  python - "$place/$optimizer/run.json" <<'PYTHON'
import json, sys

notes = json.load(open(sys.argv[1]))["notes"]
print("\n".join(notes) or "no note: used as asked")
if any("using" in note for note in notes):
    sys.exit("error: the optimizer was replaced although there is a CUDA device")
PYTHON
done

# What no CPU can show of several processes: NCCL, CUDA streams, FSDP's prefetch, a share of the base on each card.
cards=$(python -c 'import torch; print(torch.cuda.device_count())')
if [ "$cards" -gt 1 ]; then
  for strategy in ddp fsdp; do
    for mode in dora qdora; do
      printf '== %s by %s on %s cards\n' "$mode" "$strategy" "$cards"
      dorakit train recipes/quickstart.yaml --nproc "$cards" --set "output_dir=$place/$strategy-$mode" --set training.max_steps=30 \
        --set "adapter.mode=$mode" --set "parallel.strategy=$strategy" --quiet
      dorakit eval "$place/$strategy-$mode" --limit 16 --quiet
    done
    printf '== full by %s on %s cards\n' "$strategy" "$cards"
    dorakit train recipes/smoke/full.yaml --nproc "$cards" --set "output_dir=$place/$strategy-full" \
      --set training.batch_size="$((4 * cards))" --set "parallel.strategy=$strategy" --quiet
  done
else
  printf '== one card: ddp and fsdp were not tried\n'
fi

printf '== tests that need a GPU\n'
python -m pytest -m gpu || [ $? -eq 5 ] # 5: no such tests
printf '== oracle tests\n'
python -m pytest tests/oracle -m "not slow"
printf 'GPU check passed\n'
