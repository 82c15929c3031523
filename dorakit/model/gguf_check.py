"""What a GGUF file claims to hold, checked before the gguf library walks it.

The library believes every count: a header that claims 2^60 strings keeps it busy for ever, and slices of a file that is too
short come out short. So the header is walked here first, with every length held against the file
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dorakit.errors import ModelError

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Far above any model's; the library makes several Python objects of each key, tensor and element of an array.
_MAX_KEYS, _MAX_TENSORS, _MAX_ELEMENTS = 1 << 16, 1 << 20, 1 << 23
_MAX_NAME, _MAX_TEXT, _MAX_TEXTS = 1 << 10, 1 << 24, 1 << 28  # bytes: of a name, of a text, of the texts of an array
_MAX_DIMENSIONS = 4
_TOO_LARGE = 1 << 63
# What is a size of the model, and so no larger than the largest size of a tensor.
_SIZES = (
    "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "rope.dimension_count", "expert_count",
)  # fmt: skip


@dataclass
class _Header:
    """What a walk through the header found: numbers of the metadata; shape, place and bytes of each tensor."""

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = field(default_factory=dict)


class _Wrong(Exception):
    """What is wrong with a file, without its path."""


def check_gguf(path: Path) -> None:
    """Hold the header of a GGUF file against the file.

    Args:
        path: A regular file.

    Raises:
        ModelError: With what is wrong.
    """
    with open(path, "rb") as file:
        start = file.read(32)
        if start.startswith(b"version https://git-lfs"):
            raise ModelError(f"{path} is a git-lfs pointer, not the model\n  run `git lfs pull` in its directory")
        if start[:4] != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it begins with {start[:4]!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                _check(_Walk(content))
            except _Wrong as wrong:
                raise ModelError(f"{path} {wrong}\n  download it again") from None


class _Walk:
    """A place in the file that moves forward, and never past its end."""

    def __init__(self, content: mmap.mmap):
        self.content = content
        self.at = 0
        self.size = len(content)

    def skip(self, count: int, what: str) -> int:
        """Move on by `count` bytes; returns where they begin."""
        begin = self.at
        if count > self.size - begin:
            raise _Wrong(
                f"is truncated or damaged: it is {self.size:,} bytes, its header says {begin + count:,} ({what!r})"
            )
        self.at += count
        return begin

    def number(self, kind: str, what: str) -> Any:
        """The next number, of a `struct` kind."""
        size = struct.calcsize("<" + kind)
        begin = self.skip(size, what)
        return struct.unpack_from("<" + kind, self.content, begin)[0]

    def skip_text(self, what: str, most: int) -> int:
        """Move behind the next length and as many bytes; returns where those begin."""
        length = self.number("Q", what)
        if length > most:
            raise _Wrong(f"has a damaged header: {what!r} at byte {self.at - 8:,} is {length:,} bytes long")
        return self.skip(length, what)

    def name(self, what: str) -> str:
        """The next text, short and UTF-8."""
        begin = self.skip_text(what, _MAX_NAME)
        try:
            return self.content[begin : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise _Wrong(f"has a damaged header: {what!r} at byte {begin:,} is not UTF-8") from None


def _check(walk: _Walk) -> None:
    walk.skip(4, "its magic")
    version = walk.number("I", "its version")
    if version & 0xFFFF == 0:
        raise _Wrong("is big-endian; only little-endian GGUF files can be read")
    if version not in (2, 3):
        raise _Wrong(f"has version {version} of the GGUF format; only 2 and 3 can be read")
    num_tensors, num_keys = walk.number("Q", "its counts"), walk.number("Q", "its counts")
    # 12 and 24 are the fewest bytes that a key and a tensor can take.
    for count, least, most, what in (
        (num_keys, 12, _MAX_KEYS, "metadata keys"),
        (num_tensors, 24, _MAX_TENSORS, "tensors"),
    ):
        if count * least > walk.size or count > most:
            raise _Wrong(f"has a damaged header: it claims {count:,} {what} in {walk.size:,} bytes")
    header = _Header()
    for _ in range(num_keys):
        key = walk.name("a metadata key")
        if key in header.metadata:
            raise _Wrong(f"has a damaged header: the metadata key {key!r} is there twice")
        header.metadata[key] = _value(walk, walk.number("I", key), key)
    for _ in range(num_tensors):
        _tensor(walk, header)
    _check_places(walk, header)
    _check_sizes(header)


def _value(walk: _Walk, kind: int, key: str) -> Any:
    """A number; of a text or an array nothing but what it takes to go on."""
    if kind in _SCALARS:
        return walk.number(_SCALARS[kind], key)
    if kind == _STRING:
        walk.skip_text(key, _MAX_TEXT)
        return None
    if kind != _ARRAY:
        raise _Wrong(f"has a damaged header: {key!r} has the unknown type {kind}")
    inner, count = walk.number("I", key), walk.number("Q", key)
    if count > _MAX_ELEMENTS:
        raise _Wrong(f"has a damaged header: {key!r} claims {count:,} elements in {walk.size:,} bytes")
    if inner in _SCALARS:
        walk.skip(count * struct.calcsize("<" + _SCALARS[inner]), key)
    elif inner == _STRING:
        _skip_texts(walk, count, key)
    else:
        raise _Wrong(f"has a damaged header: {key!r} is an array of the type {inner}")
    return None


def _skip_texts(walk: _Walk, count: int, key: str) -> None:
    """Written flat: a vocabulary has hundreds of thousands of strings."""
    length_of, content, at, last = struct.Struct("<Q").unpack_from, walk.content, walk.at, walk.size - 8
    for _ in range(count):
        if at > last:
            break
        at += 8 + length_of(content, at)[0]
    else:
        if at - walk.at > _MAX_TEXTS:
            raise _Wrong(f"has a damaged header: {key!r} claims {at - walk.at:,} bytes of text")
        walk.skip(at - walk.at, key)
        return
    raise _Wrong(f"is truncated or damaged: it is {walk.size:,} bytes, which end within {key!r}")


def _tensor(walk: _Walk, header: _Header) -> None:
    from gguf import GGML_QUANT_SIZES

    name = walk.name("a tensor's name")
    if name in header.tensors:
        raise _Wrong(f"has a damaged header: the tensor {name!r} is there twice")
    num_dimensions = walk.number("I", name)
    if not 0 < num_dimensions <= _MAX_DIMENSIONS:
        raise _Wrong(f"has a damaged header: the tensor {name!r} has {num_dimensions:,} dimensions")
    shape = tuple(walk.number("Q", name) for _ in range(num_dimensions))
    kind, begin = walk.number("I", name), walk.number("Q", name)
    if kind not in GGML_QUANT_SIZES:
        raise _Wrong(f"holds the tensor {name!r} of a type that is not known here ({kind})")
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or math.prod(shape) >= _TOO_LARGE or shape[0] % block:
        raise _Wrong(f"has a damaged header: the tensor {name!r} has shape {shape}, in blocks of {block}")
    header.tensors[name] = shape, begin, math.prod(shape) // block * block_bytes


def _check_places(walk: _Walk, header: _Header) -> None:
    """Whether the tensors lie behind one another and inside the file."""
    alignment = header.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > walk.size:
        raise _Wrong(f"has a damaged header: general.alignment is {alignment!r}, expected a power of two")
    start = -(-walk.at // alignment) * alignment
    reached, before = 0, ""
    for name, (_, begin, size) in sorted(header.tensors.items(), key=lambda item: item[1][1]):
        if begin < reached:
            raise _Wrong(f"has a damaged header: the tensors {before!r} and {name!r} overlap")
        if start + begin + size > walk.size:
            raise _Wrong(
                f"is truncated: it is {walk.size:,} bytes, its header says {start + begin + size:,} ({name!r} ends there)"
            )
        reached, before = begin + size, name


def _check_sizes(header: _Header) -> None:
    """Refuse sizes that the tensors cannot have: building such a model would take for ever, or all memory."""
    largest = max((size for shape, _, _ in header.tensors.values() for size in shape), default=0)
    for key, value in header.metadata.items():
        name = key.partition(".")[2]
        most = len(header.tensors) if name == "block_count" else largest if name in _SIZES else None
        if most is not None and isinstance(value, int) and not 0 <= value <= most:
            raise _Wrong(
                f"has a damaged header: {key} is {value:,}, more than its {len(header.tensors):,} tensors bear out"
            )
