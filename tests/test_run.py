"""The run directory: the recipe that it gives, and whose errors it takes for its own."""

import json

import pytest
from tiny_runs import tiny_recipe

from dorakit import Run
from dorakit.errors import RunError

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("overrides", "base", "revision"),
    [
        ([], "owner/name", COMMIT),
        (["training.log_every=3"], "owner/name", COMMIT),
        (["model.revision=v2"], "owner/name", "v2"),
        ([" model.revision = main"], "owner/name", "main"),
        (["model.base=owner/other"], "owner/other", "main"),
        (["model.base=owner/other", "model.revision=v2"], "owner/other", "v2"),
    ],
)
def test_the_commit_is_that_of_the_base_that_is_asked_for(tmp_path, overrides, base, revision):
    """Dies if `--resume RUN --set model.revision=` loads the old commit in silence, or looks for it in another base."""
    recipe = tiny_recipe(tmp_path, "lora", base="owner/name")
    run = Run.create(recipe, base={"name": "owner/name", "revision": COMMIT, "files": {}})
    model = run.recipe_with(overrides).model
    assert (model.base, model.revision) == (base, revision)


def test_the_commit_of_another_base_is_not_taken(tmp_path):
    """Planted bug caught: killed between recording the recipe and the base, a run looks for the old commit in the new base."""
    run = Run.create(
        tiny_recipe(tmp_path, "lora", base="owner/new"), base={"name": "owner/old", "revision": COMMIT, "files": {}}
    )
    assert (run.recipe.model.base, run.recipe.model.revision) == ("owner/new", "main")


def test_sources_outlive_being_recorded_anew(tmp_path):
    """Planted bug caught: after a resume each value came from RUN/recipe.resolved.yaml, a path of this machine."""
    recipe = tiny_recipe(tmp_path, "lora")
    run = Run.create(recipe)
    before = (run.path / "recipe.resolved.yaml").read_text()
    run.record(run.recipe)
    assert (run.path / "recipe.resolved.yaml").read_text() == before
    run.record(run.recipe_with(["training.log_every=7"]))
    after = (run.path / "recipe.resolved.yaml").read_text()
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert changed == ["  log_every: 7  # --set"] and "recipe.resolved.yaml" not in after


def test_what_fails_while_a_run_is_written_is_not_named_after_it(tmp_path):
    """Dies if a disk that cannot be read, wherever it is, is told as the run directory's; or a lock's own error is not."""
    with pytest.raises(OSError) as caught, Run(tmp_path).writing():
        raise OSError(5, "Input/output error")
    assert caught.value.filename is None
    with pytest.raises(OSError) as caught, Run(tmp_path / "absent").writing():
        pytest.fail("locked what is not there")
    assert str(tmp_path / "absent") in str(caught.value.filename)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("notes", ..., "it has no 'notes'"),
        ("state", ..., "it has no 'state'"),
        ("notes", 3, "'notes' is 3, expected a list"),
        ("base", [], r"'base' is \[\], expected an object"),
        ("is_twin", "no", "'is_twin' is 'no', expected true or false"),
    ],
)
def test_a_damaged_run_json_is_named(tmp_path, field, value, said):
    """Planted bug caught: a KeyError, TypeError or AttributeError, which the command line calls a bug in dorakit."""
    run = Run.create(tiny_recipe(tmp_path, "lora"))
    file = run.path / "run.json"
    facts = json.loads(file.read_text()) | {field: value}
    file.write_text(json.dumps({key: value for key, value in facts.items() if value is not ...}))
    for use in (Run.open, lambda path: Run(path).recipe, lambda path: Run(path).note("a line")):
        with pytest.raises(RunError, match=f"run.json is damaged: {said}"):
            use(run.path)
