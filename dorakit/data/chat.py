"""Conversations through a chat template: the rendered text, and the spans that the assistant writes.

Where a template marks the assistant's text ({% generation %}), its marks are used. Most do not; then a turn's span is
the difference between two renderings: the turns before it, with the generation prompt, and the turns up to it. That
holds only if both are beginnings of the whole rendering, and this is checked for every trained turn. A template that
rewrites earlier answers is used in its training form (training_form.py); one that rewrites more than these is an
error, never a wrong mask. So is one that leaves out what a trained turn says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dorakit.data.formats import Conversation
from dorakit.data.hub import missing
from dorakit.data.left_out import check_answer, check_questions, check_tools, holds_any, left_out
from dorakit.data.quoting import quoted
from dorakit.data.rendering import Template
from dorakit.data.training_form import training_form
from dorakit.data.trial import try_template
from dorakit.errors import DataError
from dorakit.model.stops import special_tokens
from dorakit.recipe.paths import is_template_text
from dorakit.recipe.schema import DataSection

_MAX_TEMPLATE = 1024 * 1024  # bytes; the longest that models come with have some twenty thousand


class _RewrittenError(DataError):
    """A turn is not written in the whole conversation as it is when it is the newest."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    `spans` carry the loss. `is_open` says that the text ends with a span and without a stop token; `num_endless` counts
    the spans further up that end without one, where none can be added. `is_in_training_form` says that each answer is
    written as if it were the newest; `greets` that the first turn, an answer to nothing, is not trained on.
    """

    text: str
    spans: list[tuple[int, int]]
    is_open: bool
    num_endless: int = 0
    is_in_training_form: bool = False
    greets: bool = False


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

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSection, *, today: datetime | None = None):
        if not tokenizer.chat_template:
            raise DataError(
                "the rows are conversations and the tokenizer has no chat template.\n"
                "  set data.chat_template (a Jinja text or file), or use an instruction-tuned base"
            )
        try_template_of(tokenizer, data)
        self._tokenizer = tokenizer
        self._template = Template(tokenizer, today)
        self._train_on = data.train_on
        self._specials = special_tokens(tokenizer)

    def document(self, conversation: Conversation) -> Rendered:
        """The whole conversation, with the spans to train on: never those of turns with `weight: 0`.

        Raises:
            DataError: The template refuses it, leaves out what it says, or writes no turn as if it were the newest.
        """
        conversation = self._template.with_fitting_arguments(conversation)
        check_tools(self._template, conversation)
        answers = [i for i, turn in enumerate(conversation.messages) if turn["role"] == "assistant"]
        trained = [i for i in answers if conversation.messages[i].get("weight") != 0]
        if self._train_on == "all":
            rendered = self._everything(conversation, answers, trained)
        elif self._template.is_marked(conversation):
            rendered = self._marked(conversation, answers, trained)
        else:
            rendered = self._compared(conversation, answers, trained)
        check_questions(self._template, conversation, rendered.text)
        return rendered

    def prompt(self, conversation: Conversation) -> str:
        """The turns before the assistant's last one, with the generation prompt."""
        answers = [i for i, turn in enumerate(conversation.messages) if turn["role"] == "assistant"]
        count = answers[-1] if answers else len(conversation.messages)
        asked = replace(conversation, messages=conversation.messages[:count])
        asked = self._template.with_fitting_arguments(asked)
        check_tools(self._template, asked)
        return self._template.render(asked, count, add_generation_prompt=True)

    def reply(self, conversation: Conversation, prompt: str) -> str:
        """The trained text that follows `prompt`, without the stop token; some templates begin it with a think block."""
        said = conversation.reply.strip()
        whole = self._template.with_fitting_arguments(conversation)
        text = self._template.render(whole, len(whole.messages)) if said else ""
        if not text.startswith(prompt):
            return conversation.reply
        written = text[len(prompt) :]
        # Behind the block, which may hold the same words; a block of the row's own is part of what it says.
        places = (written.find(said, start) for start in (written.rfind("</think>") + 1, 0))
        found = next((place for place in places if place >= 0), -1)
        return written[: found + len(said)] if found >= 0 else conversation.reply

    def _everything(self, conversation: Conversation, answers: list[int], trained: list[int]) -> Rendered:
        text = self._template.render(conversation, len(conversation.messages))
        where: dict[int, tuple[int, int]] = {}
        is_cut = any(left_out(conversation.messages[turn], text) for turn in trained)
        if is_cut and (form := self._training_form(conversation, answers)) is not None:
            text, where = form
        for turn in trained:
            check_answer(conversation, turn, text)
        spans = [(0, len(text))] if text else []
        for turn in set(answers) - set(trained):
            spans = _without(spans, self._to_stop(text, *(where.get(turn) or self._span(conversation, text, turn))))
        is_open = bool(spans) and spans[-1][1] == len(text) and not self._is_stopped(text)
        return Rendered(text, spans, is_open, is_in_training_form=bool(where))

    def _marked(self, conversation: Conversation, answers: list[int], trained: list[int]) -> Rendered:
        text, marks = self._template.render_marked(conversation)
        spans = marks[-1:] if self._train_on == "last" else marks
        for turn in set(answers) - set(trained):
            spans = _without(spans, self._to_stop(text, *self._span(conversation, text, turn)))
        for turn in trained[-1:] if self._train_on == "last" else trained:
            is_each = len(marks) == len(answers)
            written = [marks[answers.index(turn)]] if is_each else spans
            told = "".join(text[start:end] for start, end in written)
            if holds_any(conversation.messages[turn], told):  # otherwise the marks say that it is not trained
                check_answer(conversation, turn, told)
        return self._ended(text, spans)

    def _compared(self, conversation: Conversation, answers: list[int], trained: list[int]) -> Rendered:
        text = self._template.render(conversation, len(conversation.messages))
        wanted = set(answers[-1:]) if self._train_on == "last" else set(answers)
        asked = [turn for turn in trained if turn in wanted and turn > 0]
        is_rewritten = False
        try:
            where = {turn: self._span(conversation, text, turn) for turn in asked}
        except _RewrittenError:
            form = None if self._train_on == "last" else self._training_form(conversation, answers)
            if form is None:
                raise
            (text, where), is_rewritten = form, True
        for turn in asked:
            check_answer(conversation, turn, text[slice(*where[turn])])
        rendered = self._ended(text, [where[turn] for turn in asked])
        return replace(rendered, is_in_training_form=is_rewritten, greets=0 in trained and 0 in wanted)

    def _ended(self, text: str, spans: list[tuple[int, int]]) -> Rendered:
        spans = [self._to_stop(text, start, end) for start, end in spans]
        endless = [end for _, end in spans if not self._is_stopped(text[:end])]
        is_open = bool(endless) and not text[endless[-1] :].strip()
        return Rendered(text, spans, is_open, len(endless) - is_open)

    def _training_form(
        self, conversation: Conversation, answers: list[int]
    ) -> tuple[str, dict[int, tuple[int, int]]] | None:
        try:
            return training_form(self._template, conversation, answers, is_stopped=self._is_stopped)
        except DataError:  # it refuses the turns that it is tried with
            return None

    def _span(self, conversation: Conversation, text: str, turn: int) -> tuple[int, int]:
        before = self._template.render(conversation, turn, add_generation_prompt=True) if turn else ""
        through = text if turn == len(conversation.messages) - 1 else self._template.render(conversation, turn + 1)
        eos = self._tokenizer.eos_token or ""
        if not text.startswith(through) and through.rstrip().endswith(eos):
            # Some templates (Phi-3's) end every rendering with the end-of-text token, after the turn's own stop token.
            shorter = through.rstrip().removesuffix(eos)
            through = shorter if self._is_stopped(shorter) else through
        if not text.startswith(before) or not text.startswith(through) or len(through) < len(before):
            raise self._rewritten(conversation, text, turn, before, through)
        return len(before), len(through)

    def _rewritten(
        self, conversation: Conversation, text: str, turn: int, before: str, through: str
    ) -> _RewrittenError:
        asked = self._template.render(conversation, turn)
        if not text.startswith(before) and text.startswith(asked) and before.startswith(asked):
            prompt = before[len(asked) :]
            return _RewrittenError(
                f"{conversation.row}: the generation prompt of the chat template is '{quoted(prompt)}', and turn "
                f"{turn + 1} is written as '{quoted(text[len(asked) :], len(prompt) + 20)}', so the model would be asked "
                "in a way that it never learned to answer.\n"
                "  set data.chat_template to one whose generation prompt is how the answers of these rows begin"
            )
        is_last = self._train_on == "last" or turn == len(conversation.messages) - 1
        way_out = "use" if is_last else "use train_on: last with one conversation per answer, or"
        return _RewrittenError(
            f"{conversation.row}: the chat template does not write turn {turn + 1} in the whole conversation as it "
            f"does when that turn is the newest, so the model would train on a text that it never meets.\n"
            f"  {_difference(text, before if not text.startswith(before) else through)}\n"
            f"  {way_out} another data.chat_template"
        )

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


def _without(spans: list[tuple[int, int]], cut: tuple[int, int]) -> list[tuple[int, int]]:
    """The spans with one cut out."""
    parts = [part for start, end in spans for part in ((start, min(end, cut[0])), (max(start, cut[1]), end))]
    return [(start, end) for start, end in parts if start < end]


def _difference(whole: str, part: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(whole, part, strict=False)) if a != b), min(len(whole), len(part)))
    start = max(0, at - 20)
    return f"alone it is {part[start : at + 30]!r}, in the whole {whole[start : at + 30]!r}"
