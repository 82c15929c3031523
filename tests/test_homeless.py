"""No home directory, or one in which nothing can be made, as in containers and under service accounts."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tiny_runs import tiny_recipe

UNPRIVILEGED = [sys.executable, str(Path(__file__).parent / "unprivileged.py")]
IS_ROOT = os.getuid() == 0
# A uid without an entry in passwd can be had by root only; any other user has the home directory that passwd names.
HOMES = ["read-only", "/nonexistent/home"] + [None] * IS_ROOT
pytestmark = pytest.mark.faults


@pytest.fixture
def place():
    """Not pytest's directory, which is its user's alone."""
    with tempfile.TemporaryDirectory(prefix="dorakit-homeless-") as directory:
        yield Path(directory)


@pytest.fixture(params=HOMES, ids=str)
def dorakit(request, place):
    """The command line of a user with such a home directory, in an empty directory with a recipe."""
    (place / "work").mkdir()
    recipe = tiny_recipe(place / "rows", "dora")
    (place / "read-only").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "DORAKIT_CACHE")}
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody answers there
    if request.param is not None:
        environment["HOME"] = str(place / request.param)
    for directory in (place, place / "work", place / "rows"):
        directory.chmod(0o777)
    (place / "read-only").chmod(0o555)

    def run(*arguments, **variables):
        command = [*UNPRIVILEGED, *(["--uid", "54321"] if IS_ROOT else []), sys.executable, "-m", "dorakit"]
        return subprocess.run(
            [*command, *arguments],
            cwd=place / "work",
            env={**environment, **variables},
            capture_output=True,
            text=True,
        )

    run.recipe, run.place = recipe.origin.path, place
    return run


def test_with_both_variables_everything_works(dorakit):
    """Dies of a look at the home directory that nothing needs."""
    places = {"DORAKIT_CACHE": str(dorakit.place / "ours"), "HF_HOME": str(dorakit.place / "hub")}
    run = str(dorakit.place / "rows" / "run-dora")
    for arguments in (["train", dorakit.recipe, "-q"], ["merge", run, "-q"], ["doctor", "-q"]):
        done = dorakit(*arguments, **places)
        assert (done.returncode, done.stderr) == (0, ""), [arguments, done.stderr]
    assert not (dorakit.place / "work" / "~").exists()


def test_without_them_one_message_names_the_one_that_is_missing(dorakit):
    """Dies of a RuntimeError called a bug in dorakit, of a directory named `~`, and of "the hub cannot be reached"."""
    online = {"HF_HUB_OFFLINE": "0"}
    done = dorakit("train", dorakit.recipe, "-q", **online)
    first, advice = done.stderr.splitlines()
    assert (done.returncode, advice) == (3, "  set DORAKIT_CACHE to a directory that can be written")
    assert first.startswith(("error: the cache cannot be used: ", "error: no place for the cache: HOME is not set"))
    ours = {"DORAKIT_CACHE": str(dorakit.place / "ours")}
    done = dorakit("train", dorakit.recipe, "-q", "--set", "model.base=owner/model", **online, **ours)
    first, advice = done.stderr.splitlines()
    assert (done.returncode, advice) == (3, "  set HF_HOME to a directory that can be written")
    assert first.startswith("error: no place for what the hub's libraries fetch: ")
    assert not list((dorakit.place / "work").iterdir())


def test_doctor_says_what_is_missing(dorakit):
    """Dies if the examination ends there, or if what mends it is a traceback."""
    done = dorakit("doctor", "--json")
    found = {finding["about"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 3 and found["torch"]["level"] == "ok"
    assert (found["cache"]["level"], found["cache"]["mend"]) == ("fail", "export DORAKIT_CACHE=DIR")
    assert (found["hub cache"]["level"], found["hub cache"]["mend"]) == ("fail", "export HF_HOME=DIR")
