"""All of this directory is `scripts/test.sh --distributed`, and not of the fast suite."""

from pathlib import Path

import pytest
from dying_runs import Site, make_site

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
    from groups import dorakit_group

    site = plain(make_site(tmp_path_factory.mktemp("unbroken")))
    ended = dorakit_group(2, "train", site.recipe)
    assert ended.codes == [0, 0], ended.ranks
    return site


def plain(site: Site) -> Site:
    """Without dropout, whose draws are each micro-batch's own, and with AdamW in float32."""
    text = site.recipe.read_text().replace(", dropout: 0.1", "").replace("adamw_8bit", "adamw")
    site.recipe.write_text(text.replace("micro_batch_size: 4", "micro_batch_size: 2"))
    return site
