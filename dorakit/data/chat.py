"""Conversations through a chat template: the rendered text, and the spans that the assistant writes.

Where a template marks the assistant's text ({% generation %}), its marks are used. Most do not; then a turn's span is
the difference between two renderings: the turns before it, with the generation prompt, and the turns up to it. That
holds only if both are beginnings of the whole rendering, and this is checked for every trained turn: a template that
rewrites earlier turns is an error, never a wrong mask.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from dorakit.data.formats import Conversation
from dorakit.data.hub import missing
from dorakit.data.quoting import quoted
from dorakit.data.trial import MAX_TEXT, line_of, try_template
from dorakit.data.turns import fault_in
from dorakit.errors import DataError
from dorakit.model.stops import special_tokens
from dorakit.recipe.paths import is_template_text
from dorakit.recipe.schema import DataSection

_MAX_TEMPLATE = 1024 * 1024  # bytes; the longest that models come with have some twenty thousand
_GROWTH = 4  # characters written for one of the conversation; tools may be written once as schema and once as text
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    `spans` carry the loss. `is_open` says that the text ends with a span and without a stop token; `num_endless` counts
    the spans further up that end without one, where none can be added.
    """

    text: str
    spans: list[tuple[int, int]]
    is_open: bool
    num_endless: int


def install_template_(tokenizer: PreTrainedTokenizerBase, data: DataSection) -> None:
    """Put `data.chat_template` (a text, or a file under data.root) in the place of the tokenizer's own.

    The tokenizer is changed, so that the template is saved with it and generation uses it too.

    Raises:
        DataError: The file is not there, too large, or not UTF-8.
    """
    written = data.chat_template
    if written is None:
        return
    if not is_template_text(written):
        path = Path(data.root, os.path.expanduser(written))
        if not path.is_file():
            raise DataError(f"data.chat_template: {missing(path, written)}")
        if path.stat().st_size > _MAX_TEMPLATE:
            raise DataError(
                f"data.chat_template: {path} has {path.stat().st_size:,} bytes; at most {_MAX_TEMPLATE:,} are read"
            )
        try:
            written = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"data.chat_template: {path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
                f"{error.start}.\n  save the file as UTF-8"
            ) from None
    tokenizer.chat_template = written


def try_template_of(tokenizer: PreTrainedTokenizerBase, data: DataSection | None) -> None:
    """Try the tokenizer's chat template (data/trial.py), under the name that it has for the user.

    Raises:
        DataError: It cannot be used.
    """
    written = None if data is None else data.chat_template
    name = "the tokenizer's chat template"
    if written is not None:
        name = "data.chat_template" if is_template_text(written) else f"data.chat_template {written}"
    try_template(tokenizer, name)


class ChatRenderer:
    """Renders conversations with one tokenizer's template, after a trial of it.

    Raises:
        DataError: The tokenizer has no chat template, or one that cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSection):
        if not tokenizer.chat_template:
            raise DataError(
                "the rows are conversations and the tokenizer has no chat template.\n"
                "  set data.chat_template (a Jinja text or file), or use an instruction-tuned base"
            )
        try_template_of(tokenizer, data)
        self._tokenizer = tokenizer
        self._train_on = data.train_on
        self._specials = special_tokens(tokenizer)

    def document(self, conversation: Conversation) -> Rendered:
        """The whole conversation, with the spans to train on: never those of turns with `weight: 0`."""
        self._check_tools(conversation)
        answers = [i for i, turn in enumerate(conversation.messages) if turn["role"] == "assistant"]
        weightless = [i for i in answers if conversation.messages[i].get("weight") == 0]
        if self._train_on == "all":
            text = self._render(conversation, len(conversation.messages))
            spans = self._without([(0, len(text))] if text else [], conversation, text, weightless)
            return Rendered(text, spans, bool(spans) and spans[-1][1] == len(text) and not self._is_stopped(text), 0)
        if _GENERATION_MARK.search(self._tokenizer.get_chat_template(tools=conversation.tools)):
            text, spans = self._render_marked(conversation)
            spans = spans[-1:] if self._train_on == "last" else spans
            spans = self._without(spans, conversation, text, weightless)
        else:
            text = self._render(conversation, len(conversation.messages))
            wanted = answers[-1:] if self._train_on == "last" else answers
            spans = [self._span(conversation, text, turn) for turn in wanted if turn not in weightless]
        spans = [self._to_stop(text, start, end) for start, end in spans]
        endless = [end for _, end in spans if not self._is_stopped(text[:end])]
        is_open = bool(endless) and not text[endless[-1] :].strip()
        return Rendered(text, spans, is_open, len(endless) - is_open)

    def prompt(self, conversation: Conversation) -> str:
        """The turns before the assistant's last one, with the generation prompt."""
        answers = [i for i, turn in enumerate(conversation.messages) if turn["role"] == "assistant"]
        count = answers[-1] if answers else len(conversation.messages)
        self._check_tools(replace(conversation, messages=conversation.messages[:count]))
        return self._render(conversation, count, add_generation_prompt=True)

    def _check_tools(self, conversation: Conversation) -> None:
        """Refuse tools and tool calls that the template drops: of a call nothing but the stop token would be left."""
        messages = conversation.messages
        bare = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in messages]
        others = {"tool calls": replace(conversation, messages=bare), "tools": replace(conversation, tools=None)}
        for what, other in others.items():
            if other == conversation or not messages:
                continue
            text = self._render(conversation, len(messages))
            try:
                is_dropped = text == self._render(other, len(messages))
            except DataError:
                continue  # a template that cannot do without them reads them
            if is_dropped:
                raise DataError(
                    f"{conversation.row}: the chat template writes no {what}, so the model would never see them.\n"
                    "  set data.chat_template to one that does, use a base whose template does, or leave the row out"
                )

    def _without(
        self, spans: list[tuple[int, int]], conversation: Conversation, text: str, turns: list[int]
    ) -> list[tuple[int, int]]:
        """The spans with those of some turns cut out."""
        for turn in turns:
            left, right = self._to_stop(text, *self._span(conversation, text, turn))
            parts = [part for start, end in spans for part in ((start, min(end, left)), (max(start, right), end))]
            spans = [(start, end) for start, end in parts if start < end]
        return spans

    def _span(self, conversation: Conversation, text: str, turn: int) -> tuple[int, int]:
        before = self._render(conversation, turn, add_generation_prompt=True)
        through = text if turn == len(conversation.messages) - 1 else self._render(conversation, turn + 1)
        eos = self._tokenizer.eos_token or ""
        if not text.startswith(through) and through.rstrip().endswith(eos):
            # Some templates (Phi-3's) end every rendering with the end-of-text token, after the turn's own stop token.
            shorter = through.rstrip().removesuffix(eos)
            through = shorter if self._is_stopped(shorter) else through
        if not text.startswith(before) or not text.startswith(through) or len(through) < len(before):
            raise DataError(
                f"{conversation.row}: the chat template does not write turn {turn + 1} in the whole conversation as it "
                f"does when that turn is the newest, so the model would train on a text that it never meets.\n"
                f"  {_difference(text, before if not text.startswith(before) else through)}\n"
                "  use train_on: last with one conversation per answer, or another data.chat_template"
            )
        return len(before), len(through)

    def _to_stop(self, text: str, start: int, end: int) -> tuple[int, int]:
        """Move a span's end to just behind the turn's stop token: not a newline further, and not one token less."""
        written = text[start:end].rstrip()
        if written.endswith(self._specials):
            return start, start + len(written)
        eos = self._tokenizer.eos_token
        if eos and text.startswith(eos, end):
            return start, end + len(eos)
        return start, end

    def _is_stopped(self, text: str) -> bool:
        return text.rstrip().endswith(self._specials)

    def _render(self, conversation: Conversation, count: int, *, add_generation_prompt: bool = False) -> str:
        render = partial(self._tokenizer.apply_chat_template, tools=conversation.tools, tokenize=False)
        try:
            text = str(render(conversation.messages[:count], add_generation_prompt=add_generation_prompt))
        except Exception as error:  # a template raises what it likes
            raise _failure(conversation, count, error) from None
        return _checked(text, conversation)

    def _render_marked(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        options: dict[str, Any] = {
            "tools": conversation.tools,
            "chat_template": self._tokenizer.get_chat_template(tools=conversation.tools),
            "return_assistant_tokens_mask": True,
            **self._tokenizer.special_tokens_map,
        }
        try:
            texts, marks = render_jinja_template([conversation.messages], **options)
        except Exception as error:  # a template raises what it likes
            raise _failure(conversation, len(conversation.messages), error) from None
        return _checked(texts[0], conversation), [(start, end) for start, end in marks[0] if end > start]


def _checked(text: str, conversation: Conversation) -> str:
    """The text, unless it is none: templates also write names, tools and arguments, which nobody has looked at.

    Nor one that is far longer than what was said, though the template behaved in its trial.
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
    roles = ", ".join(turn["role"] for turn in conversation.messages[:count]) or "none"
    reason = quoted((str(error).strip() or type(error).__name__).splitlines()[0], 200)
    return DataError(
        f"{conversation.row}: the chat template cannot render the turns ({roles}): {reason}{line_of(error)}"
    )


def _difference(whole: str, part: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(whole, part, strict=False)) if a != b), min(len(whole), len(part)))
    start = max(0, at - 20)
    return f"alone it is {part[start : at + 30]!r}, in the whole {whole[start : at + 30]!r}"
