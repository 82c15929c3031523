"""What is kept between runs, and for how long."""

import os
import time

import pytest

from dorakit import cache, files

DAY = 86400
OLD = f"tokens-{'0' * 32}"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DORAKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(directory, *, days):
    """A directory with a file, both last touched so many days ago."""
    directory.mkdir(parents=True)
    (directory / "a").write_text("a")
    for place in (directory / "a", directory):
        os.utime(place, (time.time() - days * DAY,) * 2)


def test_what_was_not_used_for_long_goes_when_something_new_comes(root):
    """Dies if nothing is ever removed, if use does not count, or if the rule reaches for what is not the cache's own."""
    used = f"gguf-{'1' * 16}-bfloat16-5.0"
    for name in (OLD, used, f"gguf-{'2' * 16}-float32-5.0", "tiny-llama-5.0", "photos", "tokens-of-love"):
        made(root / name, days=31)
    made(root / f"tokens-{'3' * 32}", days=29)
    assert cache.find(used) == root / used
    cache.cached("tokens-new", lambda staging: (staging / "a").write_text("new"))
    left = {path.name for path in root.iterdir()}
    assert left == {used, "tiny-llama-5.0", "photos", "tokens-of-love", f"tokens-{'3' * 32}", "tokens-new"}


def test_what_the_killed_left_goes_after_a_day(root):
    """Dies if staging directories stay for ever, or if one that is being filled is taken away."""
    made(root / f".tmp-{OLD}-0a1b2c3d", days=2)
    made(root / f".trash-{OLD}-0a1b2c3e", days=2)
    made(root / f".tmp-{OLD}-0a1b2c3f", days=2)
    (root / f".tmp-{OLD}-0a1b2c3f" / "a").write_text("still written to")
    made(root / ".tmp-mine", days=2)
    cache.cached("tokens-new", lambda staging: (staging / "a").write_text("new"))
    assert {path.name for path in root.iterdir()} == {f".tmp-{OLD}-0a1b2c3f", ".tmp-mine", "tokens-new"}


def test_an_entry_is_synced_before_it_has_its_name(root, monkeypatch):
    """Dies if a loss of power can leave a name over empty files."""
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append((path.name, (root / "tokens-new").exists())))
    cache.cached("tokens-new", lambda staging: (staging / "a").write_text("new"))
    assert ("a", False) in synced and ("cache", True) in synced
    assert cache.cached("tokens-new", lambda staging: pytest.fail("made again")) == root / "tokens-new"
