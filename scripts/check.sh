#!/usr/bin/env bash
# Everything about the source that a machine can judge: format, lint, types, recipes, what is generated.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
use_venv ".[dev]"

printf '== format\n' && ruff format --check .
printf '== lint\n' && ruff check .
printf '== types\n' && mypy
printf '== recipes\n' && find recipes -name '*.yaml' -print0 | sort -z | xargs -0 dorakit validate --twin
printf '== generated pages\n'
python scripts/generate_docs.py --check || fail "these are not what the code says; python scripts/generate_docs.py"
printf 'all checks passed\n'
