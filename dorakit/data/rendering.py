"""Conversations as a chat template writes them: the text alone, or with the template's own marks of what the assistant says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from dorakit.data.formats import Conversation
from dorakit.data.quoting import quoted
from dorakit.data.trial import MAX_TEXT, line_of
from dorakit.data.turns import fault_in
from dorakit.errors import DataError
from dorakit.run import Run

_GROWTH = 4  # characters written for one of the conversation; tools may be written once as schema and once as text
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class Template:
    """The chat template of one tokenizer.

    Args:
        tokenizer: Holds the template.
        today: What `strftime_now` tells a template; None for the time of the rendering.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, today: datetime | None = None):
        self._tokenizer = tokenizer
        self._today = today

    def is_marked(self, conversation: Conversation) -> bool:
        """Whether the template marks what the assistant says."""
        return bool(_GENERATION_MARK.search(self._of(conversation)))

    def render(self, conversation: Conversation, count: int, *, add_generation_prompt: bool = False) -> str:
        """The first `count` turns.

        Raises:
            DataError: The template refuses them, or what it writes is no text.
        """
        render = partial(self._tokenizer.apply_chat_template, tools=conversation.tools, tokenize=False)
        options = {"add_generation_prompt": add_generation_prompt, "chat_template": self._of(conversation)}
        try:
            text = str(render(conversation.messages[:count], **options))
        except Exception as error:  # a template raises what it likes
            raise _failure(conversation, count, error) from None
        return _checked(text, conversation)

    def render_marked(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """All turns, and the spans that the template marks.

        Raises:
            DataError: As `render`.
        """
        options: dict[str, Any] = {
            "tools": conversation.tools,
            "chat_template": self._of(conversation),
            "return_assistant_tokens_mask": True,
            **self._tokenizer.special_tokens_map,
        }
        try:
            texts, marks = render_jinja_template([conversation.messages], **options)
        except Exception as error:  # a template raises what it likes
            raise _failure(conversation, len(conversation.messages), error) from None
        return _checked(texts[0], conversation), [(start, end) for start, end in marks[0] if end > start]

    def with_fitting_arguments(self, conversation: Conversation) -> Conversation:
        """The conversation, with arguments of tool calls as text where the template joins them to text.

        Most templates take an object. One that takes text fails on it, or writes it as Python would.
        """
        found = [call["function"]["arguments"] for turn in conversation.messages for call in turn.get("tool_calls", [])]
        if not found:
            return conversation
        as_text = replace(conversation, messages=_with_text_arguments(conversation.messages))
        try:
            text = self.render(conversation, len(conversation.messages))
        except DataError:
            try:
                self.render(as_text, len(as_text.messages))
            except DataError:
                return conversation
            return as_text
        return as_text if any(values and repr(dict(values)) in text for values in found) else conversation

    def _of(self, conversation: Conversation) -> str:
        template = self._tokenizer.get_chat_template(tools=conversation.tools)
        return template if self._today is None else _dated(template, self._today)


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer's template asks for the date."""
    return "strftime_now" in str(tokenizer.chat_template)


def template_date(run: Run) -> datetime | None:
    """What the chat template was told to be today when a run began; None where it did not ask."""
    try:
        return datetime.fromisoformat(run.read("run.json")["template_date"])
    except (KeyError, TypeError, ValueError):
        return None


@lru_cache(maxsize=8)
def _dated(template: str, today: datetime) -> str:
    """The template with the date written out: transformers passes no function on to templates, and has one clock."""
    return _DATE.sub(lambda match: json.dumps(today.strftime(match[2])), template)


def _with_text_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    changed = []
    for turn in messages:
        if calls := turn.get("tool_calls"):
            functions = [{**call["function"], "arguments": call["function"]["arguments"].text} for call in calls]
            calls = [{**call, "function": function} for call, function in zip(calls, functions, strict=True)]
            turn = {**turn, "tool_calls": calls}
        changed.append(turn)
    return changed


def _checked(text: str, conversation: Conversation) -> str:
    """Return the text; refuse characters that no tokenizer takes, and output far longer than the conversation.

    Templates also write names, tools and arguments, which were not checked before.
    """
    if len(text) > MAX_TEXT and len(text) > MAX_TEXT + _GROWTH * (said := _length(conversation)):
        raise DataError(
            f"{conversation.row}: the chat template writes {len(text):,} characters for a conversation of {said:,}\n"
            "  mend it, or set data.chat_template to another one"
        )
    if fault := fault_in(text):
        raise DataError(f"{conversation.row}: the chat template writes a field that holds {fault}, which is no text")
    return text


def _length(conversation: Conversation) -> int:
    return len(json.dumps([conversation.messages, conversation.tools], default=str))


def _failure(conversation: Conversation, count: int, error: Exception) -> DataError:
    roles = [str(turn["role"]) for turn in conversation.messages[:count]]
    reason = quoted((str(error).strip() or type(error).__name__).splitlines()[0], 200)
    first = next((role for role in roles if role not in ("system", "developer")), "")
    hint = "\n  the conversation begins with a turn of the assistant" if first == "assistant" else ""
    return DataError(
        f"{conversation.row}: the chat template cannot render the turns ({', '.join(roles) or 'none'}): "
        f"{reason}{line_of(error)}{hint}"
    )
