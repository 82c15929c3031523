"""Made rows: stand-ins for data that is not here, so that `--twin` can run any recipe end to end.

They prove the plumbing. The task (adding two small numbers, in words) is only there to be readable.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from dorakit.data.order import MADE
from dorakit.recipe.schema import SourceSection

NUM_ROWS = 48
_THINGS = ("apples", "books", "coins", "lamps", "pears", "stones")


def made_rows(source: SourceSection, seed: int) -> list[dict[str, Any]]:
    """Rows in the format and under the column names of a source; other paths give other rows."""
    key = [seed, MADE, zlib.crc32(source.path.encode())]
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(3 * NUM_ROWS)
    numbers = [int(value) >> 32 for value in bits]
    rows = []
    for left, right, thing in zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True):
        a, b, name = left % 90 + 10, right % 90 + 10, _THINGS[thing % len(_THINGS)]
        rows.append(_row(source, f"How many {name} are {a} and {b} {name}?", f"{a + b} {name}", str(a + b)))
    return rows


def _row(source: SourceSection, question: str, reply: str, answer: str) -> dict[str, Any]:
    fields: dict[str, Any]
    if source.format == "chat":
        fields = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}
        if "conversations" in source.columns and "messages" not in source.columns:
            fields = {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]}
    elif source.format == "instruction":
        fields = {"instruction": question, "input": "", "output": reply}
    elif source.format == "completion":
        fields = {"prompt": question + " ", "completion": reply}
    else:
        fields = {"text": f"{question} {reply}"}
    if source.format != "text":
        fields["answer"] = answer
    made = {source.columns.get(name, name): value for name, value in fields.items() if name != "answer"}
    # One column may serve as output and as answer; the text to train on wins.
    made.setdefault(source.columns.get("answer", "answer"), fields.get("answer"))
    for name, column in source.columns.items():
        made.setdefault(column, None if name == "tools" else "")
    return made
