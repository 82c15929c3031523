"""A conversation with a loaded target, turn by turn, answered while one looks on.

What is asked goes through the chat template with the turns before it. Where the rows that the target was trained on have
no turns, or the tokenizer has no template, every text is asked by itself, and a line says so once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dorakit.errors import UsageError
from dorakit.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dorakit.evaluation.sampling import Sampling
    from dorakit.target import Target

Turn = dict[str, str]
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Asked:
    """What a voice is asked: prompt ids, the turns in them, and how many older ones had no room."""

    ids: list[int]
    turns: list[Turn]
    dropped_turns: int


@dataclass(frozen=True)
class Answer:
    """What a voice said; `finished` is False where max_new_tokens or the user cut it off."""

    text: str
    finished: bool
    dropped_turns: int


class Voice:
    """One that answers, with a memory of its own: a model, or its base.

    Attributes:
        name: adapter, base or full of a run, else model, merged or quantized.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        sampling: Sampling,
        *,
        system: str | None = None,
        speaking: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        self.name = name
        self._target = target
        self._sampling = sampling
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._speaking = speaking
        self._turns: list[Turn] = []

    def ask(self, text: str) -> Asked:
        """Put a text behind the turns so far; the oldest go where the model has no room for all.

        Raises:
            DataError: The chat template refuses the turns.
            ModelError: There is no room even for this text alone.
        """
        from dorakit.data.asked import encode_asked
        from dorakit.data.encoder import Encoder
        from dorakit.evaluation.generation import template_ids
        from dorakit.model.generate import check_prompts, num_positions

        tokenizer, recipe = self._target.tokenizer, self._target.recipe
        turns: list[Turn] = [*self._turns, {"role": "user", "content": text}]
        before = len(turns)
        if has_turns(self._target):
            positions = num_positions(self._target.model)
            while True:
                ids = template_ids(tokenizer, [*self._opening, *turns], "/clear forgets the turns before it")
                if positions is None or len(turns) == 1 or len(ids) + self._sampling.max_new_tokens <= positions:
                    break
                turns = turns[2:]  # a question and its answer
        elif recipe is not None:
            ids = encode_asked([text], recipe.data, tokenizer, place="this text")[0]
        else:
            ids = Encoder(tokenizer).beginnings([text])[0].tolist()
        check_prompts(self._target.model, [ids], self._sampling.max_new_tokens)
        return Asked(ids, turns, (before - len(turns)) // 2)

    def answer(
        self,
        asked: Asked,
        *,
        number: int,
        take: Callable[[str], None],
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer, hand over the text while it grows, and remember the turn; one without an answer is not remembered.

        Args:
            asked: From `ask`.
            number: The number of the turn, which the draws depend on.
            take: Called with each further piece of the text, as the model wrote it: not yet fit for a terminal.
            is_stopped: Asked after each token; true ends the answer there.
        """
        from dorakit.evaluation.sampling import sampled_ids

        sampling = self._sampling
        growing = GrowingText(self._target.tokenizer)
        with self._speaking():
            ids = sampled_ids(
                self._target,
                asked.ids,
                sampling,
                number=number,
                take=lambda token: take(growing.add(token)),
                is_stopped=is_stopped,
            )
        take(growing.rest())
        was_stopped = is_stopped()
        if has_turns(self._target) and (growing.text or not was_stopped):
            self._turns = [*asked.turns, {"role": "assistant", "content": growing.text}]
        return Answer(growing.text, not was_stopped and len(ids) < sampling.max_new_tokens, asked.dropped_turns)

    def forget(self) -> None:
        """Begin anew, with the system message alone."""
        self._turns = []


class GrowingText:
    """The text of ids that come one by one.

    A character may take several tokens, and until the last is there it is decoded as a replacement character: such an
    end waits.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0
        self.text = ""

    def add(self, token: int) -> str:
        """Take an id; gives what is now certain and was not given before."""
        self._ids.append(token)
        # All of them each time: alone, some tokenizers drop the blank that a token starts with.
        self.text = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        return self._from_given(len(self.text.rstrip(_BROKEN)))

    def rest(self) -> str:
        """What was held back when no more ids come."""
        return self._from_given(len(self.text))

    def _from_given(self, end: int) -> str:
        start, self._given = self._given, max(self._given, end)
        return self.text[start : self._given]


def has_turns(target: Target) -> bool:
    """Whether a text is asked with the turns before it."""
    from dorakit.evaluation.generation import asks_in_turns

    if target.recipe is not None and not asks_in_turns(target.recipe):
        return False
    return bool(target.tokenizer.chat_template)


def open_voices(
    target: str,
    sampling: Sampling,
    *,
    compare: bool = False,
    system: str | None = None,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> list[Voice]:
    """Load what answers: with `compare` first its base (the adapter switched off, or what a full run began with).

    Raises:
        UsageError: `system` that the target has no place for, or `compare` of a model that has no base.
    """
    from dorakit.adapters.attach import base_only
    from dorakit.evaluation.generation import check_system, ready_template_
    from dorakit.target import open_target

    opened = open_target(target, base_model=base_model, accept_changes=accept_changes)
    if compare and opened.kind == "model":
        raise UsageError(f"--compare: {target} is a whole model, with no base to compare with")
    for line in opened.notes:
        say(line, quiet=quiet)
    ready_template_(opened)
    if system is not None:
        check_system(opened)
    if not has_turns(opened):
        say(f"{_why_alone(opened)}: each text is asked by itself, without those before it", quiet=quiet)
    voices = [Voice(opened.variant, opened, sampling, system=system)]
    if compare and opened.adapter is not None:
        model = opened.model
        voices.insert(0, Voice("base", opened, sampling, system=system, speaking=lambda: base_only(model)))
    elif compare:
        base = open_target(target, base_only=True)
        ready_template_(base)
        voices.insert(0, Voice("base", base, sampling, system=system))
    return voices


def _why_alone(target: Target) -> str:
    if target.recipe is None or not target.tokenizer.chat_template:
        return "the tokenizer has no chat template"
    return f"{target.name} was trained on rows of format {target.recipe.data.train[0].format}, which have no turns"
