"""What answers are compared with, held against what training teaches: a perfect model must score 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from dorakit.data.first_look import Look
from dorakit.errors import DataError
from dorakit.evaluation.metrics import judge_of, option_in, option_pattern, short
from dorakit.recipe.schema import EvaluationSection, Recipe

if TYPE_CHECKING:  # it imports transformers, and `dorakit validate` does without
    from dorakit.data.tokens import Question


class Asked(Protocol):
    """A row that is asked: a Question, or a sample of which one is made."""

    @property
    def answer(self) -> str:
        """The text that the data gives to compare with."""

    @property
    def reply(self) -> str:
        """The text that training teaches; "" where the row has none."""

    @property
    def row(self) -> str:
        """Its place, for messages."""


def expected_of(asked: Asked, section: EvaluationSection) -> str:
    """The text to compare with: the row's answer; its reply where that names one of `options` and the answer does not.

    So options may be the whole sentences that are taught, beside an answer column of bare words.
    """
    if section.options and asked.reply:
        pattern = option_pattern(section.options)
        if not pattern.search(asked.answer) and pattern.search(asked.reply):
            return asked.reply
    return asked.answer


def in_one_frame(questions: Sequence[Question], section: EvaluationSection) -> tuple[list[Question], list[str]]:
    """The questions as option_likelihood scores them, and a line where that is not what is taught.

    The text around the option may be scored where it is the same for all rows. Where it differs, it may give the answer away
    (reasoning that leads to it), so the bare answers are scored.
    """
    if section.metric != "option_likelihood":
        return list(questions), []
    pattern = option_pattern(section.options)
    frames = {
        (question.reply[: first.start()], question.reply[first.end() :])
        for question in questions
        if (first := option_in(question.reply, pattern))
    }
    if len(frames) < 2 or all(question.reply == question.answer for question in questions):
        return list(questions), []
    line = (
        "evaluation.metric option_likelihood: the rows teach different texts around the option, which may give it away; "
        "the bare answers are scored (metric option judges what is generated)"
    )
    return [replace(question, reply="") for question in questions], [line]


def check_taught(rows: Sequence[Asked], section: EvaluationSection) -> list[str]:
    """Judge what training teaches as if it had been answered; a line where some of it would be wrong.

    Raises:
        DataError: All of it would be wrong, so that accuracy could only say that nothing was learnt.
    """
    judge = judge_of(section)
    taught = [row for row in rows if row.reply and row.answer]  # rows of format text have no answer
    if judge is None or not taught:
        return []
    wrong = [row for row in taught if not judge(expected_of(row, section), row.reply, row.row).correct]
    if not wrong:
        return []
    first = wrong[0]
    example = f"{first.row} teaches {short(first.reply)} and is compared with {short(expected_of(first, section))}"
    if len(wrong) == len(taught):
        raise DataError(
            f"evaluation.metric {section.metric} would judge every answer wrong that these rows teach: {example}\n"
            "  take a metric that finds the answer in the text (last_number, option), or compare with the whole text: in "
            "data.train, map columns: {answer: NAME} to the column that is trained on"
        )
    return [
        f"{len(wrong)} of {len(taught)} rows teach an answer that {section.metric} judges wrong, the first: {example}"
    ]


def check_first_rows(recipe: Recipe, seen: Look) -> list[str]:
    """`check_taught` of the first rows that an evaluation will judge, before anything is trained; a line for options that no
    training row among those read teaches.

    Raises:
        DataError: As `check_taught`.
    """
    section = recipe.evaluation
    # Rows of data.validation.path are judged when an evaluation reads them.
    held_out = seen.trained if recipe.data.validation.path is None else []
    notes = check_taught(held_out if section.path is None else seen.asked, section)
    replies = [row.reply for row in seen.trained]
    absent = [
        option for option in section.options if replies and not any(map(option_pattern([option]).search, replies))
    ]
    if absent:
        notes.append(f"evaluation.options: no training row that was read teaches {', '.join(map(short, absent))}")
    return notes
