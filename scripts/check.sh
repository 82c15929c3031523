#!/usr/bin/env bash
# Everything about the source that a machine can judge: format, lint, types, recipes, the recipe schema.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
use_venv ".[dev]"

printf '== format\n' && ruff format --check .
printf '== lint\n' && ruff check .
printf '== types\n' && mypy
printf '== recipes\n' && find recipes -name '*.yaml' -print0 | sort -z | xargs -0 dorakit validate
printf '== recipe schema\n'
dorakit schema | diff -u recipes/schema.json - || fail "recipes/schema.json is not what the code says; dorakit schema > recipes/schema.json"
printf 'all checks passed\n'
