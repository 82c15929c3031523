"""Rows of tasks, made for tests, in LLM-Adapters' layout."""

import json
import re
from dataclasses import replace
from pathlib import Path

from dorakit.evaluation.tasks import table

KINDS = {"ARC-Easy": ("answer", 4), "hellaswag": ("ending", 4), "boolq": ("", 2)}


def task_row(name: str, number: int) -> dict[str, str]:
    """A row whose prompt has another length than its neighbours'."""
    stem, count = KINDS[name]
    options = [f"{stem}{i}" for i in range(1, count + 1)] if stem else ["true", "false"]
    answer = options[number % count]
    question = f"Which of {number}{' and more' * (number % 3)}?\n\nAnswer format: {'/'.join(options)}"
    return {"instruction": question, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def write_task(directory: Path, name: str, count: int, *, nested: bool = False) -> Path:
    """TASK.test.json, or TASK/test.json."""
    file = directory / name / "test.json" if nested else directory / f"{name}.test.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([task_row(name, number) for number in range(count)], indent=1), encoding="utf-8")
    return file


# A random model says nothing that a published task looks for. Of this one, an answer is a capital or a digit.
SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
LETTERS = replace(
    table.TASKS["boolq"],
    name="letters",
    prompt="{instruction} :",
    options=tuple(SIGNS),
    pattern=re.compile(f"[{SIGNS}]"),
    max_new_tokens=6,
)


def write_letters(directory, answers):
    rows = [{"instruction": f"{'x' * (i * 7 % 5)} {i * i}", "answer": answer} for i, answer in enumerate(answers)]
    (directory / "letters.test.json").write_text(json.dumps(rows))
