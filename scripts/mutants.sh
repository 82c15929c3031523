#!/usr/bin/env bash
# Plant the bugs of tests/mutants.toml one at a time in a copy of the tree, and see that the tests named for them fail.
#
#   bash scripts/mutants.sh                     all of them, minutes
#   bash scripts/mutants.sh --quick             the first one of every promise
#   bash scripts/mutants.sh --only NAME         one, or several: --only NAME NAME
#   bash scripts/mutants.sh --list              what there is; runs nothing
#   bash scripts/mutants.sh --jobs 4            so many at a time; 2 if not said
#
# Exit code 1: a bug was not noticed, a text to be replaced is no longer there exactly once, or a named test fails as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
use_venv ".[dev]"
export OMP_NUM_THREADS=1
exec python scripts/mutants.py "$@"
