import json

import datasets
import pytest
from made_tasks import task_row, write_task

from dorakit.errors import DataError, UsageError
from dorakit.evaluation.tasks.rows import read_tasks

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n\n"
    "                ### Instruction:\n                {}\n\n                ### Response:\n                "
)


@pytest.mark.parametrize("nested", [False, True])
def test_rows_come_from_either_layout_with_the_tasks_prompt(tmp_path, nested):
    """Planted bugs caught: the training prompt; a limit that is not read; the other task's file."""
    write_task(tmp_path, "boolq", 3)
    file = write_task(tmp_path, "ARC-Easy", 5, nested=nested)
    (rows,) = read_tasks("ARC-Easy", str(tmp_path), limit=4)
    assert rows.path == str(file)
    assert rows.scoring == "beam"
    assert [p.prompt for p in rows.passages] == [
        PROMPT.format(task_row("ARC-Easy", i)["instruction"]) for i in range(4)
    ]
    assert [p.answer for p in rows.passages] == ["answer1", "answer2", "answer3", "answer4"]
    assert rows.passages[2].row == f"{file}[2]"
    (alone,) = read_tasks("ARC-Easy", str(file))
    assert alone.passages[:4] == rows.passages and len(alone.passages) == 5


def test_questions_and_worked_answers_of_the_hubs_math_sets_are_rows_too(tmp_path):
    """GSM8K and Orca-Math have question and answer; LLM-Adapters' have instruction, output and answer."""
    rows = [{"question": "1 + {instruction}?", "answer": "so 1 + 1 = 2\n#### 2"}]
    (tmp_path / "gsm8k.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = read_tasks("gsm8k", str(tmp_path))
    (passage,) = found.passages
    assert "### Instruction:\n                1 + {instruction}?\n" in passage.prompt
    assert found.task.expected(passage.answer, passage.row) == "2"
    (tmp_path / "orca-math.test.json").write_text(json.dumps([{"instruction": "1 + 2?", "output": "It is 3."}]))
    (found,) = read_tasks("orca-math", str(tmp_path))
    assert found.passages[0].prompt == "###Question:\n1 + 2?\n###Answer:\n"
    assert found.task.expected(found.passages[0].answer, "") == "3"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"answer": None},
            r"ARC-Easy\.test\.json\[1\]: no answer: expected a field 'answer'; the row has: instruction, ",
        ),
        ({"answer": ""}, r"ARC-Easy\.test\.json\[1\]: no answer"),
        ({"answer": "answer6"}, r"ARC-Easy\.test\.json\[1\]: the answer 'answer6' is none of those of ARC-Easy"),
        ({"answer": "Answer1"}, r"ARC-Easy\.test\.json\[1\]: the answer 'Answer1' is none"),
        ({"answer": ["answer1"]}, r"ARC-Easy\.test\.json\[1\]: field 'answer' holds list"),
        ({"instruction": None}, r"ARC-Easy\.test\.json\[1\]: field 'instruction' is null"),
        (
            {"input": "more"},
            r"ARC-Easy\.test\.json\[1\]: the row has an `input`, and the prompt of ARC-Easy has no place",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, said):
    rows = [task_row("ARC-Easy", 0), {**task_row("ARC-Easy", 1), **row}]
    (tmp_path / "ARC-Easy.test.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=said):
        read_tasks("ARC-Easy", str(tmp_path))


def test_data_that_is_not_there(tmp_path):
    file = write_task(tmp_path, "boolq", 3)
    with pytest.raises(UsageError, match="--task needs --data: a directory with TASK/test"):
        read_tasks("boolq", None)
    with pytest.raises(DataError, match=r"/nowhere: no such directory"):
        read_tasks("boolq", str(tmp_path / "nowhere"))
    tried = "piqa/test.json, piqa/test.jsonl, piqa.test.json, piqa.test.jsonl"
    with pytest.raises(DataError, match=rf"no test rows of piqa\n  tried: {tried}\n  it holds: boolq.test.json"):
        read_tasks("boolq,piqa", str(tmp_path))
    with pytest.raises(UsageError, match="is one file, and 8 tasks are asked for"):
        read_tasks("commonsense", str(file))
    write_task(tmp_path, "boolq", 2, nested=True)
    with pytest.raises(DataError, match=r"test rows of boolq twice: boolq/test.json and boolq.test.json"):
        read_tasks("boolq", str(tmp_path))


def test_a_hub_data_set_has_a_configuration_for_each_task(monkeypatch):
    """Planted bug caught: the only configuration taken for each of several tasks."""
    asked = []

    def load_dataset(path, name, revision=None, split=None):
        asked.append((path, name, split))
        if name not in known:
            raise ValueError(f"BuilderConfig {name!r} not found")
        return datasets.Dataset.from_list([task_row("ARC-Easy", i) for i in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    known = {"ARC-Easy", "ARC-Challenge"}
    rows = read_tasks("ARC-Easy,ARC-Challenge", "someone/tasks", limit=2)
    assert [len(part.passages) for part in rows] == [2, 2]
    assert asked == [("someone/tasks", name, "test") for name in ("ARC-Easy", "ARC-Challenge")]
    assert rows[0].path == "someone/tasks" and rows[0].passages[1].row == "someone/tasks[1]"
    known = {None}
    assert len(read_tasks("ARC-Easy", "someone/tasks")[0].passages) == 3
    with pytest.raises(DataError, match="BuilderConfig 'ARC-Easy' not found"):
        read_tasks("ARC-Easy,ARC-Challenge", "someone/tasks")
    assert read_tasks("ARC-Easy", "someone/tasks", hub=False) == []
