"""state.json and run.json with fields missing or odd: the message has the file and the field."""

import copy
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import tiny_recipe

from dorakit import Run, failpoints, train
from dorakit.errors import DorakitError, Interrupted, RunError
from dorakit.training.checkpoint import CHECKPOINT_FILES, read_state
from dorakit.training.manifest import write_manifest

ODD = [None, True, -1, 0, 1e400, float("nan"), "x", [], {}, "9" * 50, 10**30, [1], {"a": 1}]
DELETED = object()


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """A run that was stopped after step 2, and its checkpoint's name."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("odd"), "dora", ("training.keep_best=true", "training.eval_every=1"))
    failpoints.arm("step:2=sigterm")
    with pytest.raises(Interrupted):
        train(recipe, quiet=True)
    failpoints.arm("")
    run = Run.open(Run.wanted(recipe))
    return run, max(path.name for path in run.checkpoints.iterdir())


def places(content, above=()):
    """Every key and index below, but settings of a recipe, which are compared one by one."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield (*above, key)
        if above != ("facts",) or key != "recipe":
            yield from places(value, (*above, key))


def changed(content, place, value):
    made = copy.deepcopy(content)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return made


@pytest.mark.parametrize("name", ["state.json", "run.json"])
def test_each_odd_field_is_named_or_can_be_used(half_done, tmp_path, name):
    """Planted bug caught: a number that is no whole one, taken for a step."""
    run, checkpoint = half_done
    copied = shutil.copytree(run.path, tmp_path / "run")
    directory = copied / "checkpoints" / checkpoint if name == "state.json" else copied
    content, refused = json.loads((directory / name).read_text()), 0
    for place in places(content):
        for value in (*ODD, DELETED):
            (directory / name).write_text(json.dumps(changed(content, place, value)))
            try:
                read_state(directory) if name == "state.json" else Run.open(directory)
            except RunError as error:
                refused += 1
                assert str(directory / name) in str(error) and str(place[0]) in str(error), (place, value, error)
    assert refused > 100


@settings(max_examples=30, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_let_through_goes_on_or_is_refused(half_done, tmp_path, data):
    """As a whole, with a manifest that fits: whoever made the run may have written both."""
    run, name = half_done
    copied = shutil.copytree(run.path, tmp_path / "run", dirs_exist_ok=True)
    is_state = data.draw(st.booleans())
    file = copied / ("checkpoints/" + name + "/state.json" if is_state else "run.json")
    content = json.loads(file.read_text())
    place = data.draw(st.sampled_from(list(places(content))))
    file.write_text(json.dumps(changed(content, place, data.draw(st.sampled_from([*ODD, DELETED])))))
    write_manifest(copied / "checkpoints" / name, CHECKPOINT_FILES, 2)
    try:
        opened = Run.open(copied)
        train(opened.recipe, resume=opened, quiet=True)
    except DorakitError as error:
        assert str(error)
    finally:
        shutil.rmtree(copied)
