"""Rows from files, saved data sets and the hub. Each row carries the place that error messages point to.

A .txt file is one row per paragraph: paragraphs end at blank lines. A .json file may hold an array or one object a
line, and so may a .jsonl file.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dorakit.data.csv_rows import csv_rows, delimiter_note
from dorakit.data.hub import load_hub, load_saved, missing
from dorakit.data.json_rows import is_array, json_rows
from dorakit.data.made import made_rows
from dorakit.data.order import WEIGHT, shuffled
from dorakit.errors import DataError
from dorakit.recipe.paths import ROW_FILES, is_hub_id
from dorakit.recipe.schema import DataSection, SourceSection
from dorakit.words import counted

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar")


@dataclass(frozen=True)
class Row:
    """One row of data and its place: train.jsonl:812 (a line) or train.json[17] (an index from 0)."""

    fields: dict[str, Any]
    place: str


@dataclass(frozen=True)
class FileRows:
    """Rows of a file; `notes` are lines to print and record, `is_whole` is false where reading stopped at a bound."""

    rows: list[Row]
    notes: list[str]
    is_whole: bool


def read_rows(
    source: SourceSection, root: str, *, split: str = "train", seed: int = 0, twin: bool = False
) -> tuple[list[Row], list[str]]:
    """Read a source, skip its `offset` rows and stop after `limit`; `weight` is `num_copies`'s business.

    Args:
        source: What to read.
        root: Absolute directory that a relative path starts from.
        split: Of a data set, where the source names none.
        seed: Of the made rows; nothing else here draws.
        twin: Make rows where a file is absent, and always for a hub data set.

    Returns:
        The rows, and lines to print and record.

    Raises:
        DataError: Absent, unreadable or empty data.
        ResourceError: The hub cannot be reached.
    """
    path = Path(root, os.path.expanduser(source.path))
    try:
        is_there = path.exists()
    except OSError as error:
        raise DataError(f"{source.path} cannot be looked at: {error.strerror}") from None
    hub = is_hub_id(source.path, path)
    notes: list[str] = []
    if twin and not is_there:
        rows = [Row(fields, f"{source.path}[made {index}]") for index, fields in enumerate(made_rows(source, seed))]
        rows = rows[: source.limit]
        why = "a hub data set" if hub else "absent"
        return rows, [
            f"{source.path} is {why}: --twin made {counted(len(rows), 'row')} of format {source.format} in its place"
        ]
    if hub:
        rows = _indexed(load_hub(source, path, source.split or split), source.path)
    elif path.is_dir():
        rows = _indexed(load_saved(path, source.split or split, is_asked=source.split is not None), source.path)
    elif path.is_file():
        found = read_file(path, source.path)
        rows, notes = found.rows, found.notes
    else:
        raise missing(path, source.path)
    return selected(rows, source), notes


def selected(rows: list[Row], source: SourceSection) -> list[Row]:
    """The rows that are left of a source's by its `offset` and `limit`.

    Raises:
        DataError: None is.
    """
    if not rows:
        raise DataError(f"{source.path} has no rows")
    if source.offset >= len(rows):
        raise DataError(f"{source.path}: offset {source.offset} skips all of its {counted(len(rows), 'row')}")
    end = None if source.limit is None else source.offset + source.limit
    return rows[source.offset : end]


def like_first(
    data: DataSection,
    path: str,
    *,
    split: str | None = None,
    prompt: str | None = None,
    offset: int = 0,
    limit: int | None = None,
) -> SourceSection:
    """A source of held-out rows in the form of the first training source: same format, columns and prompt.

    Of another data set than the first source's, that one's configuration and revision say nothing.
    """
    first = data.train[0]
    changes = {
        "path": path,
        "split": split,
        "weight": 1.0,
        "offset": offset,
        "limit": limit,
        "prompt": prompt or first.prompt,
    }
    if path != first.path:
        changes |= {"name": None, "revision": None}
    return first.model_copy(update=changes)


def num_copies(num_rows: int, weight: float, seed: int, index: int) -> npt.NDArray[np.int64]:
    """How often each row of the `index`-th source is trained on: weight 1.5 is once each, and half of them twice.

    Which rows the fraction falls on depends on the seed, the source's index and its number of rows alone.
    """
    whole = math.floor(weight)
    copies = np.full(num_rows, whole, dtype=np.int64)
    copies[shuffled(num_rows, seed, WEIGHT, index)[: round((weight - whole) * num_rows)]] += 1
    return copies


def read_file(path: Path, name: str, *, most_rows: int | None = None, most_bytes: int | None = None) -> FileRows:
    """Read a file's rows, or the first of them: at most so many, out of at most so many bytes (of Parquet: batches).

    Raises:
        DataError: The file is of no known kind, cannot be read, or is empty.
    """
    suffix = path.suffix.lower()
    if suffix not in ROW_FILES:
        hint = "\n  unpack it first" if suffix in _PACKED else ""
        raise DataError(
            f"{name} is of no known kind; rows are read from .json, .jsonl, .csv, .parquet and .txt files{hint}"
        )
    with _unchanged(path, name):
        if suffix == ".parquet":
            return _parquet(path, name, most_rows)
        content = path.read_bytes() if most_bytes is None else _first_bytes(path, most_bytes + 1)
    is_whole = most_bytes is None or len(content) <= most_bytes
    text = _decoded(content, name, is_whole)
    if not text.strip():
        raise DataError(f"{name} is empty")
    if not is_whole and not is_array(text):
        text = text[: text.rfind("\n") + 1]  # the last line is there in part
    notes: list[str] = []
    if suffix == ".csv":
        notes = delimiter_note(text, name)
        found = csv_rows(text, name, is_whole=is_whole)
    elif suffix == ".txt":
        found = _paragraphs(text, name)
    else:
        found = json_rows(text, name, is_whole=is_whole)
    rows = [Row(fields, place) for fields, place in itertools.islice(found, most_rows)]
    return FileRows(rows, notes, is_whole and next(found, None) is None)


def _first_bytes(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


@contextlib.contextmanager
def _unchanged(path: Path, name: str) -> Iterator[None]:
    """Refuse a file that another process writes while it is read: half a row, or rows that no one has seen whole.

    Raises:
        DataError: It changed, or cannot be read.
    """
    try:
        before = path.stat()
        yield
        after = path.stat()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(
            f"{name} changed while it was read: {before.st_size:,} bytes before, {after.st_size:,} after\n"
            "  wait until it is written, or train on a copy"
        )


def _decoded(content: bytes, name: str, is_whole: bool) -> str:
    at = 0 if content.startswith((b"\xff\xfe", b"\xfe\xff")) else content.find(b"\0")  # UTF-16 is full of zeros
    if at < 0:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if not is_whole and error.reason == "unexpected end of data":  # cut within a character
                return content[: error.start].decode("utf-8-sig")
            at = error.start
    line = content.count(b"\n", 0, at) + 1
    raise DataError(
        f"{name}:{line}: not UTF-8 text: byte 0x{content[at]:02x} at offset {at}.\n  save the file as UTF-8"
    )


def _paragraphs(text: str, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    lines: list[str] = []
    start = 1
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            if not lines:
                start = number
            lines.append(line)
        elif lines:
            yield {"text": "\n".join(lines)}, f"{name}:{start}"
            lines = []


def _parquet(path: Path, name: str, most_rows: int | None) -> FileRows:
    import pyarrow
    import pyarrow.parquet

    try:
        if most_rows is None:
            return FileRows(_indexed(pyarrow.parquet.read_table(path).to_pylist(), name), [], True)
        with pyarrow.parquet.ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=most_rows), None)
            rows = _indexed(batch.to_pylist() if batch is not None else [], name)
            return FileRows(rows, [], len(rows) == file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _indexed(values: Iterable[dict[str, Any]], name: str) -> list[Row]:
    return [
        Row({key: _without_nulls(value) for key, value in fields.items()}, f"{name}[{index}]")
        for index, fields in enumerate(values)
    ]


def _without_nulls(value: Any) -> Any:
    """A value without the null fields inside it.

    Arrow gives every struct of a column the fields of all the others: where two rows call different tools, each
    call's arguments would name the other's as null.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
