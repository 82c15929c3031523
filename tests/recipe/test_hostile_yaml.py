"""YAML made to harm: nothing is executed, nothing is expanded, and neither time nor memory goes up."""

# ruff: noqa: E501 (a case is a line)

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_LOAD = """
import json, resource, sys, time
from dorakit.errors import RecipeError
from dorakit.recipe.loader import load_recipe

def size():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

try:
    load_recipe("/nowhere/r.yaml", [])
except RecipeError:
    pass  # what is imported late is imported now
before, began = size(), time.process_time()
try:
    load_recipe(sys.argv[1], sys.argv[2:])
    said = ""
except RecipeError as error:
    said = str(error)
json.dump([said, time.process_time() - began, size() - before], sys.stdout)
"""

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
HOSTILE = {
    "a tag that runs a command": ('version: !!python/object/apply:os.system ["touch owned"]\n', "tag '!!python/object/apply:os.system'"),
    "a tag that names a module": ("version: !!python/module:antigravity\n", "tag '!!python/module:antigravity'"),
    "a constructor": ("!!python/object/new:os.system [touch owned]\n", "tag '!!python/object/new:os.system'"),
    "nine levels of aliases": (BOMB, "anchor '&a0' cannot be used here"),
    "merge keys": ("a: &a {x: 1}\nb: {<<: [*a, *a, *a]}\n", "merge key '<<' cannot be used here"),
    "deep lists": ("a: " + "[" * 5000, "nested more than 24 levels deep"),
    "deep mappings": ("{a: " * 5000, "nested more than 24 levels deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(600)), "nested more than 24 levels deep"),
    "two mebibytes": ("#" * 2**21, "2,097,152 bytes are too many for a recipe"),
    "many keys of one name": ("a: 1\n" * 20_000, "duplicate key 'a' (lines 1 and 2)"),
    "one long word": ("a" * 200_000, "a recipe is a mapping of sections"),
    "what might be passwords": ("a: ://" + "x:" * 90_000 + "x", "missing"),
    "what might be tokens": ("a: " + "hf_sk-" * 30_000, "missing"),
}  # fmt: skip


def load(directory: Path, path: str, *overrides: str) -> tuple[str, float, int]:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, path, *overrides], cwd=directory, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said, seconds, growth = json.loads(done.stdout)
    return said, seconds, growth


@pytest.mark.parametrize(("text", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_text(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    found, seconds, growth = load(tmp_path, "r.yaml")
    assert said in found
    assert not (tmp_path / "owned").exists()
    assert seconds < 1.5, "a tenth of a second, and a machine that is ten times slower"
    assert growth < 50 * 2**20


def test_a_file_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    """Planted bug caught: the whole file is read, and then found too large."""
    with open(tmp_path / "sparse.yaml", "wb") as file:
        file.truncate(2**30)
    for path, said in (("sparse.yaml", "1,073,741,824 bytes are too many"), ("/dev/zero", "bytes are too many")):
        found, seconds, growth = load(tmp_path, path)
        assert said in found and seconds < 1.5 and growth < 50 * 2**20


def test_hostile_overrides(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("version: 1\n")
    found, seconds, growth = load(
        tmp_path, "r.yaml", "adapter.rank=[" + "[" * 5000, "adapter.x={a: !!python/name:os.system x}"
    )
    assert "nested more than 24 levels deep" in found and "tag '!!python/name:os.system'" in found
    assert seconds < 1.5 and growth < 50 * 2**20
