#!/usr/bin/env bash
# Train the same things with two states of the code and compare them bit for bit: what a change that is to change nothing
# must pass. Adapters, optimizer states, and every loss and gradient norm count.
#
#   bash scripts/same_bytes.sh COMMIT            COMMIT against the working tree
#   bash scripts/same_bytes.sh COMMIT COMMIT
#
# Exit code 1: a file differs; its name is printed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
[ $# -gt 0 ] || fail "which commit? bash scripts/same_bytes.sh COMMIT [COMMIT]"
use_venv ".[dev]"
export OMP_NUM_THREADS=1

place=$(mktemp -d)
trap 'rm -rf "$place"; git worktree prune' EXIT
after=$PWD
git worktree add --quiet --detach "$place/before" "$1"
if [ $# -gt 1 ]; then
  after=$place/after
  git worktree add --quiet --detach "$after" "$2"
fi

# The recipes and rows of this tree, the code of another.
trained_by() {
  local code=$1 runs=$2 mode optimizer
  export PYTHONPATH=$code
  local always=(--set adapter.dropout=0.2 --set model.dtype=float32 --set training.sample_rows=0 --quiet)
  for mode in lora dora qlora qdora full; do
    [ $mode = full ] && always=(--set model.dtype=float32 --set training.sample_rows=0 --quiet)
    for optimizer in adamw adamw_8bit; do
      dorakit train recipes/smoke/$mode.yaml "${always[@]}" --set optimizer.name=$optimizer --output "$runs/$mode-$optimizer" >/dev/null
    done
  done
  always=(--set adapter.dropout=0.2 --set training.sample_rows=0 --quiet)
  DORAKIT_FAILPOINT=step:3=kill9 dorakit train recipes/smoke/qdora.yaml "${always[@]}" --output "$runs/resumed" >/dev/null 2>&1 || true
  dorakit train --resume "$runs/resumed" --quiet >/dev/null
  dorakit train recipes/smoke/dora.yaml "${always[@]}" --nproc 2 --output "$runs/two-processes" >/dev/null
}

for side in before after; do
  [ $side = after ] && code=$after || code=$place/before
  mkdir "$place/runs-$side"
  trained_by "$code" "$place/runs-$side"
  python - "$place/runs-$side" >"$place/$side.txt" <<'PYTHON'
import hashlib, json, pathlib, sys

runs = pathlib.Path(sys.argv[1])
for run in sorted(runs.iterdir()):
    for file in sorted(run.rglob("*.safetensors")):
        print(hashlib.sha256(file.read_bytes()).hexdigest(), file.relative_to(runs))
    for entry in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for name in ("train/loss", "train/grad_norm", "validation/loss"):
            if name in entry:
                print(f"{float(entry[name]).hex()} {run.name} step {entry['step']} {name}")
PYTHON
done
grep -c . "$place/after.txt" | xargs printf '%s hashes and figures\n'
diff "$place/before.txt" "$place/after.txt" || { printf 'these differ\n'; exit 1; }
printf 'the same\n'
