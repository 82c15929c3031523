"""The training form of a chat template that writes an answer one way when it is the newest and another way further up.

Qwen 3's does: reasoning (an empty block where there is none) is written for the newest answer and cut from earlier
ones. No rendering of the whole conversation then holds what the model is to write at each turn. The training form does:
every answer as it is written when it is the newest, and between answers what the template writes between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dorakit.data.formats import Conversation
from dorakit.data.rendering import Template

_STAND_IN = "{an answer}"


def training_form(
    template: Template, conversation: Conversation, answers: Sequence[int], *, is_stopped: Callable[[str], bool]
) -> tuple[str, dict[int, tuple[int, int]]] | None:
    """The text, and by turn the span of each answer that follows a generation prompt.

    None where the template changes more than its answers with the turns that follow: the text between answers is taken
    from renderings with a stand-in for each of them, must be the same in all of these, and must be how the prompt of
    the real conversation ends.

    Args:
        template: What writes.
        conversation: What is said.
        answers: The assistant's turns, at least one.
        is_stopped: Whether a text ends with a token that ends a turn.

    Raises:
        DataError: The template refuses some of the turns.
    """
    total = len(conversation.messages)
    plain = {"role": "assistant", "content": _STAND_IN}
    turns = [plain if turn["role"] == "assistant" else turn for turn in conversation.messages]
    skeleton = replace(conversation, messages=turns)
    text, spans = "", {}
    for number, turn in enumerate(answers):
        prompt = template.render(conversation, turn, add_generation_prompt=True) if turn else ""
        newest = template.render(conversation, turn + 1)
        if not newest.startswith(prompt):
            return None
        text = text or prompt
        if turn:
            spans[turn] = len(text), len(text) + len(newest) - len(prompt)
        text += newest[len(prompt) :]
        is_last = number == len(answers) - 1
        if is_last and turn == total - 1:
            return text, spans
        end = total if is_last else answers[number + 1]
        whole = template.render(skeleton, end, add_generation_prompt=not is_last)
        before = template.render(skeleton, turn) if turn else ""
        real = template.render(conversation, end, add_generation_prompt=not is_last)
        between = whole[whole.rfind(_STAND_IN) + len(_STAND_IN) :]
        stop = _overlap(text, between)
        is_like_real = whole.startswith(before) and real.endswith(between) and whole.count(_STAND_IN) == number + 1
        if not is_like_real or not is_stopped(between[:stop]):
            return None
        text += between[stop:]
    return text, spans


_LONGEST_STOP = 200  # a bound, for all lengths are tried


def _overlap(text: str, following: str) -> int:
    """Characters at the end of one text that the other begins with, as many as there are: a stop token and blanks."""
    most = min(len(text), len(following), _LONGEST_STOP)
    return next((count for count in range(most, 0, -1) if text.endswith(following[:count])), 0)
