"""Promises of SECURITY.md that have no other place, and the tests that documents name."""

import ast
import re
from pathlib import Path

import pytest

from dorakit.errors import ModelError
from dorakit.model.source import resolve

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("inside", ["../../etc/passwd", "/etc/passwd", "model/../../../x.gguf", "link/passwd"])
def test_a_base_inside_a_package_stays_inside(tmp_path, monkeypatch, inside):
    """Planted bug caught: the path joined and opened, whatever it leads to."""
    package = tmp_path / "carries_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "link").symlink_to("/etc")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="points outside the package"):
        resolve(f"pkg:carries_a_model/{inside}")


@pytest.mark.parametrize("file", ["SECURITY.md", "docs/reliability.md"])
def test_the_tests_that_a_document_names_exist(file):
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / file).read_text())
    assert len(named) >= 8
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions, f"{path}::{name}"
