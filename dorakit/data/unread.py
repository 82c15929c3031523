"""Fields of rows and turns that nothing reads: counted, since what they hold might have been meant to be learned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from dorakit.data.formats import EXPECTED
from dorakit.data.quoting import listed
from dorakit.data.sources import Row
from dorakit.data.turns import READ, TRAINS
from dorakit.recipe.schema import SourceSection

# Where a row or a turn comes from, and its number: nothing that a model learns.
_NO_TEXT = frozenset(
    "id _id ids uid uuid idx index row_id __index_level_0__ conversation_id conv_id message_id tool_call_id "
    "source sources dataset dataset_name subset split url license lang language "
    "date timestamp created_at hash".split()
)


def unread_fields(rows: Sequence[Row], source: SourceSection, template: str) -> list[str]:
    """A line with each field that no row's text is made of, and in how many rows or turns it holds something.

    Args:
        rows: The source's.
        source: Gives format and columns.
        template: The chat template; a field of a turn that it names is taken for read.
    """
    columns = {name: source.columns.get(name, name) for name in EXPECTED[source.format]}
    of_rows: Counter[str] = Counter()
    of_turns: Counter[str] = Counter()
    for row in rows:
        read = set(columns.values())
        if source.format == "chat":
            read.add("functions")
            turns = row.fields.get(columns["messages"])
            if turns is None:
                turns = row.fields.get(columns["conversations"])
            else:
                read.discard(columns["conversations"])
            of_turns.update(name for turn in turns or [] for name in _unread_of(turn))
        of_rows.update(str(name) for name, value in row.fields.items() if name not in read and _says(value))
    named = set(re.findall(r"\w+", template))
    found = [f"{name} ({count} rows)" for name, count in of_rows.items() if name not in _NO_TEXT]
    found += [f"{name} of turns ({count})" for name, count in of_turns.items() if name not in _NO_TEXT | named]
    return [f"{source.path}: not read: {listed(found)}"] if found else []


def _unread_of(turn: dict[str, Any]) -> Iterator[str]:
    role = turn.get("role", turn.get("from"))
    for name, value in turn.items():
        is_flag = name in TRAINS and role in ("user", "human", "system", "tool") and value  # only answers are trained
        is_caller = name == "name" and role in ("tool", "function")  # which the call names as well
        if (name not in READ or is_flag) and not is_caller and _says(value):
            yield str(name)


def _says(value: Any) -> bool:
    return value is not None and value not in ("", [], {})
