"""Rows of a task: found in a directory laid out as LLM-Adapters' or on the hub, and read without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from dorakit.data.formats import Passage, read_samples
from dorakit.data.quoting import listed
from dorakit.data.sources import Row, read_rows
from dorakit.errors import DataError, UsageError
from dorakit.evaluation.tasks.table import Task, scoring_of, tasks_named
from dorakit.recipe.paths import is_hub_id
from dorakit.recipe.schema import SourceSection

_FORMS = ("{task}/test.json", "{task}/test.jsonl", "{task}.test.json", "{task}.test.jsonl")
# Names of the fields, where a data set has them otherwise than LLM-Adapters' do.
_QUESTION = "question"


@dataclass(frozen=True)
class TaskRows:
    """The rows of one task and how it is scored. `path` is a file, absolute, or a hub id; prompts are the task's."""

    task: Task
    scoring: str
    path: str
    passages: list[Passage]


def read_tasks(
    names: str, data: str | None, *, scoring: str | None = None, limit: int | None = None, hub: bool = True
) -> list[TaskRows]:
    """Read the test rows of tasks, and see to it that each row has an answer that its task can have.

    Args:
        names: Of tasks and groups, separated by commas.
        data: A directory with TASK/test.json or TASK.test.json (.jsonl too) of each task, for one task the file itself,
            or a hub data set, of which the split `test` of each configuration TASK is read. For one task, a hub data set
            need have no such configuration.
        scoring: beam or logprob; None for each task's published way.
        limit: At most this many rows of each task, the first.
        hub: False reads nothing from a hub, and then gives nothing.

    Raises:
        UsageError: An unknown task, a scoring that it has not, or no data.
        DataError: There are no such rows, or one has no answer or another than the task can have.
        ResourceError: The hub cannot be reached.
    """
    tasks = tasks_named(names)
    scorings = [scoring_of(task, scoring) for task in tasks]
    if data is None:
        raise UsageError(
            "--task needs --data: a directory with TASK/test.json or TASK.test.json for each task, or a hub data set"
        )
    path = Path(os.path.expanduser(data))
    if len(tasks) > 1 and path.is_file():
        raise UsageError(
            f"--data {data} is one file, and {len(tasks)} tasks are asked for\n  name the directory that holds theirs"
        )
    if is_hub_id(data, path) and not hub:
        return []
    return [
        _read_task(task, how, data, path, limit, is_alone=len(tasks) == 1)
        for task, how in zip(tasks, scorings, strict=True)
    ]


def data_path(data: str | None) -> str | None:
    """`--data` as it is recorded: an absolute path, or a hub id."""
    if data is None:
        return None
    path = Path(os.path.expanduser(data))
    return str(path.resolve()) if path.exists() else data


def _read_task(task: Task, scoring: str, data: str, path: Path, limit: int | None, *, is_alone: bool) -> TaskRows:
    if is_hub_id(data, path):
        rows, place = _hub_rows(task, data, limit, is_alone=is_alone), data
    else:
        file = _file(task, path, data)
        rows, place = read_rows(_source(str(file), limit), os.getcwd())[0], str(file.resolve())
    for row in rows:
        _check(row, task)
    passages = []
    for passage in read_samples(rows, _source(place, None, rows), evaluation=True):
        assert isinstance(passage, Passage)
        task.expected(passage.answer, passage.row)
        passages.append(replace(passage, prompt=task.prompt.replace("{instruction}", passage.prompt)))
    return TaskRows(task, scoring, place, passages)


def _file(task: Task, path: Path, written: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"--data {written}: no such directory")
    tried = [form.format(task=task.name) for form in _FORMS]
    found = [path / name for name in tried if (path / name).is_file()]
    if not found:
        inside = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        raise DataError(
            f"--data {written} has no test rows of {task.name}\n  tried: {', '.join(tried)}\n  it holds: {listed(inside)}"
        )
    if len(found) > 1:
        raise DataError(
            f"--data {written} has test rows of {task.name} twice: {found[0].relative_to(path)} and "
            f"{found[1].relative_to(path)}\n  name the file, or remove one of them"
        )
    return found[0]


def _hub_rows(task: Task, data: str, limit: int | None, *, is_alone: bool) -> list[Row]:
    source = _source(data, limit)
    try:
        return read_rows(source.model_copy(update={"name": task.name}), os.getcwd(), split="test")[0]
    except DataError:
        if not is_alone:
            raise
        return read_rows(source, os.getcwd(), split="test")[0]


def _source(path: str, limit: int | None, rows: list[Row] | None = None) -> SourceSection:
    """`rows` decide by which name their question goes; the prompt is put around it later, in one place for all."""
    columns = {}
    if rows and "instruction" not in rows[0].fields and _QUESTION in rows[0].fields:
        columns = {"instruction": _QUESTION}
    return SourceSection(path=path, format="instruction", prompt="{instruction}", limit=limit, columns=columns)


def _check(row: Row, task: Task) -> None:
    if row.fields.get("input"):
        raise DataError(f"{row.place}: the row has an `input`, and the prompt of {task.name} has no place for one")
    answers = ("answer",) if task.options else ("answer", "output")
    if all(row.fields.get(name) in (None, "") for name in answers):
        raise DataError(
            f"{row.place}: no answer: expected a field {' or '.join(map(repr, answers))}; "
            f"the row has: {listed(list(map(str, row.fields)))}"
        )
