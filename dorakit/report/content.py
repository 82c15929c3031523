"""What a run directory holds, read for showing: whatever is absent is left out, whatever cannot be read is named.

Nothing here loads a recipe or a model. A run may be unfinished, failed, of another version or a stranger's, and a page about it
should still say what is there; so every value may be of any type.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dorakit.recipe.resolved import read_resolved
from dorakit.report.numbers import finite
from dorakit.run import Run

_FIRST_VARIANTS = ("base", "adapter", "full", "merged", "quantized")
_NONFINITE_SHOWN = 50
_TOO_DEEP = (ValueError, RecursionError)  # what json says of text that is none, or nested without end


@dataclass(frozen=True)
class Samples:
    """What the model answered to the recipe's sample prompts after a step."""

    step: int
    answers: dict[str, str]


@dataclass(frozen=True)
class AnsweredRow:
    """A held-out row with the answer of the data, and what the model answered before training and after it."""

    prompt: str
    expected: str
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """One file of RUN/eval: what was measured, and on which rows."""

    file: str
    variant: str
    data: str
    rows: tuple[str, ...]  # path, split, task, limit and digest: two results with the same can be compared
    values: dict[str, Any]
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class Change:
    """How far one matrix has come: of the lengths of its rows or columns, and of their directions."""

    module: str
    kind: str
    step: int
    magnitude: float
    direction: float


@dataclass(frozen=True)
class Content:
    """A run as it is told of. `series` holds, by the names of metrics.jsonl, points of (step, value)."""

    path: Path
    facts: dict[str, Any]
    environment: dict[str, Any]
    recipe: list[tuple[str, str, str]]
    series: dict[str, list[tuple[float, float]]]
    samples: list[Samples]
    answered: list[AnsweredRow]
    evaluations: list[Evaluation]
    merge: dict[str, Any]
    quantize: dict[str, Any]
    analysis: dict[str, Any]
    changes: list[Change]
    nonfinite: list[dict[str, Any]]
    num_nonfinite: int
    unreadable: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, str]:
        """The recipe's values as YAML, by dotted key."""
        return {key: value for key, value, _ in self.recipe}

    def last(self, name: str) -> float | None:
        """The last value of a series."""
        points = self.series.get(name)
        return points[-1][1] if points else None


def read_content(run: Run) -> Content:
    """Read all that a page shows of a run."""
    unreadable: list[str] = []
    series, samples, answered = _metrics(run.metrics_file, unreadable)
    nonfinite, num_nonfinite = _nonfinite(run.nonfinite_file, unreadable)
    analysis = _json(run.path / "analysis.json", unreadable)
    return Content(
        path=run.path,
        facts=_json(run.path / "run.json", unreadable),
        environment=_json(run.path / "environment.json", unreadable),
        recipe=read_resolved(_text(run.path / "recipe.resolved.yaml", unreadable)),
        series=series,
        samples=samples,
        answered=answered,
        evaluations=_evaluations(run.eval, unreadable),
        merge=_json(run.merged / "merge.json", unreadable),
        quantize=_json(run.quantized / "quantize.json", unreadable),
        analysis=analysis,
        changes=_changes(as_list(analysis.get("matrices"))),
        nonfinite=nonfinite,
        num_nonfinite=num_nonfinite,
        unreadable=unreadable,
    )


def as_dict(value: Any) -> dict[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def _text(path: Path, unreadable: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        unreadable.append(f"{path.name} cannot be read: {error.strerror}")
        return ""


def _json(path: Path, unreadable: list[str]) -> dict[str, Any]:
    text = _text(path, unreadable)
    if not text:
        return {}
    try:
        content = json.loads(text)
    except _TOO_DEEP:
        content = None
    if not isinstance(content, dict):
        unreadable.append(f"{path.name} cannot be read: it is no JSON object")
    return as_dict(content)


def _lines(path: Path, unreadable: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; the number of lines that are none is noted, a last one cut short is not."""
    bad, is_cut = 0, False
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except _TOO_DEEP:
                    entry = None
                if isinstance(entry, dict):
                    yield entry
                else:
                    bad += 1
                    is_cut = not line.endswith("\n")
    except FileNotFoundError:
        return
    except OSError as error:
        unreadable.append(f"{path.name} cannot be read: {error.strerror}")
    if bad > is_cut:
        unreadable.append(f"{path.name}: {bad} lines are no JSON objects and are left out")


def _metrics(
    path: Path, unreadable: list[str]
) -> tuple[dict[str, list[tuple[float, float]]], list[Samples], list[AnsweredRow]]:
    """Series by name, the first and the last samples, and the rows that were answered."""
    series: dict[str, list[tuple[float, float]]] = {}
    samples: list[Samples] = []
    rows: dict[str, AnsweredRow] = {}
    for entry in _lines(path, unreadable):
        step = finite(entry.get("step"))
        if step is None:
            continue
        for name, value in entry.items():
            if name != "step" and (number := finite(value)) is not None:
                series.setdefault(name, []).append((step, number))
        told = [sample for sample in map(as_dict, as_list(entry.get("samples"))) if sample]
        if answers := {str(s.get("prompt")): str(s.get("text")) for s in told if "row" not in s}:
            samples[1:] = [Samples(int(step), answers)]
        for sample in told:
            if "row" in sample:
                place = str(sample["row"])
                known = rows.get(place) or AnsweredRow(str(sample.get("prompt")), str(sample.get("expected")))
                rows[place] = replace(known, **{"after" if step else "before": str(sample.get("text"))})
    return series, samples, list(rows.values())


def _nonfinite(path: Path, unreadable: list[str]) -> tuple[list[dict[str, Any]], int]:
    """The first records, and how many there are."""
    kept, number = [], 0
    for number, entry in enumerate(_lines(path, unreadable), start=1):
        if number <= _NONFINITE_SHOWN:
            kept.append(entry)
    return kept, number


def _evaluations(directory: Path, unreadable: list[str]) -> list[Evaluation]:
    found = []
    for file in sorted(directory.glob("*.json")) if directory.is_dir() else []:
        values = _json(file, unreadable)
        if not values:
            continue
        data = str(values.get("data") or values.get("task") or file.stem)
        variant = str(values.get("variant") or file.stem)
        digest = as_dict(values.get("settings")).get("rows")
        rows = (*(str(values.get(key)) for key in ("data_path", "data_split", "task", "limit")), str(digest))
        samples = [as_dict(sample) for sample in as_list(values.get("samples"))]
        found.append(Evaluation(file.name, variant, data, rows, values, [sample for sample in samples if sample]))

    def order(one: Evaluation) -> tuple[str, tuple[str, ...], int]:
        known = one.variant in _FIRST_VARIANTS
        return one.data, one.rows, _FIRST_VARIANTS.index(one.variant) if known else len(_FIRST_VARIANTS)

    return sorted(found, key=order)


def _changes(entries: list[Any]) -> list[Change]:
    """Of each matrix that moved: correlations are over those, too."""
    changes = []
    for entry in map(as_dict, entries):
        magnitude, direction = finite(entry.get("delta_m")), finite(entry.get("delta_d"))
        if magnitude is None or direction is None or entry.get("moved") is False:
            continue
        module, kind, step = str(entry.get("module", "")), str(entry.get("kind", "")), finite(entry.get("step"))
        changes.append(Change(module, kind, int(step or 0), magnitude, direction))
    return changes
