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
REASONING = ("reasoning_content", "reasoning", "thinking")  # names of what an answer is thought out with
TRAINS = ("loss", "train", "training")  # ms-swift's and axolotl's names for OpenAI's weight of 0 or 1
# Every other field of a turn goes to the chat template as it stands.
READ = ("role", "content", "from", "value", "tool_calls", "function_call", "weight", *TRAINS, *REASONING)


class Arguments(dict[str, Any]):
    """The arguments of a tool call as an object, and `text`: as the row writes them.

    No template meets this class (transformers gives templates plain dicts), so that its repr is free to tell two
    spellings of the same object apart (kept_tokens.py).
    """

    def __init__(self, values: dict[str, Any], text: str):
        super().__init__(values)
        self.text = text

    def __repr__(self) -> str:
        return f"Arguments({super().__repr__()}, {self.text!r})"


def read_turns(value: Any, place: str, column: str) -> list[dict[str, Any]]:
    """Check a list of turns and bring it to the form of `messages`; keys that are null are left out.

    Raises:
        DataError: Not a list of turns, or a role, content or tool call that cannot be used.
    """
    if not isinstance(value, list) or not value:
        seen = "an empty list" if value == [] else type(value).__name__
        raise DataError(f"{place}: field {column!r} is {seen}, expected a list of turns")
    return [_turn(turn, f"{place}: turn {number} of {column!r}") for number, turn in enumerate(value, 1)]


def read_tools(value: Any, place: str, column: str = "tools") -> list[dict[str, Any]] | None:
    """The tools of a row: a list of JSON schemas, or the text of one."""
    tools = _parsed(value) if isinstance(value, str) else value
    if not tools:
        if isinstance(value, str) and value.strip() and tools is None:
            raise DataError(f"{place}: field {column!r} is a text that is not JSON, expected a list of tool schemas")
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{place}: field {column!r} is {type(tools).__name__}, expected a list of tool schemas")
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
    if message["role"] == "function":  # OpenAI's name for a tool's turn until 2023
        message["role"] = "tool"
    if message["role"] not in ROLES:
        raise DataError(f"{place}: unknown role {seen(message['role'])}; known are {', '.join(ROLES)}")
    _bring_weight_(message, place)
    for key in REASONING:
        if not isinstance(message.get(key, ""), str):
            raise DataError(f"{place}: {key} is {type(message[key]).__name__}, expected text")
    if not message.get("tool_calls", True):
        del message["tool_calls"]
    if (call := message.pop("function_call", None)) is not None:  # OpenAI's form of a call until 2023
        if "tool_calls" in message:
            raise DataError(f"{place} has both function_call and tool_calls")
        message["tool_calls"] = [call]
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], place)
    if "content" not in message:
        if "tool_calls" not in message:
            raise DataError(f"{place} has no content; it has: {listed(message)}")
        message["content"] = ""  # templates join it to text, and null is no text
    message["content"] = _content(message["content"], place)
    return message


def _bring_weight_(message: dict[str, Any], place: str) -> None:
    """Check whether a turn is to be trained on; one that is not has weight 0 afterwards, whatever name said so."""
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataError(
            f"{place}: weight is {seen(weight)}; only 0 (the turn is not trained on) and 1 are known\n"
            "  rows that should count more or less go into a source of their own, with a weight in data.train"
        )
    said = {key: message.pop(key) for key in TRAINS if key in message}
    for key, trains in said.items():
        if trains not in (0, 1):
            raise DataError(f"{place}: {key} is {seen(trains)}; only true and false (not trained on) are known")
    if "weight" in message:
        said["weight"] = weight
    if len(set(map(bool, said.values()))) > 1:
        told = ", ".join(f"{key}: {json.dumps(trains)}" for key, trains in said.items())
        raise DataError(f"{place} says both that it is trained on and that it is not: {told}")
    if not all(said.values()):
        message["weight"] = 0


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
    others = set(function) - {"name", "arguments", "id", "type", "index", "function"}
    if "arguments" not in function and others:
        raise DataError(
            f"{place}: tool call {seen(function['name'])} has no arguments; it has: {listed(function)}\n"
            "  they are called arguments: an object, or the text of one"
        )
    told = ("function", "name", "arguments")
    rest = {key: value for key, value in call.items() if value is not None and key not in told}
    return {"type": "function", **rest, "function": {**function, "arguments": _arguments(function, place)}}


def _arguments(function: dict[str, Any], place: str) -> Arguments:
    """As an object, which chat templates expect; OpenAI writes the text of one. Nothing and null are an empty one."""
    written = function.get("arguments")
    if isinstance(written, dict):
        return Arguments(written, json.dumps(written, ensure_ascii=False, default=str))
    text = "" if written is None else written
    values = _parsed(text.strip() or "{}") if isinstance(text, str) else text
    values = {} if values is None and text.strip() == "null" else values
    if not isinstance(values, dict):
        raise DataError(f"{place}: the arguments of tool call {seen(function['name'])} are not a JSON object")
    return Arguments(values, text if values else "{}")


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
