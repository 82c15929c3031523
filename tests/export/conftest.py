import shutil

import pytest
from tiny_runs import Runs

from dorakit import Run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Finished runs by mode, shared by all tests: to be read only."""
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run_of(trained, tmp_path):
    """A copy of a finished run, to write into."""

    def copy(mode):
        return Run.open(shutil.copytree(trained(mode).path, tmp_path / "run"))

    return copy
