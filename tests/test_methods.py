"""The table of methods: the same names everywhere, and a command that shows it."""

import json
import math
import re
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from dorakit import Recipe
from dorakit.cli.app import app
from dorakit.errors import RecipeError, UsageError
from dorakit.methods import RULES, STARTS, UPDATES
from dorakit.recipe.fields import default_of, type_at
from dorakit.recipe.resolved import dump_resolved

ROOT = Path(__file__).parent.parent
EVERY = [*UPDATES, *STARTS, *RULES]
BASE = """\
version: 1
model: {base: "tiny:llama"}
adapter: {mode: MODE, UPDATE}
data: {train: [{path: rows.jsonl, format: text}]}
optimizer: {learning_rate: 1e-3, RULE}
"""


def words(*arguments):
    done = CliRunner().invoke(app, ["methods", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_schema_has_the_rows_of_the_table():
    assert list(get_args(type_at(("adapter", "update"))[0])) == list(UPDATES)
    assert list(get_args(type_at(("adapter", "start"))[0])) == list(STARTS)
    rules = [arm for arm in get_args(type_at(("optimizer", "rule"))[0]) if arm is not type(None)]
    assert [name for arm in rules for name in get_args(arm)] == list(RULES)


@pytest.mark.parametrize("entry", [*UPDATES.values(), *STARTS.values(), *RULES.values()], ids=EVERY)
def test_every_row_is_whole(entry):
    """What implements it, its settings, its page, its paper. Planted bug caught: a key that no schema has."""
    assert entry.load()
    for key in (*entry.reads, *entry.ignores):
        assert type_at(tuple(key.split("."))) is not None, key
    page = (ROOT / "docs" / "methods.md").read_text()
    assert entry.paper.removeprefix("arXiv:") in page


@pytest.mark.parametrize("name", [name for name in EVERY if name != "kaiming"])
def test_there_is_a_recipe(name):
    recipe = Recipe.from_yaml(str(ROOT / "recipes" / "methods" / f"{name}.yaml"))
    assert name in (recipe.adapter.update, recipe.adapter.start, recipe.optimizer.rule)


def test_the_command_lists_them():
    text = words()
    assert all(name in text for name in EVERY)
    assert list(json.loads(words("--json"))) == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_the_lines_that_it_shows_are_a_recipe(tmp_path, name):
    """Planted bug caught: defaults that are not the schema's."""
    shown = words(name)
    lines = shown[shown.index("\n\n") :]
    section = re.search(r"^(adapter|optimizer):$", lines, re.MULTILINE)[1]
    body = ", ".join(line.strip() for line in lines.split(f"{section}:\n")[1].splitlines())
    text = BASE.replace("MODE", "lora").replace("UPDATE", body if section == "adapter" else "rank: 4")
    file = tmp_path / "recipe.yaml"
    file.write_text(text.replace("RULE", body if section == "optimizer" else "weight_decay: 0.0"))
    recipe = Recipe.from_yaml(str(file))
    assert name in (recipe.adapter.update, recipe.adapter.start, recipe.optimizer.rule)
    for key in {**UPDATES, **STARTS, **RULES}[name].reads:
        first, second = key.split(".")
        assert getattr(getattr(recipe, first), second) == default_of((first, second))


def test_it_counts_parameters():
    """tiny:llama has 7 matrices in each of 2 layers, of 64 and 128 or 32 a side."""
    listed = json.loads(words("--model", "tiny:llama", "--rank", "8", "--json"))
    counted = {name: facts.get("trained") for name, facts in listed.items()}
    shapes = 2 * [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
    assert counted["lora"] == sum(8 * (o + i) for o, i in shapes)
    assert counted["vera"] == sum(o + 8 for o, _ in shapes)
    assert counted["miss"] == sum(8 * o for o, _ in shapes)
    assert counted["hira"] == counted["lora"]
    assert counted["bat"] == counted["miss"]
    assert counted["mora"] == sum((int(math.sqrt(8 * (o + i)) + 0.5) // 2 * 2) ** 2 for o, i in shapes)
    assert counted["lora-plus"] is None


def test_a_name_that_is_none():
    done = CliRunner().invoke(app, ["methods", "verra"])
    assert isinstance(done.exception, UsageError)
    assert "did you mean vera?" in str(done.exception)


@pytest.mark.parametrize(
    ("update", "rule", "message"),
    [
        ("update: vera, alpha: 8", "weight_decay: 0.0", "'adapter.alpha' is not read with update vera"),
        ("update: bat, mora: {kind: 1}", "weight_decay: 0.0", "'adapter.mora' is not read with update bat"),
        ("update: mora, mora: {kind: 2}", "weight_decay: 0.0", "adapter.mora.kind"),
        ("update: hira, alpha: 8", "weight_decay: 0.0", "'adapter.alpha' is not read with update hira"),
        ("update: lora, vera: {seed: 3}", "weight_decay: 0.0", "'adapter.vera' is not read with update lora"),
        ("update: vera, miss: {mini_rank: 2}", "weight_decay: 0.0", "'adapter.miss' is not read with update vera"),
        ("rank: 4", "lora_plus: {ratio: 2}", "'optimizer.lora_plus' is not read without a rule"),
        ("update: miss", "rule: lora-plus", "lora-plus goes with lora"),
        ("update: vera, start: pissa", "weight_decay: 0.0", "pissa goes with lora"),
        ("update: miss, start: olora", "weight_decay: 0.0", "olora goes with lora"),
        ("start: olora, pissa: {iterations: 4}", "weight_decay: 0.0", "'adapter.pissa' is not read with start olora"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path, update, rule, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(BASE.replace("MODE", "lora").replace("UPDATE", update).replace("RULE", rule))
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_yaml(str(file))


def test_a_start_is_not_read_in_mode_full(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(BASE.replace("MODE", "full").replace("UPDATE", "start: pissa").replace("RULE", "weight_decay: 0.0"))
    with pytest.raises(RecipeError, match=r"'adapter\.start' is not read in mode full"):
        Recipe.from_yaml(str(file))


def test_dropout_with_pissa_is_noted(tmp_path):
    file = tmp_path / "recipe.yaml"
    for update, is_noted in (("start: pissa, dropout: 0.1", True), ("start: pissa", False), ("dropout: 0.1", False)):
        file.write_text(BASE.replace("MODE", "lora").replace("UPDATE", update).replace("RULE", "weight_decay: 0.0"))
        assert any("principal" in note for note in Recipe.from_yaml(str(file)).origin.notes) == is_noted


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_of_a_method_tried_in_mode_full(tmp_path, path):
    """Its settings are taken out and noted, and what the run keeps is a recipe again. Planted bug caught: a rule taken out
    and its section left, which is an error when the run is opened."""
    recipe = Recipe.from_yaml(str(path), ["adapter.mode=full"])
    assert recipe.trains_whole and recipe.optimizer.rule is None
    kept = tmp_path / "recipe.yaml"
    kept.write_text(dump_resolved(recipe))
    assert Recipe.from_yaml(str(kept)).trains_whole
