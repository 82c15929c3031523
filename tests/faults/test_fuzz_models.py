"""Headers and configs changed at random: a DorakitError or a right answer, never another exception, a hang, or memory.

Seeded and few, so that they are tests and not a search; raise `max_examples` to search.
"""

import copy
import json
import os
import resource
import struct
import tracemalloc
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_models import header_of, write_gguf
from safetensors import safe_open
from safetensors.torch import save_file

from dorakit.adapters.attach import adapter_layers
from dorakit.adapters.peft_format import load_adapter
from dorakit.errors import DorakitError, ModelError
from dorakit.model.gguf_check import check_gguf
from dorakit.model.load import load_base
from dorakit.model.source import resolve
from dorakit.model.weights_check import check_weights


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )


pytestmark = pytest.mark.timeout(120)

numbers = st.one_of(
    st.integers(-3, 300), st.sampled_from([1 << 31, 1 << 53, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 10**400])
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
edits = st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def little_memory():
    """A gigabyte more than now: what allocates by a number in a file gets a MemoryError."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def edited(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Bytes at places modulo the length, replaced."""
    changed = bytearray(content)
    for at, byte in changes:
        if changed:
            changed[at % len(changed)] = byte
    return bytes(changed)


TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0, 2)}
keys = st.sampled_from(["dtype", "shape", "data_offsets", "more"])
sizes = st.lists(numbers, max_size=4)
entry_values = st.one_of(values, sizes, st.sampled_from(["F32", "BF16", "I64", "F4", "BOOL"]))


@pytest.fixture(scope="module")
def weights(place):
    save_file(TENSORS, place / "whole.safetensors")
    return place / "whole.safetensors"


@bounded(200)
@given(
    fields=st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", "__metadata__"]), keys, entry_values), max_size=2),
    changes=edits,
    length=st.one_of(st.none(), st.none(), numbers),
    cut=st.one_of(st.none(), st.none(), st.integers(-40, 40)),
)
def test_safetensors_headers(weights, little_memory, fields, changes, length, cut):
    """What passes the check the library reads too, with the same tensors. Planted bugs caught: overlap allowed; the
    number of bytes taken from the offsets alone; a size that is true or a float; an entry that is no object."""
    header = header_of(weights)
    for name, key, value in fields:
        target = header.setdefault(name, {})
        if isinstance(target, dict):
            target[key] = value
    text = edited(json.dumps(header).encode(), changes)
    stated = len(text) if length is None else length % (1 << 64)
    data = weights.read_bytes()[8 + struct.unpack("<Q", weights.read_bytes()[:8])[0] :]
    content = struct.pack("<Q", stated) + text + data
    content = content[:cut] if cut is not None and cut < 0 else content + bytes(cut or 0)
    path = weights.with_name("changed.safetensors")
    path.write_bytes(content)
    try:
        found = check_weights(path)
    except ModelError:
        return
    with safe_open(path, framework="pt") as file:
        assert {name: tuple(file.get_tensor(name).shape) for name in file.keys()} == {
            name: stored.shape for name, stored in found.items()
        }


@bounded(60)
@given(st.permutations(["F32", "BF16", "I8"]), st.lists(st.integers(0, 5), max_size=3))
def test_whole_headers_pass(place, dtypes, shape):
    """Planted bug caught: an empty tensor, or a scalar, taken for a hole."""
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8}
    tensors = {f"t{n}": torch.zeros(shape[n:], dtype=kinds[dtype]) for n, dtype in enumerate(dtypes)}
    save_file(tensors, place / "w.safetensors", metadata={"format": "pt"})
    found = check_weights(place / "w.safetensors")
    assert {name: stored.shape for name, stored in found.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert [found[f"t{n}"].dtype for n in range(3)] == dtypes


@pytest.mark.parametrize("length", [9 << 20, 90 << 20, 1 << 62])
def test_a_long_header_is_not_read(place, length):
    """Planted bug caught: the header is read into memory before its length is judged."""
    path = place / "long.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{")
    os.truncate(path, 100 << 20)  # a hole: it takes no room
    tracemalloc.start()
    with pytest.raises(ModelError):
        check_weights(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_large_file_costs_its_header(place):
    """Planted bug caught: the tensors themselves are read."""
    size = 8 << 30
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path = place / "large.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size)
    tracemalloc.start()
    assert check_weights(path)["w"].shape == (size // 4,)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_many_tensors_take_no_time(place):
    """Planted bug caught: a search through all names for each of them (minutes for these)."""
    names = [f"layer.{n}" for n in range(60_000)]
    text = "{" + ",".join(
        f'"{n}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i, n in enumerate(names)
    )
    for end, passes in (("}", True), (',"layer.7":{}}', False)):
        header = (text + end).encode()
        path = place / "many.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(len(names)))
        if passes:
            assert len(check_weights(path)) == len(names)
        else:
            with pytest.raises(ModelError, match=r"'layer\.7' is there twice"):
                check_weights(path)


@pytest.fixture(scope="module")
def model():
    return load_base("tiny:llama", dtype="float32").model


settings_of_peft = st.sampled_from(
    ["r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "target_modules",
     "modules_to_save", "init_lora_weights", "bias", "peft_type", "auto_map", "layer_replication", "kasa_config"]
)  # fmt: skip
patterns = st.dictionaries(
    st.one_of(st.text(max_size=8), st.sampled_from(["q_proj", ".*proj", "(a+)+", "(?P<n>.)(?P=n)", "[", "0.mlp"])),
    numbers,
    max_size=3,
)


@bounded(120)
@given(st.lists(st.tuples(settings_of_peft, st.one_of(values, patterns)), max_size=3), edits)
def test_adapter_configs(trained, model, place, little_memory, fields, changes):
    """Planted bugs caught: a rank taken as it stands; a pattern compiled unseen; `float(lora_dropout)` of a list."""
    source = trained("lora").adapter
    directory = place / "adapter"
    directory.mkdir(exist_ok=True)
    (directory / "adapter_model.safetensors").write_bytes((source / "adapter_model.safetensors").read_bytes())
    config = json.loads((source / "adapter_config.json").read_text()) | dict(fields)
    (directory / "adapter_config.json").write_bytes(edited(json.dumps(config).encode(), changes if not fields else []))
    adapted = copy.deepcopy(model)
    try:
        load_adapter(adapted, directory)
    except DorakitError:
        return
    layers = [layer for _, layer in adapter_layers(adapted)]
    assert len(layers) == 14 and {layer.rank for layer in layers} == {4}
    assert adapted(torch.arange(8)[None]).logits.isfinite().all()


@pytest.fixture(scope="module")
def small_gguf(place):
    return write_gguf(place / "whole.gguf")


places = st.lists(st.tuples(st.integers(0, 1 << 30), st.sampled_from("BIQ"), numbers), min_size=1, max_size=3)


def with_numbers(path: Path, changes: list[tuple[int, str, int]]) -> Path:
    """The file with numbers written over its header, wherever they fall."""
    content = bytearray(path.read_bytes())
    end = gguf.GGUFReader(path).data_offset
    for at, kind, number in changes:
        size = struct.calcsize(kind)
        struct.pack_into("<" + kind, content, at % (end - size), number % (1 << 8 * size))
    changed = path.with_name("changed.gguf")
    changed.write_bytes(content)
    return changed


@bounded(150)
@given(places, st.one_of(st.none(), st.none(), st.integers(1, 5000)))
def test_gguf_headers(small_gguf, little_memory, changes, cut):
    """What passes the check the library reads too. Planted bugs caught: a count believed; a length that leads past the
    end; tensors outside the file."""
    path = with_numbers(small_gguf, changes)
    if cut is not None:
        os.truncate(path, max(0, path.stat().st_size - cut))
    try:
        check_gguf(path)
    except ModelError:
        return
    reader = gguf.GGUFReader(path)
    assert all(tensor.data.nbytes == tensor.n_bytes for tensor in reader.tensors)


@bounded(60)
@given(places)
def test_gguf_files_as_models(small_gguf, monkeypatch, little_memory, changes):
    """Planted bugs caught: layers by the billion; what transformers raises on nonsense called a bug of dorakit."""
    monkeypatch.setenv("DORAKIT_CACHE", str(small_gguf.parent / "cache"))
    try:
        found = resolve(str(with_numbers(small_gguf, changes)))
    except DorakitError:
        return
    assert (found.directory / "model.safetensors").is_file()


def test_a_whole_gguf_file_is_a_model(small_gguf, monkeypatch):
    """Planted bug caught: a check that refuses what is right."""
    monkeypatch.setenv("DORAKIT_CACHE", str(small_gguf.parent / "cache"))
    found = load_base(str(small_gguf), dtype="float32")
    assert found.model(torch.arange(8)[None]).logits.shape == (1, 8, 40)


@pytest.mark.parametrize("at", ["keys", "tensors", "strings", "name"])
def test_counts_of_a_gguf_file_are_not_believed(small_gguf, place, at):
    """2^60 of anything is refused at once. Planted bug caught: a loop as long as the header says."""
    content = bytearray(small_gguf.read_bytes())
    tokens = content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    offset = {"tensors": 8, "keys": 16, "strings": tokens, "name": 24}[at]
    struct.pack_into("<Q", content, offset, 1 << 60)
    (place / "counts.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"1,152,921,504,606,84\d,\d{3}"):
        check_gguf(place / "counts.gguf")
