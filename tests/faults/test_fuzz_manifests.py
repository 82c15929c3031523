"""Whatever stands in a checkpoint's manifest or state: a RunError, or the very checkpoint that was saved."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dorakit.errors import RunError
from dorakit.training.checkpoint import read_checkpoint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def checkpoint(half_done, tmp_path):
    path = tmp_path / half_done.checkpoints()[-1].name
    shutil.copytree(half_done.checkpoints()[-1], path)
    return path


def check(path, content: bytes, original: bytes, whole) -> None:
    file = path / "manifest.json"
    file.write_bytes(content)
    try:
        found = read_checkpoint(path)
    except RunError as error:
        assert str(path) in str(error)
    else:
        assert found.state == whole.state and found.trained.keys() == whole.trained.keys()
        assert all(torch.equal(found.trained[name], whole.trained[name]) for name in found.trained)
    finally:
        file.write_bytes(original)


fuzzed = settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzed
@given(where=st.integers(0, 10**6), length=st.integers(0, 9), put=st.binary(max_size=9))
def test_spliced_bytes(checkpoint, where, length, put):
    """Dies if a byte of the manifest can lead to another exception, or to other weights."""
    original = (checkpoint / "manifest.json").read_bytes()
    whole = read_checkpoint(checkpoint)
    where %= len(original)
    check(checkpoint, original[:where] + put + original[where + length :], original, whole)


@fuzzed
@given(key=st.sampled_from(["schema", "step", "files", "bytes", "sha256", "adapter.safetensors"]), value=JSON)
def test_odd_values(checkpoint, key, value):
    """Dies if a manifest of the right form and odd values does."""
    original = (checkpoint / "manifest.json").read_bytes()
    whole = read_checkpoint(checkpoint)
    stated = json.loads(original)
    for holder in (stated, stated["files"], stated["files"]["state.json"]):
        if key in holder:
            holder[key] = value
    check(checkpoint, json.dumps(stated).encode(), original, whole)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"null", b"1e999", b'{"files": [1]}']
)
def test_what_breaks_parsers(checkpoint, content):
    """Dies if deep nesting is a RecursionError for the user."""
    (checkpoint / "manifest.json").write_bytes(content)
    with pytest.raises(RunError, match="manifest"):
        read_checkpoint(checkpoint)
