"""Rows from files, saved data sets and the hub. Each row carries the place that error messages point to.

A .txt file is one row per paragraph: paragraphs end at blank lines. A .json file may hold an array or one object a
line, and so may a .jsonl file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dorakit.data.hub import load_hub, load_saved, missing
from dorakit.data.made import made_rows
from dorakit.data.order import WEIGHT, shuffled
from dorakit.errors import DataError
from dorakit.recipe.paths import is_hub_id
from dorakit.recipe.schema import DataSection, SourceSection

_QUOTED = 80


@dataclass(frozen=True)
class Row:
    """One row of data and its place: train.jsonl:812 (a line) or train.json[17] (an index from 0)."""

    fields: dict[str, Any]
    place: str


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
    if twin and not is_there:
        rows = [Row(fields, f"{source.path}[made {index}]") for index, fields in enumerate(made_rows(source, seed))]
        rows = rows[: source.limit]
        why = "a hub data set" if hub else "absent"
        return rows, [f"{source.path} is {why}: --twin made {len(rows)} rows of format {source.format} in its place"]
    if hub:
        rows = _indexed(load_hub(source, path, source.split or split), source.path)
    elif path.is_dir():
        rows = _indexed(load_saved(path, source.split or split, is_asked=source.split is not None), source.path)
    elif path.is_file():
        rows = _read_file(path, source.path)
    else:
        raise missing(path, source.path)
    if not rows:
        raise DataError(f"{source.path} has no rows")
    if source.offset >= len(rows):
        raise DataError(f"{source.path}: offset {source.offset} skips all of its {len(rows)} rows")
    end = None if source.limit is None else source.offset + source.limit
    return rows[source.offset : end], []


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


def _read_file(path: Path, name: str) -> list[Row]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path, name)
    if suffix not in (".json", ".jsonl", ".csv", ".txt"):
        raise DataError(f"{name} is of no known kind; rows are read from .json, .jsonl, .csv, .parquet and .txt files")
    text = _text_of(path, name)
    if not text.strip():
        raise DataError(f"{name} is empty")
    if suffix == ".csv":
        return _csv(text, name)
    if suffix == ".txt":
        return _paragraphs(text, name)
    return _json_array(text, name) if text.lstrip().startswith("[") else _json_lines(text, name)


def _text_of(path: Path, name: str) -> str:
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        seen = content[error.start : error.start + 1].hex()
        raise DataError(
            f"{name}:{line}: not UTF-8: byte 0x{seen} at offset {error.start}.\n  save the file as UTF-8"
        ) from None


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _json_lines(text: str, name: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            fields = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            if not rows and _is_one_object(text):
                message = f"{name} holds one JSON object; expected an array of objects, or one object a line"
            else:
                message = f"{place}: not JSON: {error.msg} at column {error.colno}: {_quoted(line)}"
            raise DataError(message) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {_reason(error)}: {_quoted(line)}") from None
        rows.append(_object(fields, place))
    return rows


def _json_array(text: str, name: str) -> list[Row]:
    try:
        values = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        raise DataError(
            f"{name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}: {_quoted(line)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON: {_reason(error)}") from None
    return [_object(value, f"{name}[{index}]") for index, value in enumerate(values)]


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected a JSON object, found {type(value).__name__}: {_quoted(json.dumps(value))}")
    return Row(value, place)


def _is_one_object(text: str) -> bool:
    try:
        return isinstance(_DECODER.decode(text), dict)
    except (ValueError, RecursionError):
        return False


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _quoted(text: str) -> str:
    short = text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in short)


def _csv(text: str, name: str) -> list[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        header = next((row for row in reader if len(row) > 1 or "".join(row).strip()), [])
        if len(set(header)) < len(header):
            twice = next(column for column in header if header.count(column) > 1)
            raise DataError(f"{name}:{reader.line_num}: column {twice!r} is there twice")
        line = reader.line_num + 1
        for values in reader:
            if values:
                if len(values) != len(header):
                    raise DataError(f"{name}:{line}: {len(values)} values for {len(header)} columns")
                rows.append(Row(dict(zip(header, values, strict=True)), f"{name}:{line}"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}:{reader.line_num}: not CSV: {error}") from None
    return rows


def _paragraphs(text: str, name: str) -> list[Row]:
    rows: list[Row] = []
    lines: list[str] = []
    start = 1
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            if not lines:
                start = number
            lines.append(line)
        elif lines:
            rows.append(Row({"text": "\n".join(lines)}, f"{name}:{start}"))
            lines = []
    return rows


def _parquet(path: Path, name: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
    return _indexed(table.to_pylist(), name)


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
