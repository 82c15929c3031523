#!/usr/bin/env bash
# The fast suite with the oldest and with the newest versions that pyproject.toml allows. CI runs the pinned set between them.
#
#   bash scripts/test-versions.sh                       both ends, one after the other
#   bash scripts/test-versions.sh oldest                one end
#   bash scripts/test-versions.sh newest tests/oracle   what follows goes to pytest
#
# oldest: every package that pyproject.toml names at its lower bound, and what these need as new as they let it be.
# newest: the newest of all that goes together.
# Environments are .venv-oldest and .venv-newest, made anew when pyproject.toml changes. torch is installed by pip, so that an
# index or a directory with CPU builds that pip is set up for serves; from the default index it comes with CUDA, several GB.
# TORCH=2.13.0 takes that one at either end.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

environment() { # END: make .venv-END, unless it is there and made from this pyproject.toml
  local place=.venv-$1 resolution=highest torch
  torch=$(grep -o '"torch>=[^",]*' pyproject.toml | tr -d '"')
  if [ "$1" = oldest ]; then
    resolution=lowest-direct
    torch=${torch/>=/==}
  fi
  [ -z "${TORCH:-}" ] || torch=torch==$TORCH
  if ! { echo "$torch" && cat pyproject.toml; } | cmp -s - "$place/installed"; then
    # From nothing: uv keeps what is there and fits, such as the torch that pip found, or what an earlier bound left.
    "${PYTHON:-python3}" -m venv --clear "$place"
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check "$UV" "$torch"
    "$place/bin/uv" pip install --quiet --python "$place/bin/python" --resolution "$resolution" -e '.[dev]'
    { echo "$torch" && cat pyproject.toml; } >"$place/installed"
  fi
}

ends=(oldest newest)
case ${1:-} in
  oldest | newest) ends=("$1") && shift ;;
esac
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
for end in "${ends[@]}"; do
  environment "$end"
  (
    export VIRTUAL_ENV=$PWD/.venv-$end PATH=$PWD/.venv-$end/bin:$PATH
    use_smollm2
    printf '== %s: ' "$end"
    python - <<'PYTHON'
from importlib import metadata

from packaging.requirements import Requirement

names = [Requirement(line).name for line in metadata.requires("dorakit") if "extra ==" not in line]
print(*(f"{name} {metadata.version(name)}" for name in names), sep=", ")
PYTHON
    python -m pytest -m "not slow and not gpu and not faults and not distributed" "$@"
  )
done
