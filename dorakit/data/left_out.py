"""What rows say and a chat template leaves out, since it was not written for it: refused, never dropped in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dorakit.data.formats import Conversation
from dorakit.data.quoting import quoted
from dorakit.data.rendering import Template
from dorakit.data.turns import REASONING
from dorakit.errors import DataError

_THOUGHT = re.compile(r"</?think>")  # templates write these tags anew, with other blanks
_WAYS_OUT = "set data.chat_template to one that does, use a base whose template does, or take it out of the row"


def check_tools(template: Template, conversation: Conversation) -> None:
    """Refuse tools and tool calls that the template drops: of a call nothing but the stop token would be left.

    Raises:
        DataError: It drops some.
    """
    messages = conversation.messages
    bare = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in messages]
    others = {"tool calls": replace(conversation, messages=bare), "tools": replace(conversation, tools=None)}
    for what, other in others.items():
        if other == conversation or not messages:
            continue
        if _is_written_as(template, conversation, other):
            raise DataError(
                f"{conversation.row}: the chat template writes no {what}, so the model would never see them.\n"
                f"  {_WAYS_OUT}"
            )


def check_questions(template: Template, conversation: Conversation, text: str) -> None:
    """Refuse a template that writes nothing of a turn (a role that it does not know, say).

    Raises:
        DataError: It does; `text` is the whole conversation as it is trained on.
    """
    messages, squeezed = conversation.messages, _squeezed(text)
    for number, turn in enumerate(messages):
        if turn["role"] == "assistant" or _squeezed(turn["content"]) in squeezed:
            continue
        silent = [*messages[:number], {**turn, "content": ""}, *messages[number + 1 :]]
        if _is_written_as(template, conversation, replace(conversation, messages=silent)):
            raise DataError(
                f"{conversation.row}: the chat template leaves out turn {number + 1} ({turn['role']}), so the model "
                f"would never see it: {quoted(turn['content'], 60)}\n  {_WAYS_OUT}"
            )


def _is_written_as(template: Template, conversation: Conversation, other: Conversation) -> bool:
    """Whether the template writes the same text without what `other` lacks; a template that fails without it reads it."""
    text = template.render(conversation, len(conversation.messages))
    try:
        return text == template.render(other, len(other.messages))
    except DataError:
        return False


def check_answer(conversation: Conversation, turn: int, written: str) -> None:
    """Refuse a template that leaves out part of what a trained turn says.

    Raises:
        DataError: `written`, the turn's part of the text, lacks some of it.
    """
    if missed := left_out(conversation.messages[turn], written):
        field, said = missed
        raise DataError(
            f"{conversation.row}: the chat template leaves out part of what turn {turn + 1} says, so the model would "
            f"never learn it: {field} '{quoted(said.strip(), 60)}'\n  {_WAYS_OUT}"
        )


def left_out(turn: dict[str, Any], text: str) -> tuple[str, str] | None:
    """The field of a turn, and the first text in it, that `text` does not hold; None where it holds everything.

    Blanks are not compared, for templates trim; nor are numbers in arguments of tool calls.
    """
    squeezed = _squeezed(text)
    for field, said in _texts(turn):
        if said not in text and not any(_squeezed(form) in squeezed for form in _spellings(said)):
            return field, said
    names = [call["function"]["name"] for call in turn.get("tool_calls", [])]
    for name in names:
        if text.count(name) < names.count(name):
            return "tool_calls", name
    return None


def says_anything(turn: dict[str, Any]) -> bool:
    """Whether a turn has any text at all."""
    return any(True for _ in _texts(turn))


def holds_any(turn: dict[str, Any], text: str) -> bool:
    """Whether `text` holds something of what a turn says."""
    squeezed = _squeezed(text)
    return any(_squeezed(said) in squeezed for _, said in _texts(turn))


def _texts(turn: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from (("content", part) for part in _THOUGHT.split(turn["content"]) if part.strip())
    yield from ((key, turn[key]) for key in REASONING if turn.get(key, "").strip())
    for call in turn.get("tool_calls", []):
        function = call["function"]
        yield "tool_calls", function["name"]
        arguments = function["arguments"]
        texts = [arguments] if isinstance(arguments, str) else _leaves(arguments)
        yield from (("tool_calls", text) for text in texts if text.strip())


def _leaves(value: Any) -> Iterator[str]:
    """All keys and texts of a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value


def _spellings(text: str) -> list[str]:
    """As it stands, and as JSON and Python write it between quotes."""
    return [text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1]]


def _squeezed(text: str) -> str:
    return "".join(text.split())
