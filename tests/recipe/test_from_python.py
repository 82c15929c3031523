"""A recipe given as Python values trains, and is judged, kept and resumed as one from a file."""

import copy
import enum
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_runs import write_rows

from dorakit import Recipe, Run, evaluate, merge, train
from dorakit.errors import Interrupted, RecipeError
from dorakit.recipe.resolved import leaf_keys, read_resolved
from dorakit.recipe.schema import AdapterSection
from dorakit.training import optim


@pytest.fixture
def values(tmp_path, monkeypatch):
    """A recipe as a dict, with its rows in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", 24)
    return {
        "version": 1,
        "model": {"base": "tiny:llama", "dtype": "float32"},
        "adapter": {"mode": "dora", "rank": 4, "alpha": 16.0},
        "data": {
            "train": [{"path": "train.jsonl", "format": "completion"}],
            "validation": {"rows": 6},
            "max_seq_len": 64,
        },
        "training": {"max_steps": 3, "batch_size": 4, "save_every": 1, "eval_every": 0},
        "optimizer": {"learning_rate": 3e-2, "betas": (0.9, 0.99)},
        "merge": {"dtype": "float32"},
    }


def changed(values, **sections):
    """A copy with some keys of some sections."""
    new = copy.deepcopy(values)
    for name, section in sections.items():
        new[name] = {**new.get(name, {}), **section}
    return new


def test_both_ways_give_what_the_same_file_gives(values, tmp_path):
    """Dies if a default, a rule or a path is another one than in a file."""
    (tmp_path / "same.yaml").write_text(
        yaml.safe_dump({**values, "optimizer": {"learning_rate": 3e-2, "betas": [0.9, 0.99]}})
    )
    from_file = Recipe.from_yaml("same.yaml")
    by_name, by_dict = Recipe(**values), Recipe.model_validate(values)
    assert by_name == by_dict and by_name.model_dump() == from_file.model_dump()
    assert by_name.data.root == str(tmp_path)


def test_it_trains_stops_goes_on_and_is_measured_and_merged(values, monkeypatch):
    """Dies if anything on the way asks for a file that is not there."""
    step = optim.Updater.step
    with monkeypatch.context() as patch:
        patch.setattr(
            optim.Updater, "step", lambda self, rate: (step(self, rate), os.kill(os.getpid(), signal.SIGTERM))[0]
        )
        with pytest.raises(Interrupted):
            train(Recipe.model_validate(values), quiet=True)
    run = Run.open("runs/recipe")
    assert train(run.recipe, resume=run, quiet=True).state == "finished"
    unbroken = train(Recipe(**values, output_dir="runs/unbroken"), quiet=True)
    weights = "adapter_model.safetensors"
    assert (run.adapter / weights).read_bytes() == (unbroken.adapter / weights).read_bytes()
    assert evaluate(run, quiet=True)["rows"] == 6
    assert (merge(run, quiet=True) / "merge.json").is_file()


def test_a_run_says_which_values_came_from_python(values, tmp_path):
    """Dies if a value that was given is called a default, or the other way round; and if the run's own copy says no more
    where its values came from. A value that equals its default was given nonetheless.
    """
    run = train(Recipe.model_validate(changed(values, training={"seed": 42})), quiet=True)
    text = (run.path / "recipe.resolved.yaml").read_text(encoding="utf-8")
    sources = {key: source for key, _, source in read_resolved(text)}
    given = {key for key, source in sources.items() if source == "python"}
    assert text.startswith("# python, resolved: ") and set(sources.values()) == {"python", "default"}
    assert {"training.seed", "data.train.0.path", "optimizer.betas", "adapter.alpha"} <= given
    assert not {"data.root", "training.epochs", "output_dir"} & given
    assert {key: source for key, source in run.recipe.origin.sources.items() if key in sources} == sources


def test_the_recipe_that_a_run_keeps_is_a_file_that_gives_the_same(values, tmp_path, monkeypatch):
    """Dies if recipe.yaml is empty, or means other rows when it is read from where it lies."""
    recipe = Recipe.model_validate(values)
    run = train(recipe, quiet=True)
    monkeypatch.chdir(run.path)
    kept = Recipe.from_yaml("recipe.yaml")
    assert kept.model_dump() == recipe.model_dump()
    assert "epochs" not in Path("recipe.yaml").read_text(encoding="utf-8")


def test_paths_start_where_python_runs_or_from_data_root(values, tmp_path, monkeypatch):
    """Dies if they follow a later change of directory, or if data.root is passed over."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "rows").mkdir()
    here = Recipe.model_validate(changed(values, model={"base": "./base"}))
    below = Recipe.model_validate(changed(values, data={"root": "rows"}))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert here.model.base == str(tmp_path / "base") and here.data.root == str(tmp_path)
    assert below.data.root == str(tmp_path / "rows")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"adapter": {"rnak": 4}}, "recipe: error: unknown key 'adapter.rnak'\n       did you mean 'rank'?"),
        ({"adapter": {"mode": "doar"}}, "did you mean 'dora'?"),
        ({"optimizer": {"learning_rate": "1e-4"}}, "optimizer.learning_rate: quoted text '1e-4', expected a number above 0"),
        ({"training": {"max_steps": True}}, "training.max_steps: expected a whole number of at least 1 or null, got true"),
        ({"training": {"seed": 42.0}}, "training.seed: expected a whole number"),
        ({"quantization": {"block_size": 128}}, "'quantization' is not read in mode dora"),
        ({"training": {"keep_best": True}, "data": {"validation": {}}}, "training.keep_best needs validation rows"),
        ({"model": {"base": Path("base")}}, "model.base: PosixPath PosixPath('base'), expected text, a number,"),
        ({"model": {"base": None}}, "model.base: expected text, got null"),
        ({"adapter": {"rank_pattern": {3: 4}}}, "adapter.rank_pattern: a key must be text, not 3"),
        ({"model": {"base": "a\0b"}}, "model.base: a path with a zero byte"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_are_named_as_in_a_file(values, change, said):
    """Dies if pydantic's words come through, or if a value is taken for another one."""
    for make in (Recipe.model_validate, lambda given: Recipe(**given)):
        with pytest.raises(RecipeError) as caught:
            make(changed(values, **change))
        assert said in str(caught.value)


def test_all_problems_come_at_once(values):
    with pytest.raises(RecipeError) as caught:
        Recipe.model_validate(changed(values, adapter={"rnak": 4}, training={"seed": -1}))
    assert len(caught.value.problems) == 2
    for nothing in ({}, None, [values]):
        with pytest.raises(RecipeError, match=r"missing required key 'version'|a recipe is a mapping of sections"):
            Recipe.model_validate(nothing)
    circle = dict(values)
    circle["model"] = circle
    with pytest.raises(RecipeError, match="nested more than 24 levels deep"):
        Recipe.model_validate(circle)


def test_a_secret_is_refused_and_not_repeated(values):
    secret = "hf_" + "a" * 34
    with pytest.raises(RecipeError, match="no secret belongs in a recipe") as caught:
        Recipe.model_validate(changed(values, model={"base": secret}))
    assert secret not in str(caught.value)


def test_what_one_recipe_dumps_makes_another(values, tmp_path):
    """Dies if settings that the mode does not read, at their defaults, are mistakes."""
    recipe = Recipe.model_validate(values)
    content = recipe.model_dump()
    assert Recipe.model_validate(content).model_dump() == content
    assert Recipe.model_validate_json(recipe.model_dump_json()).model_dump() == content
    assert Recipe.model_validate(recipe) is recipe
    other = Recipe.model_validate({**content, "adapter": {**content["adapter"], "mode": "lora"}})
    assert other.adapter.mode == "lora" and other.origin.notes == recipe.origin.notes


class Mode(enum.StrEnum):
    LORA = "lora"


def test_sections_and_plain_values_of_other_kinds(values):
    """Dies if numpy's numbers are written as `np.float64(...)`, or if a section loses what it was not given."""
    adapter = AdapterSection(mode="lora", rank=8)
    recipe = Recipe(**{**values, "adapter": adapter, "optimizer": {"learning_rate": np.float64(1e-3)}})
    assert recipe.adapter == adapter and recipe.optimizer.learning_rate == 1e-3
    assert recipe.origin.sources["adapter.alpha"] == "default"
    assert Recipe.model_validate(changed(values, adapter={"mode": Mode.LORA})).adapter.mode == "lora"


def test_extends_starts_from_a_file(values, tmp_path):
    """Dies if a default that is given in Python gives way to what the file says, or if sources are mixed up."""
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump({**changed(values, training={"seed": 7}), "optimizer": {"learning_rate": 1e-3}})
    )
    recipe = Recipe(extends="base.yaml", training={"seed": 42})
    assert (recipe.training.seed, recipe.training.max_steps, recipe.extends) == (42, 3, None)
    sources = recipe.origin.sources
    assert sources["training.seed"] == "python" and sources["training.max_steps"].startswith("base.yaml:")
    with pytest.raises(RecipeError, match=r"extends: no such file: bsae.yaml\n +did you mean base.yaml\?"):
        Recipe(extends="bsae.yaml")


def test_every_value_of_a_dump_counts_as_given(values):
    recipe = Recipe.model_validate(Recipe.model_validate(values).model_dump())
    assert {recipe.origin.sources[".".join(map(str, path))] for path in leaf_keys(recipe)} == {"python", "default"}
    assert [key for key, source in recipe.origin.sources.items() if source == "default"] == ["extends"]
