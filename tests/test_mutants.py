"""The list of planted bugs does not rot: each text to be replaced is there, each test named exists. Running them is
scripts/mutants.sh's business.
"""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "mutants.py"


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants_script", SCRIPT)
    module = sys.modules["mutants_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_list_fits_the_source(mutants):
    promises, found = mutants.read_list()
    assert mutants.problems_of(promises, found) == []
    assert len(found) >= 25


def test_no_test_imports_a_conftest():
    """Several directories have one, and which of them `import conftest` finds depends on what was collected first."""
    files = sorted(SCRIPT.parents[1].glob("tests/**/*.py"))
    assert files
    assert [str(file) for file in files if re.search(r"^\s*(from|import) conftest\b", file.read_text(), re.M)] == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"old": "a text that stands nowhere"}, "stands 0 times"),
        ({"old": "import"}, "times in dorakit/files.py, expected once"),
        ({"new": "("}, "invalid syntax"),
        ({"promise": "none"}, "no promise 'none'"),
        ({"tests": ("tests/test_mutants.py::test_that_is_not_there",)}, "no test tests/test_mutants.py"),
        ({"tests": ("tests/nowhere.py::test_x",)}, "no test tests/nowhere.py"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(mutants, changes, problem):
    """Planted bug caught: a list that checks nothing."""
    tests = ("tests/test_mutants.py::test_the_list_fits_the_source",)
    good = mutants.Mutant("name", "p", "dorakit/files.py", "def write_json", "def write_jsonl", tests)
    assert mutants.problems_of({"p": ""}, [good]) == []
    (said,) = mutants.problems_of({"p": ""}, [replace(good, **changes)])
    assert problem in said
