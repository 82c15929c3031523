"""A recipe written out with its sources can be read back for showing, without the loader."""

from pathlib import Path

import pytest

from dorakit import Recipe, Run
from dorakit.recipe.resolved import dump_resolved, explain, read_resolved

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_was_written_is_read(path):
    """Planted bugs caught: a value cut at a "#" inside quotes, entries of a list all numbered 0, a section not left."""
    prompts = r'training.sample_prompts=["a  # b", "\"  # c", "d: \\"]'
    recipe = Recipe.from_yaml(str(path), [prompts, "output_dir=runs/a  b"])
    wanted = [
        (key, value, source) for key, value, source, reader in explain(recipe) if not reader.startswith("not read")
    ]
    assert read_resolved(dump_resolved(recipe)) == wanted
    assert ("training.sample_prompts", r'["a  # b", "\"  # c", "d: \\"]', "--set") in wanted


@pytest.mark.parametrize(
    "text", ["", "#", "a: 1", "- ", "- - a: 1  # b", ": 1  # x", "a:\n\n\n  b", "\x00: \t  # \x00", 'a: "  # b' * 2000]
)
def test_any_text_is_read_without_complaint(text):
    """Planted bug caught: a value without a source taken for one that has it."""
    assert all(len(row) == 3 for row in read_resolved(text))


def test_entries_of_lists_are_numbered():
    """Planted bug caught: the second list going on where the first one ended."""
    text = "a:\n  - x: 1  # f:1\n    y: 2  # f:2\n  - x: 3  # f:3\nb:\n  c:\n    - x: 4  # f:4\nd: 5  # f:5\n"
    rows = [("a.0.x", "1"), ("a.0.y", "2"), ("a.1.x", "3"), ("b.c.0.x", "4"), ("d", "5")]
    assert [(key, value) for key, value, _ in read_resolved(text)] == rows


@pytest.mark.parametrize(
    "name", ["ring\a", "two\nlines: 1", "x\u2028evaluation: 7", "x\x85y: 1", "r\udce9sum\udce9", "\ufeff#"]
)
def test_a_recipe_of_any_file_name(tmp_path, name):
    """Planted bugs caught: the name written as it is into a comment, which it ends, or which YAML or UTF-8 cannot hold."""
    file = tmp_path / f"{name}.yaml"
    file.write_text(RECIPES[0].read_text(encoding="utf-8"), encoding="utf-8")
    recipe = Recipe.from_yaml(str(file), [f"output_dir={tmp_path / 'run'}"])
    run = Run.create(recipe, start={"adapter": str(file)})
    for _ in range(2):
        again = Run.open(run.path).recipe
        assert again.model_dump() == recipe.model_dump()
        run.record(again)
    assert Run.open(run.path).read("run.json")["from"] == {"adapter": str(file)}
