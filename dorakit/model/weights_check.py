"""What a safetensors file claims to hold, checked before a library believes it.

A file begins with eight bytes, the length of a JSON header; the header gives each tensor's dtype, shape and place among
the bytes that follow (https://github.com/huggingface/safetensors). Only the header is read here, at most 8 MiB, and
nothing larger is allocated, whatever it claims. How several files make one model is model/directory.py's business.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dorakit.errors import DorakitError, ModelError

MAX_HEADER_BYTES = 8 << 20
_MAX_DIMENSIONS, _MAX_NAME = 16, 1000
_TOO_LARGE = 1 << 63
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "C64": 8, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
# What takes the place of weights: the pointer of git-lfs, a pickle in a zip or bare, a web page.
_OTHER_FILES = {
    b"PK\x03\x04": "a zip (a pickled checkpoint?)",
    b"\x80": "a pickle",
    b"<": "a web page",
    b"GGUF": "GGUF",
}


@dataclass(frozen=True)
class Stored:
    """A tensor as a header states it."""

    dtype: str
    shape: tuple[int, ...]


class _Wrong(Exception):
    """What is wrong with a file, without its path; `advice` where the caller's does not fit."""

    def __init__(self, reason: str, advice: str = ""):
        super().__init__(reason)
        self.advice = advice


def check_weights(
    path: Path, *, error: type[DorakitError] = ModelError, advice: str = "download it again"
) -> dict[str, Stored]:
    """Hold the header of a safetensors file against the file, and return its tensors by name.

    Args:
        path: The file.
        error: Raised where the file cannot be used: RunError suits files of a run.
        advice: What the reader of the message is to do.
    """
    try:
        with open(_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _header_bytes(file, size)
            return _tensors(_parsed(header), size, room=size - 8 - len(header))
    except _Wrong as wrong:
        raise error(f"{path} {wrong}\n  {wrong.advice or advice}") from None
    except OSError as refused:
        raise error(f"{path} cannot be read: {refused.strerror}") from None


def _regular(path: Path) -> Path:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # opening a FIFO would wait for ever
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise _Wrong(f"is {kind}, expected a safetensors file")
    return path


def _header_bytes(file: BinaryIO, size: int) -> bytes:
    """The header's bytes; its length is trusted only as far as the file goes."""
    start = file.read(32)
    if start.startswith(b"version https://git-lfs"):
        raise _Wrong(
            "is a git-lfs pointer, not the weights", "run `git lfs pull` in its directory, or download the file"
        )
    if len(start) < 8:
        raise _Wrong(f"is {size} bytes; a safetensors file has 8 at least")
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        kind = next((kind for magic, kind in _OTHER_FILES.items() if start.startswith(magic)), "")
        raise _Wrong(f"is not a safetensors file{', but ' + kind if kind else ''}: it begins with {start[:16]!r}")
    if length > size - 8:
        raise _Wrong(f"is truncated: it is {size:,} bytes, its header says {length + 8:,} for itself alone")
    if length > MAX_HEADER_BYTES:
        raise _Wrong(f"has a header of {length:,} bytes, more than the {MAX_HEADER_BYTES:,} that are read")
    file.seek(8)
    return file.read(length)


def _parsed(header: bytes) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise _Wrong(f"has a damaged header: {twice[:80]!r} is there twice")
        return found

    try:
        found = json.loads(header.decode("utf-8"), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, endless digits, lists in lists in lists
        raise _Wrong(f"has a damaged header: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise _Wrong("has a damaged header: no JSON object")
    return found


def _tensors(header: dict[str, Any], size: int, *, room: int) -> dict[str, Stored]:
    """Check every entry, and that the tensors fill the `room` behind the header without overlap or hole."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Wrong("has a damaged header: __metadata__ is no object of texts")
    found: dict[str, Stored] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if len(name) > _MAX_NAME:
            raise _Wrong(f"has a damaged header: a name of {len(name):,} characters, {name[:40]!r}...")
        found[name], begin, end = _entry(name, entry)
        places.append((begin, end, name))
    places.sort()
    reached, before = 0, "the header"
    for begin, end, name in places:
        if begin != reached:
            what = "overlap" if begin < reached else f"have {begin - reached:,} bytes of nothing between them"
            raise _Wrong(f"has a damaged header: {before} and {name!r} {what}")
        reached, before = end, repr(name)
    if reached > room:
        raise _Wrong(f"is truncated: it is {size:,} bytes, its header says {size - room + reached:,}")
    if reached < room:
        raise _Wrong(f"is {size:,} bytes, its header says {size - room + reached:,}: there is more than it tells of")
    return found


def _entry(name: str, entry: Any) -> tuple[Stored, int, int]:
    """A tensor, and where its bytes begin and end behind the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Wrong(f"has a damaged header: the entry of {name!r} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _Wrong(f"holds {name!r} with dtype {str(dtype)[:40]!r}; known are {', '.join(_ITEM_BYTES)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _Wrong(f"has a damaged header: {name!r} has shape {str(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Wrong(f"has a damaged header: {name!r} has data_offsets {str(offsets)[:80]}")
    needed = math.prod(shape) * _ITEM_BYTES[dtype]
    if needed >= _TOO_LARGE or needed != offsets[1] - offsets[0]:
        raise _Wrong(
            f"has a damaged header: {name!r}, {dtype} of shape {shape}, takes {needed:,} bytes, "
            f"and its data_offsets are {offsets[1] - offsets[0]:,} apart"
        )
    return Stored(dtype, tuple(shape)), offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < _TOO_LARGE for size in value)
