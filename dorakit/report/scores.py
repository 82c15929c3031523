"""What was measured on test rows: scores with what they are worth, and answers beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dorakit.report.content import Content, Evaluation, as_dict, as_list
from dorakit.report.numbers import Z, count, figure, finite, percent, wilson_interval


@dataclass(frozen=True)
class Score:
    """A row of the table of evaluations. `interval` is in percent, for drawing; None where no answers were judged."""

    variant: str
    data: str
    rows: str
    loss: str
    perplexity: str
    metric: str
    accuracy: str
    told: str
    middle: float | None
    interval: tuple[float, float] | None
    remarks: str


@dataclass(frozen=True)
class Answers:
    """One test row with what each variant answered: (variant, text, whether it is right)."""

    data: str
    prompt: str
    expected: str
    given: list[tuple[str, str, bool]]


def scores(content: Content) -> list[Score]:
    """Every measurement; one of several tasks gives a row for their mean and one for each."""
    found = []
    for one in content.evaluations:
        parts = [part for part in map(as_dict, as_list(one.values.get("tasks"))) if part]
        if len(parts) > 1:
            found.append(_score(one, f"{one.data}, mean of {len(parts)} tasks", one.values))
        elif not parts:
            found.append(_score(one, one.data, one.values))
        found += [_score(one, str(part.get("task")), part) for part in parts]
    return found


def answers(content: Content) -> list[Answers]:
    """Test rows whose answers were kept, with the answers of all variants measured on them beside each other."""
    rows: dict[tuple[Any, ...], Answers] = {}
    for one in content.evaluations:
        for sample in one.samples:
            prompt, expected = str(sample.get("prompt_tail", "")), str(sample.get("answer", ""))
            row = rows.setdefault((one.rows, prompt, expected), Answers(one.data, prompt, expected, []))
            row.given.append((one.variant, str(sample.get("generated", "")), sample.get("correct") is True))
    return list(rows.values())


def main_score(evaluations: Sequence[Evaluation]) -> list[str]:
    """The accuracy of the result on the most rows, with the base's where it was measured on the same ones."""
    judged = [one for one in evaluations if finite(one.values.get("accuracy")) is not None]
    for one in sorted(judged, key=lambda one: -(finite(one.values.get("rows")) or 0)):
        if one.variant in ("adapter", "full"):
            name = one.values.get("metric") or one.values.get("task") or "accuracy"
            told = f"{name} {percent(one.values['accuracy'])}"
            error = finite(one.values.get("accuracy_standard_error"))
            told += "" if error is None else f" ± {error * 100:.1f}"
            bases = [b for b in judged if b.variant == "base" and b.rows == one.rows]
            return [told + (f" (base {percent(bases[0].values['accuracy'])})" if bases else "")]
    return []


def _score(one: Evaluation, data: str, values: dict[str, Any]) -> Score:
    accuracy, error = finite(values.get("accuracy")), finite(values.get("accuracy_standard_error"))
    correct, answered = finite(values.get("correct")), finite(values.get("answered"))
    interval, told = None, "" if error is None else f"± {error * 100:.1f}"
    if correct is not None and answered is not None and 0 <= correct <= answered and answered >= 1:
        low, high = wilson_interval(int(correct), int(answered))
        interval = round(low * 100, 1), round(high * 100, 1)
    elif accuracy is not None and error:
        low, high = (min(1.0, max(0.0, accuracy + side * Z * error)) for side in (-1, 1))
        interval = round(low * 100, 1), round(high * 100, 1)
    remarks = [
        f"{count(values[key])} {what}"
        for key, what in (("unparsed", "with nothing to judge"), ("unfinished", "cut off"))
        if finite(values.get(key))
    ]
    if finite(one.values.get("rows_trained_on")):
        remarks.append(f"{count(one.values['rows_trained_on'])} rows were trained on too")
    return Score(
        variant=one.variant,
        data=data,
        rows=count(values.get("rows", values.get("answered"))),
        loss=figure(values.get("loss")),
        perplexity=figure(values.get("perplexity")),
        metric=str(values.get("metric") or values.get("scoring") or ""),
        accuracy=percent(accuracy),
        told=told if accuracy is not None else "",
        middle=None if accuracy is None else round(min(1.0, max(0.0, accuracy)) * 100, 1),
        interval=interval,
        remarks=", ".join(remarks),
    )
