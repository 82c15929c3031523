"""Turns of a conversation as data sets write them: OpenAI's messages (role, content) and ShareGPT's (from, value)."""

from __future__ import annotations

import json
from typing import Any

from dorakit.data.quoting import listed, seen
from dorakit.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}


def read_turns(value: Any, place: str, column: str) -> list[dict[str, Any]]:
    """Check a list of turns and bring it to the form of `messages`; keys that are null are left out.

    Raises:
        DataError: Not a list of turns, or a role, content or tool call that cannot be used.
    """
    if not isinstance(value, list) or not value:
        seen = "an empty list" if value == [] else type(value).__name__
        raise DataError(f"{place}: field {column!r} is {seen}, expected a list of turns")
    return [_turn(turn, f"{place}: turn {number} of {column!r}") for number, turn in enumerate(value, 1)]


def read_tools(value: Any, place: str) -> list[dict[str, Any]] | None:
    """The `tools` of a row: a list of JSON schemas, or the text of one."""
    tools = _parsed(value) if isinstance(value, str) else value
    if not tools:
        if isinstance(value, str) and value.strip() and tools is None:
            raise DataError(f"{place}: field 'tools' is a text that is not JSON, expected a list of tool schemas")
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{place}: field 'tools' is {type(tools).__name__}, expected a list of tool schemas")
    return tools


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON may spell halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def fault_in(text: str) -> str:
    """What keeps a text from being trained on, '' where nothing does."""
    if not is_encodable(text):
        return "half of a surrogate pair"
    return "a zero character (NUL)" if "\0" in text else ""


def _turn(turn: Any, place: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise DataError(f"{place} is {type(turn).__name__}, expected an object with role and content")
    message: dict[str, Any] = {str(key): field for key, field in turn.items() if field is not None}
    if "role" not in message and "from" in message:
        message = _from_sharegpt(message, place)
    if "role" not in message:
        raise DataError(f"{place} has no role; it has: {listed(message)}")
    if message["role"] not in ROLES:
        raise DataError(f"{place}: unknown role {seen(message['role'])}; known are {', '.join(ROLES)}")
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataError(
            f"{place}: weight is {seen(weight)}; only 0 (the turn is not trained on) and 1 are known\n"
            "  rows that should count more or less go into a source of their own, with a weight in data.train"
        )
    if not message.get("tool_calls", True):
        del message["tool_calls"]
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], place)
    if "content" not in message:
        if "tool_calls" not in message:
            raise DataError(f"{place} has no content; it has: {listed(message)}")
        message["content"] = ""  # templates join it to text, and null is no text
    message["content"] = _content(message["content"], place)
    return message


def _from_sharegpt(turn: dict[str, Any], place: str) -> dict[str, Any]:
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in _SHAREGPT:
        raise DataError(f"{place}: unknown speaker {seen(speaker)}; known are {', '.join(_SHAREGPT)}")
    if "value" not in turn:
        raise DataError(f"{place} has no value; it has: {listed(turn)}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if speaker != "function_call":
        return {"role": _SHAREGPT[speaker], "content": turn["value"], **rest}
    call = _parsed(turn["value"]) if isinstance(turn["value"], str) else turn["value"]
    return {"role": "assistant", "content": "", "tool_calls": call if isinstance(call, list) else [call], **rest}


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise DataError(f"{place}: tool_calls is {type(calls).__name__}, expected a list")
    return [_tool_call(call, place) for call in calls]


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{place}: a tool call needs a name and arguments, found {seen(call)}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # OpenAI writes the arguments as a JSON text and chat templates expect the object.
        parsed = _parsed(arguments) if arguments.strip() else {}
        if not isinstance(parsed, dict):
            raise DataError(f"{place}: the arguments of tool call {seen(function['name'])} are not a JSON object")
        arguments = parsed
    told = ("function", "name", "arguments")
    rest = {key: value for key, value in call.items() if value is not None and key not in told}
    return {"type": "function", **rest, "function": {**function, "arguments": arguments}}


def _content(content: Any, place: str) -> str:
    if isinstance(content, list):
        texts = []
        for part in content:
            kind = part.get("type", "text") if isinstance(part, dict) else "text"
            text = part.get("text") if isinstance(part, dict) else part
            if kind != "text" or not isinstance(text, str):
                raise DataError(f"{place}: a content part of type {seen(kind)}; only text can be trained on")
            texts.append(text)
        content = "".join(texts)
    if not isinstance(content, str):
        raise DataError(f"{place}: content is {type(content).__name__}, expected text")
    if fault := fault_in(content):
        raise DataError(f"{place}: content holds {fault}, which is no text")
    return content


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
