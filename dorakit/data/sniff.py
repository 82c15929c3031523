"""Which format rows are in, told from the names of their fields and what these hold; nothing here knows a tokenizer.

What a format expects is formats.py's business; here are the other names that data sets use for the same things. Whoever
trains sees in the recipe what was taken for what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dorakit.data.formats import EXPECTED, read_samples
from dorakit.data.quoting import listed, quoted
from dorakit.data.sources import Row
from dorakit.errors import DataError
from dorakit.recipe.schema import SourceSection

Format = Literal["chat", "instruction", "completion", "text"]

_LOOKED_AT = 64  # rows whose fields are compared; afterwards every row is read in the format that was found
_QUESTIONS = ("instruction", "question", "prompt", "query", "problem", "input")
# `answer` is the last: beside a worked solution it is what an evaluation compares with.
_ANSWERS = ("output", "response", "completion", "solution", "target", "reply", "answer")
_CONTEXTS = ("input", "context")
_TEXTS = ("text", "content", "document", "body")
_KINDS = {str: "text", bool: "true or false", int: "number", float: "number", list: "list", dict: "object"}


@dataclass(frozen=True)
class Sniffed:
    """What rows are: `columns` as a recipe writes them (expected name -> name in the data), `unused` the other fields."""

    format: Format
    columns: dict[str, str]
    unused: list[str]


def sniff(rows: Sequence[Row], path: str) -> Sniffed:
    """Tell the format of rows, and read all of them in it.

    Args:
        rows: At least one.
        path: What messages call them.

    Raises:
        DataError: They fit no format, are of several, or one has a field that the format cannot take.
    """
    looked_at = [rows[index] for index in spread(len(rows), _LOOKED_AT)]
    found = [(row, _reading(row.fields)) for row in looked_at]
    first, reading = found[0]
    if reading is None:
        raise _fits_nothing(first, path)
    for row, other in found:
        if other != reading:
            raise DataError(
                f"{path}: rows of two kinds: {first.place} is {_in_words(first, reading)}, {row.place} "
                f"{'fits no format' if other is None else 'is ' + _in_words(row, other)}\n"
                f"  {row.place} has: {_shape(row.fields)}\n"
                "  mend it, or put each kind into a file of its own and list them under data.train"
            )
    form, columns = reading[0], dict(reading[1])
    names = list(dict.fromkeys(str(name) for row in looked_at for name in row.fields))
    contexts = {name.lower(): name for name in reversed(names) if name not in columns.values()}
    context = next((contexts[name] for name in _CONTEXTS if name in contexts), None)
    if form == "instruction" and context is not None:
        columns["input"] = context
    taken = {columns.get(name, name) for name in EXPECTED[form]}
    columns = {name: column for name, column in columns.items() if name != column}
    read_samples(
        rows, SourceSection(path=path, format=form, columns=columns, prompt="chat")
    )  # takes all that rows have
    return Sniffed(form, columns, [name for name in names if name not in taken])


def spread(count: int, most: int) -> list[int]:
    """Indices of at most so many rows, evenly spread from the first to the last."""
    if count <= most:
        return list(range(count))
    return [math.floor(index * (count - 1) / (most - 1)) for index in range(most)]


# A format, and (expected name, name in the data) of what it cannot do without.
Reading = tuple[Format, tuple[tuple[str, str], ...]]


def _reading(fields: dict[str, Any]) -> Reading | None:
    """What a row is: names as a format expects them count before other names."""
    texts = [name for name, value in fields.items() if isinstance(value, str)]
    if any(_is_turns(fields.get(name)) for name in ("messages", "conversations")):
        return "chat", ()
    if {"instruction", "output"} <= fields.keys():
        return "instruction", ()
    if {"prompt", "completion"} <= fields.keys():
        return "completion", ()
    if (turns := next((name for name, value in fields.items() if _is_turns(value)), None)) is not None:
        return "chat", (("messages", turns),)
    written = {str(name).lower(): str(name) for name in reversed(texts)}  # spreadsheets have `Question`
    answer = next((written[name] for name in _ANSWERS if name in written), None)
    question = next((written[name] for name in _QUESTIONS if name in written and written[name] != answer), None)
    if question is not None and answer is not None:
        return "instruction", (("instruction", question), ("output", answer))
    only = texts[0] if len(fields) == len(texts) == 1 else None
    text = next((written[name] for name in _TEXTS if name in written), only)
    return None if text is None else ("text", (("text", text),))


def _is_turns(value: Any) -> bool:
    """Whether a value is a conversation: a list of objects that name a speaker."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
    )


def _in_words(row: Row, reading: Reading) -> str:
    form, columns = reading
    names = [column for _, column in columns] or [name for name in EXPECTED[form] if name in row.fields]
    return f"{form} ({listed(names)})"


def _shape(fields: dict[str, Any]) -> str:
    return listed(f"{quoted(str(name), 30)} ({_kind(value)})" for name, value in fields.items())


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def _fits_nothing(row: Row, path: str) -> DataError:
    return DataError(
        f"{path}: its rows fit no format; {row.place} has: {_shape(row.fields)}\n"
        "  chat         messages: a list of objects with role and content, or conversations with from and value\n"
        "  instruction  instruction and output, both text; input may be there too\n"
        "  completion   prompt and completion, both text\n"
        "  text         text\n"
        "  where these only have other names, write a recipe whose source says so: columns: {output: NAME IN THE DATA}"
    )
