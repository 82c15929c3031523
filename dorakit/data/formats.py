"""A row of any format becomes a passage (a prompt and its completion) or a conversation (turns for a chat template)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from dorakit.data.prompts import Prompt, prompt_of
from dorakit.data.quoting import listed, quoted, seen
from dorakit.data.sources import Row
from dorakit.data.turns import fault_in, read_tools, read_turns
from dorakit.errors import DataError
from dorakit.recipe.schema import SourceSection
from dorakit.words import did_you_mean, near

# The names that a format looks for, and those that training cannot do without.
EXPECTED = {
    "chat": ("messages", "conversations", "system", "tools", "answer"),
    "instruction": ("instruction", "input", "output", "system", "history", "answer"),
    "completion": ("prompt", "completion", "answer"),
    "text": ("text",),
}
_NEEDED = {
    "chat": ("messages",),
    "instruction": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
# Names that other data sets use for the same thing, for the hint only: a column is never guessed.
_OTHER_NAMES = {
    "messages": ("conversation", "dialogue", "turns", "chat"),
    "instruction": ("question", "prompt", "query", "problem", "text"),
    "output": ("response", "answer", "completion", "target", "solution", "label"),
    "prompt": ("question", "instruction", "input", "query"),
    "completion": ("response", "answer", "output", "target", "solution"),
    "text": ("content", "document", "body"),
}


@dataclass(frozen=True)
class Passage:
    """Plain text: `completion` follows `prompt` with nothing between. An evaluation compares with `answer`."""

    prompt: str
    completion: str
    answer: str
    row: str

    @property
    def reply(self) -> str:
        """The trained text."""
        return self.completion


@dataclass(frozen=True)
class Conversation:
    """Turns in the form that chat templates read, and the tools they may call."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    answer: str
    row: str

    @property
    def reply(self) -> str:
        """The text of the last turn; "" if it is not the assistant's or holds only tool calls."""
        last = self.messages[-1]
        return str(last.get("content") or "") if last["role"] == "assistant" else ""


Sample = Passage | Conversation


def read_samples(
    rows: Sequence[Row], source: SourceSection, *, evaluation: bool = False, is_whole: bool = True
) -> list[Sample]:
    """Read rows in a source's format.

    Args:
        rows: The rows.
        source: Gives format, columns and prompt.
        evaluation: Rows to be answered: the prompt may have an evaluation form, and the text to train on may be absent
            where an `answer` is given.
        is_whole: These are all rows; otherwise a field that none of them has may be in others.

    Raises:
        DataError: A field is absent, null or of the wrong type; the message names the row, the fields it has, and the
            nearest of them.
    """
    columns = _columns(rows, source, evaluation, is_whole)
    if source.format == "chat":
        return [_conversation(row, columns, evaluation) for row in rows]
    if source.format == "completion":
        return [_completion(row, columns, evaluation) for row in rows]
    if source.format == "text":
        return [Passage("", _text(row, columns, "text"), "", row.place) for row in rows]
    if source.prompt == "chat":
        return [_instruction_turns(row, columns, evaluation) for row in rows]
    prompt = prompt_of(source.prompt, evaluation=evaluation)
    return [_instruction(row, columns, prompt, evaluation) for row in rows]


def needs_turns(rows: Sequence[Row], source: SourceSection) -> bool:
    """Whether rows can only be written as turns: chats, and instructions with a system text or a history."""
    columns = [source.columns.get(name, name) for name in ("system", "history")]
    is_more = source.format == "instruction" and any(row.fields.get(column) for row in rows for column in columns)
    return source.format == "chat" or is_more


def _columns(rows: Sequence[Row], source: SourceSection, evaluation: bool, is_whole: bool) -> dict[str, str]:
    expected = EXPECTED[source.format]
    for name, column in source.columns.items():
        if name not in expected:
            raise DataError(
                f"{source.path}: columns names {name!r}, which format {source.format} does not look for; "
                f"it looks for {', '.join(expected)}.\n  columns maps an expected name to the name in the data"
            )
        # Training reads no answer, so its rows need not have one.
        if is_whole and (name != "answer" or evaluation) and not any(column in row.fields for row in rows):
            present = list(dict.fromkeys(str(field) for row in rows for field in row.fields))
            meant = did_you_mean(column, present)
            raise DataError(
                f"{source.path}: columns maps {name} to {column!r}, and no row has that field.\n"
                f"  the rows have: {listed(present)}" + (f"; {meant}" if meant else "")
            )
    return {name: source.columns.get(name, name) for name in expected}


def _instruction(row: Row, columns: dict[str, str], prompt: Prompt, evaluation: bool) -> Passage:
    instruction, context = _text(row, columns, "instruction"), _optional(row, columns, "input")
    output, answer = _target(row, columns, "output", evaluation)
    for name, said in (("system", _optional(row, columns, "system")), ("history", _history(row, columns))):
        if said:
            raise DataError(
                f"{row.place}: the row has a {columns[name]!r} and the prompt has no place for it.\n"
                "  use prompt: chat, which makes turns of it, or take it out of the rows"
            )
    return Passage(prompt.fill(instruction, context, row.place), output, answer, row.place)


def _instruction_turns(row: Row, columns: dict[str, str], evaluation: bool) -> Conversation:
    instruction, context = _text(row, columns, "instruction"), _optional(row, columns, "input")
    output, answer = _target(row, columns, "output", evaluation)
    user = f"{instruction}\n\n{context}" if context else instruction
    system = _optional(row, columns, "system")
    turns = [{"role": "system", "content": system}] if system else []
    for asked, replied in [*_history(row, columns), (user, output)]:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": replied}]
    return Conversation(turns, None, answer, row.place)


def _history(row: Row, columns: dict[str, str]) -> list[tuple[str, str]]:
    """Earlier questions with their answers, as LLaMA-Factory writes them: a list of pairs."""
    column = columns["history"]
    value = row.fields.get(column) or []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise DataError(f"{row.place}: field {column!r} holds {seen(value)}, expected pairs: [[question, answer], ...]")
    return [(_checked(asked, row, column), _checked(replied, row, column)) for asked, replied in value]


def _completion(row: Row, columns: dict[str, str], evaluation: bool) -> Passage:
    completion, answer = _target(row, columns, "completion", evaluation)
    return Passage(_text(row, columns, "prompt"), completion, answer, row.place)


def _conversation(row: Row, columns: dict[str, str], evaluation: bool) -> Conversation:
    key = "messages" if columns["messages"] in row.fields else "conversations"
    if columns[key] not in row.fields:
        raise _absent(row, columns, "messages")
    messages = read_turns(row.fields[columns[key]], row.place, columns[key])
    if system := _optional(row, columns, "system"):
        if messages[0]["role"] == "system":
            raise DataError(f"{row.place}: a system text is both in {columns['system']!r} and in {columns[key]!r}")
        messages.insert(0, {"role": "system", "content": system})
    tools = read_tools(row.fields.get(columns["tools"]), row.place)
    if tools is None and (functions := read_tools(row.fields.get("functions"), row.place, "functions")):
        tools = [{"type": "function", "function": function} for function in functions]  # OpenAI's form until 2023
    answer = _answer(row, columns)
    if answer is None:
        replies = [turn.get("content") for turn in messages if turn["role"] == "assistant"]
        if evaluation and not replies:
            raise DataError(f"{row.place}: no turn of the assistant and no answer, so nothing to compare with")
        answer = str(replies[-1] or "") if replies else ""
    return Conversation(messages, tools, answer, row.place)


def _target(row: Row, columns: dict[str, str], name: str, evaluation: bool) -> tuple[str, str]:
    """The text to train on, and what an evaluation compares with."""
    answer = _answer(row, columns)
    if evaluation and answer is not None and row.fields.get(columns[name]) is None:
        return "", answer
    text = _text(row, columns, name)
    return text, text if answer is None else answer


def _answer(row: Row, columns: dict[str, str]) -> str | None:
    value = row.fields.get(columns["answer"])
    if isinstance(value, int):  # true is an answer as well, but is written as in the data
        return str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, float) and math.isfinite(value):
        # A whole number becomes a float where its column lacks some; 1e-05 is an answer that no model writes.
        return f"{Decimal(repr(value)):f}".removesuffix(".0")
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))  # NaN is a data frame's null
    return None if is_missing else _checked(value, row, columns["answer"])


def _optional(row: Row, columns: dict[str, str], name: str) -> str:
    value = row.fields.get(columns[name])
    return "" if value is None else _checked(value, row, columns[name])


def _text(row: Row, columns: dict[str, str], name: str) -> str:
    column = columns[name]
    if column not in row.fields:
        raise _absent(row, columns, name)
    value = row.fields[column]
    if value is None:
        raise DataError(f"{row.place}: field {column!r} is null, expected text.\n  remove the row, or fill it in")
    return _checked(value, row, column)


def _checked(value: Any, row: Row, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{row.place}: field {column!r} holds {type(value).__name__} {seen(value)}, expected text")
    if fault := fault_in(value):
        raise DataError(f"{row.place}: field {column!r} holds {fault}, which is no text")
    return value


def _absent(row: Row, columns: dict[str, str], name: str) -> DataError:
    """The error for a row without the field of `name`: all that its format reads, and what the row has for it."""
    form, needed = next((form, names) for form, names in _NEEDED.items() if name in names)
    present = [field for field in map(str, row.fields) if field not in columns.values()]
    meant: dict[str, str] = {}
    for wanted in (other for other in needed if columns[other] not in row.fields):
        left = [field for field in present if field not in meant.values()]
        found = near(columns[wanted], left) or [other for other in _OTHER_NAMES[wanted] if other in left]
        meant[wanted] = quoted(found[0]) if found else "NAME IN THE DATA"
    absent = " and ".join(repr(columns[wanted]) for wanted in meant)
    alternative = " (or conversations)" if form == "chat" else ""
    optional = [other for other in EXPECTED[form] if other not in (*needed, "conversations")]
    also = f"; may have {', '.join(optional)}" if optional else ""
    other_name = "it goes by another name" if len(meant) == 1 else "they go by other names"
    return DataError(
        f"{row.place}: no field{'s' if len(meant) > 1 else ''} {absent}; the row has: {listed(row.fields)}.\n"
        f"  format {form} needs {' and '.join(needed)}{alternative}{also}\n"
        f"  if {other_name}, say so in the source: "
        f"columns: {{{', '.join(f'{ours}: {theirs}' for ours, theirs in meant.items())}}}"
    )
