"""All of this directory is `scripts/test.sh --distributed`, and not of the fast suite."""

from pathlib import Path

import pytest
from dying_runs import Site, make_site, moved_copy
from groups import dorakit_group, impatient, plain

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture
def site(tmp_path) -> Site:
    return plain(make_site(tmp_path))


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory) -> Site:
    """A run of two ranks that nothing happened to."""
    site = plain(make_site(tmp_path_factory.mktemp("unbroken")))
    ended = dorakit_group(2, "train", site.recipe)
    assert ended.codes == [0, 0], ended.ranks
    return site


@pytest.fixture(scope="session")
def _half_done(tmp_path_factory) -> Path:
    site = plain(make_site(tmp_path_factory.mktemp("half")))
    ended = dorakit_group(2, "train", site.recipe, failpoints_of={1: "step:7=kill9"}, before=impatient)
    assert ended.codes[1] == -9, ended.ranks
    return site.place


@pytest.fixture
def half_done(_half_done, tmp_path) -> Site:
    """A run of two ranks, one of them killed after step 7, with checkpoints of steps 4 and 6."""
    return moved_copy(_half_done, tmp_path / "half")
