"""Shared by all tests: one cache for tiny models, one thread, no hub."""

import os
import shutil
import signal
import tempfile

import pytest

os.environ["DORAKIT_CACHE"] = os.environ.get("DORAKIT_TEST_CACHE") or tempfile.mkdtemp(prefix="dorakit-cache-")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("COLUMNS", "120")
os.environ.setdefault("NO_COLOR", "1")
# A shell that runs the tests in its background ignores SIGINT for them, and so for every process that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _switches_as_they_were():
    """`--debug` and `--offline` set them for the rest of a process, which here runs other tests."""
    names = ("DORAKIT_DEBUG", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Finished runs by mode, shared by all tests: to be read only."""
    from tiny_runs import Runs

    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run_of(trained, tmp_path):
    """A copy of a finished run, to write into."""

    from dorakit import Run

    def copy(mode):
        return Run.open(shutil.copytree(trained(mode).path, tmp_path / "run"))

    return copy
