#!/usr/bin/env bash
# Every smoke recipe through the whole life of an adapter, with the command line that users have:
# validate, train, eval with and without the adapter, generate, merge, quantize. Seconds each; see docs/ci.md.
#
#   bash scripts/smoke.sh [RECIPE...]       default: recipes/smoke/*.yaml
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
use_venv ".[dev]"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
[ $# -gt 0 ] || set -- recipes/smoke/*.yaml

through_its_life() {
  local recipe=$1 name start run merged quantized
  name=$(basename "$recipe" .yaml)
  start=$SECONDS
  dorakit validate "$recipe"
  run=$(dorakit train "$recipe" --output "$place/$name" --quiet)
  dorakit eval "$run" --quiet --json >"$place/$name.eval.json"
  dorakit generate "$run" --prompt "4 red chairs for Ada in Oslo" --max-new-tokens 4 --quiet >/dev/null
  if [ "$name" != full ]; then # full fine-tuning leaves a plain model: there is no base to go back to, nothing to merge
    dorakit eval "$run" --base --quiet >/dev/null
    merged=$(dorakit merge "$run" --quiet)
    dorakit eval "$merged" --quiet >/dev/null
  fi
  quantized=$(dorakit quantize "$run" --quiet)
  dorakit eval "$quantized" --quiet >/dev/null
  printf '%s: done in %d s\n' "$recipe" $((SECONDS - start))
}

# Two at a time: a thread each, and most of a command is its start.
export -f through_its_life
export place
printf '%s\0' "$@" | xargs -0 -n 1 -P 2 bash -euo pipefail -c 'through_its_life "$1"' smoke
