"""Rows of tasks, made for tests, in LLM-Adapters' layout."""

import json
from pathlib import Path

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
