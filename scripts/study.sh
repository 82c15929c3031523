#!/usr/bin/env bash
# The study of docs/study.md, in pieces that survive interruption: the same command goes on, and what is finished is not run again.
#
#   bash scripts/study.sh --data DIR                 everything, hours
#   bash scripts/study.sh --data DIR pilot rates     these pieces only: pilot rates scale ranks analysis quantized beams
#   bash scripts/study.sh --quick [--data DIR]       the same pieces cut short: proves that they run, says nothing
#   ... --output PLACE                               instead of runs/study (runs/study-quick)
#
# DIR holds math/{math_data.train,AddSub.test}.json, commonsense/{boolq,openbookqa,ARC-Easy}.{train,test}.json and
# commonsense/winogrande.test.json. Without it the study is of the quickstart's own rows.
set -euo pipefail
cd "$(dirname "$0")/.."

quick="" data="" output="" pieces=()
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=yes ;;
    --data) data=$(cd "$2" && pwd); shift ;;
    --output) output=$2; shift ;;
    pilot | rates | scale | ranks | analysis | quantized | beams) pieces+=("$1") ;;
    *) printf 'error: %s: no such option or piece; see the head of %s\n' "$1" "$0" >&2; exit 2 ;;
  esac
  shift
done
source scripts/venv.sh
use_venv "."
use_smollm2
[ ${#pieces[@]} -gt 0 ] || pieces=(pilot rates scale ranks analysis quantized beams)
output=${output:-runs/study${quick:+-quick}}

tasks=(orders) main=recipes/study/orders.yaml at=()
if [ -n "$data" ]; then
  tasks=(math boolq openbookqa arc-easy) main=recipes/study/math.yaml at=(--set "data.root=$data")
fi
adapter_rates=1e-3,3e-3,3e-4 best_rate=3e-3 full_rates=1e-4,3e-4,3e-5 best_full=1e-4 ranks=8,4,64,32 seeds=3 beam_rows=200 sentences=100
if [ -n "$quick" ]; then
  adapter_rates=1e-3 best_rate=1e-3 full_rates=1e-4 ranks=4 seeds=2 beam_rows=2 sentences=4
  at+=(--set training.max_steps=2 --set evaluation.limit=8 --set optimizer.warmup_ratio=0)
fi

# What was forgotten is the rise of the loss on a text that has nothing to do with word problems: 100 sentences of WinoGrande, filled in.
general=()
if [ -n "$data" ]; then
  mkdir -p "$output"
  python - "$data/commonsense/winogrande.test.json" "$sentences" > "$output/general.txt" <<'PYTHON'
import json, re, sys

for row in json.load(open(sys.argv[1], encoding="utf-8"))[: int(sys.argv[2])]:
    sentence, first, second = re.search(r"sentence: (.*?)\n\nOption1: (.*?) Option2: (.*?) Answer", row["instruction"], re.S).groups()
    print(sentence.replace("_", {"option1": first, "option2": second}[row["answer"]]), end="\n\n")  # a paragraph is a row
PYTHON
  general=(--general "$output/general.txt")
fi

compare() { # PLACE RECIPE [OPTION...]
  local place=$output/$1 recipe=$2
  shift 2
  printf '\n== %s\n' "$place"
  dorakit compare "$recipe" --output "$place" "${at[@]}" "$@"
}

for piece in "${pieces[@]}"; do
  case $piece in
    pilot) # which task shows learning at all: LoRA against the base
      for task in "${tasks[@]}"; do
        compare "pilot-$task" "recipes/study/$task.yaml" --modes lora
        for run in "$output/pilot-$task"/lora-*/; do
          [ -f "$run/eval/base.json" ] || dorakit eval "$run" --base --output "$run/eval/base.json"
        done
      done
      ;;
    rates) # every method at three learning rates with one seed, then at the rate with the least validation loss with all
      compare rates-adapters "$main" --modes lora,dora,qlora,qdora --learning-rates "$adapter_rates" --seeds 1 "${general[@]}"
      compare rates-full "$main" --modes full --learning-rates "$full_rates" --seeds 1 "${general[@]}"
      compare rates-adapters "$main" --modes lora,dora,qlora,qdora --learning-rates "$best_rate" --seeds "$seeds" "${general[@]}"
      compare rates-full "$main" --modes full --learning-rates "$best_full" --seeds "$seeds" "${general[@]}"
      ;;
    scale) # QLoRA with the scale that Answer.AI's comparison gave it: s = 16 / 64, where QDoRA had 1
      compare scale "$main" --modes qlora --learning-rates "$adapter_rates" --seeds 1 --set adapter.alpha=4
      compare scale "$main" --modes qlora --learning-rates "$best_rate" --seeds "$seeds" --set adapter.alpha=4
      ;;
    ranks) # rank robustness; rank 16 is in rates
      compare ranks "$main" --modes lora,dora --ranks "$ranks"
      ;;
    analysis) # how far length and direction of each matrix moved, over the checkpoints of one run each
      often=(--set training.save_every=8 --set training.keep_checkpoints=8 --set optimizer.name=adamw_8bit)
      compare analysis "$main" --modes lora,dora "${often[@]}"
      compare analysis "$main" --modes full --learning-rates "$best_full" "${often[@]}"
      dorakit analyze "$output"/analysis/*-seed42
      ;;
    quantized) # what merging and quantizing leave of a QDoRA; needs the piece rates
      python scripts/merged_and_quantized.py "$output/rates-adapters/qdora-r16-lr0.001-seed42" "$output/quantized"
      ;;
    beams) # the papers' own scoring on the first rows of each commonsense task, beside the likelihood; needs the piece pilot
      [ -n "$data" ] || printf 'beams: the tasks need --data\n'
      for task in ${data:+boolq openbookqa ARC-Easy}; do
        run=$(echo "$output/pilot-${task,,}"/lora-*/)
        for scoring in beam logprob; do
          dorakit eval "$run" --task "$task" --scoring "$scoring" --data "$data/commonsense" --limit "$beam_rows" \
            --output "$run/eval/$task-$scoring.json"
        done
      done
      ;;
  esac
done
python scripts/study_tables.py "$output"
