"""Tasks that cannot be measured, as typed: what a person reads, the exit code, and that it takes no torch to know it."""

# ruff: noqa: E501 (a row is a line)

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = {
    "instruction": "Is ice cold?\n\nAnswer format: true/false",
    "input": "",
    "output": "the correct answer is true",
    "answer": "true",
}
DATA = ("--data", "data")

CASES = [
    (("--task", "hellaswagg", *DATA), r"error: --task 'hellaswagg': no such task\n  did you mean hellaswag\? known are commonsense, boolq, piqa, .*, orca-math, and lm-eval:NAME"),
    (("--task", "", *DATA), r"error: --task '': no such task\n  known are commonsense"),
    (("--task", "boolq"), r"error: --task needs --data: a directory with TASK/test\.json or TASK\.test\.json"),
    (("--task", "boolq", "--data", "./datta"), r"error: --data \./datta: no such directory"),
    (("--task", "piqa", *DATA), r"error: --data data has no test rows of piqa\n  tried: piqa/test\.json, piqa/test\.jsonl, piqa\.test\.json, piqa\.test\.jsonl\n  it holds: ARC-Easy, AddSub\.test\.json, boolq\.test\.json, gsm8k\.test\.jsonl"),
    (("--task", "boolq", *DATA), r"error: data/boolq\.test\.json\[1\]: no answer: expected a field 'answer'; the row has: instruction, input, output"),
    (("--task", "ARC-Easy", *DATA), r"error: data/ARC-Easy/test\.json\[0\]: the answer 'true' is none of those of ARC-Easy: answer1, answer2, answer3, answer4, answer5"),
    (("--task", "AddSub", *DATA), r"error: data/AddSub\.test\.json\[0\]: the answer 'true' holds no number, and AddSub compares numbers"),
    (("--task", "gsm8k", *DATA), r"error: data/gsm8k\.test\.jsonl:1: not JSON"),
    (("--task", "boolq", "--scoring", "bean", *DATA), r"error: --scoring bean: boolq is scored by beam or logprob"),
    (("--task", "AddSub", "--scoring", "logprob", *DATA), r"error: --scoring logprob: AddSub is scored by greedy"),
    (("--task", "boolq,ARC-Easy", "--data", "data/boolq.test.json"), r"error: --data data/boolq\.test\.json is one file, and 2 tasks are asked for"),
    (("--task", "boolq", "--set", "data.max_seq_len=3", *DATA), r"error: --set data\.max_seq_len=3: --task says itself what is asked"),
    (("--task", "boolq", "--min", "accuracy", *DATA), r"error: --min accuracy: expected METRIC=VALUE"),
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tasks")
    no_answer = {key: value for key, value in GOOD.items() if key != "answer"}
    files = {
        "boolq.test.json": json.dumps([GOOD, no_answer]),
        "ARC-Easy/test.json": json.dumps([GOOD]),
        "AddSub.test.json": json.dumps([GOOD]),
        "gsm8k.test.jsonl": "{\n",
    }
    for name, content in files.items():
        (place / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "data" / name).write_text(content)
    poison = place / "poison"
    poison.mkdir()
    (poison / "torch.py").write_text("raise SystemExit('torch was imported')")
    return place


@pytest.mark.parametrize(("typed", "said"), CASES, ids=[" ".join(typed)[:60] for typed, _ in CASES])
def test_said_at_once(typed: tuple[str, ...], said: str, directory: Path) -> None:
    """Planted bugs caught: rows first read behind the model; a row or a name that the message leaves out."""
    paths = [str(directory / "poison"), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-m", "dorakit", "eval", "tiny:llama", *typed],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert re.match(said, done.stderr), done.stderr
    assert done.returncode == 2
    assert done.stdout == "" and "Traceback" not in done.stderr
