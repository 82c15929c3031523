"""How a generated answer is judged, and what an accuracy over a sample is worth."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from dorakit.errors import DataError
from dorakit.recipe.schema import EvaluationSection

# Answer.AI's expression for Orca-Math answers (a number or a ratio), with a sign where none of it can be a subtraction
# ("5-3" ends in 3), and with numbers such as .5.
_NUMBER = re.compile(r"(?:(?<![\w.)\]])-)?[$€£]?(?:\d+(?:\.\d+)?(?::\d+(?:\.\d+)?)?|(?<![\d.])\.\d+)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True)
class Verdict:
    """One judged answer. `parsed` is what was found in the generated text, None where nothing was."""

    correct: bool
    expected: str
    parsed: str | None


Judge = Callable[[str, str, str], Verdict]


def judge_of(section: EvaluationSection) -> Judge | None:
    """The judge (expected text, generated text, row name) -> Verdict of a recipe; None where nothing is compared.

    exact_match compares the whole texts, stripped. last_number compares the last numbers by value: 1,234.50 equals
    $1234.5, and 3:4 only 3:4. option and option_likelihood compare the first of the options in each text, as whole words
    and with case. Of a text with reasoning in <think> tags, which some chat templates write even where there is none, what
    follows it is judged.

    The judge raises DataError where the expected text itself holds nothing to compare with.
    """
    if section.metric == "none":
        return None
    if section.metric == "exact_match":
        return _of_answers(_exact_match)
    if section.metric == "last_number":
        return _of_answers(_last_number)
    return option_judge(section.options)


def option_judge(options: list[str]) -> Judge:
    """The judge that compares the first of the options in each text, as whole words and with case."""
    wanted = option_pattern(options)

    def first_option(expected: str, generated: str, row: str) -> Verdict:
        right = wanted.search(expected)
        if right is None:
            raise DataError(f"{row}: the answer {short(expected)} holds none of the options {', '.join(options)}")
        found = wanted.search(generated)
        parsed = found.group() if found else None
        return Verdict(parsed == right.group(), right.group(), parsed)

    return _of_answers(first_option)


def option_pattern(options: list[str]) -> re.Pattern[str]:
    """One expression for all options; the longer goes first, and none matches inside a word."""
    texts = sorted(options, key=lambda option: (-len(option), option))
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, texts)) + r")(?!\w)")


def option_in(text: str, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """The first option in a text, behind its reasoning."""
    return pattern.search(text, len(text) - len(answer_in(text)))


def last_number(text: str) -> str | None:
    """The last number or ratio in a text, without thousands commas and currency sign; None where there is none."""
    found = _NUMBER.findall(_THOUSANDS.sub("", text))
    return re.sub("[$€£]", "", found[-1]) if found else None


def same_number(left: str, right: str) -> bool:
    """Whether two results of `last_number` are the same value: 6 and 6.0 are, up to a relative 1e-6."""
    lefts, rights = ([float(part) for part in text.split(":")] for text in (left, right))
    return len(lefts) == len(rights) and all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(lefts, rights, strict=True)
    )


def proportion(hits: int, total: int) -> tuple[float, float]:
    """A share and its standard error, sqrt(p (1 - p) / n)."""
    share = hits / total
    return share, math.sqrt(share * (1 - share) / total)


def _of_answers(judge: Judge) -> Judge:
    """A judge of what follows the reasoning in each text."""

    def judged(expected: str, generated: str, row: str) -> Verdict:
        return judge(answer_in(expected), answer_in(generated), row)

    return judged


def answer_in(text: str) -> str:
    """What follows reasoning in <think> tags; nothing where that was cut off before its end."""
    _, end, answer = text.rpartition("</think>")
    return answer if end or not text.lstrip().startswith("<think>") else ""


def _exact_match(expected: str, generated: str, row: str) -> Verdict:
    return Verdict(generated.strip() == expected.strip(), expected.strip(), generated.strip() or None)


def _last_number(expected: str, generated: str, row: str) -> Verdict:
    right = last_number(expected)
    if right is None:
        raise DataError(f"{row}: the answer {short(expected)} holds no number, but evaluation.metric is last_number")
    found = last_number(generated)
    return Verdict(found is not None and same_number(found, right), right, found)


def short(text: str) -> str:
    """The text in quotes, cut to 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
