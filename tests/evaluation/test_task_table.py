"""What each task asks, finds in an answer and takes for right; from docs/evaluation.md's sources, stated a second time."""

import re

import pytest

from dorakit.data.prompts import prompt_of
from dorakit.errors import DataError, UsageError
from dorakit.evaluation.tasks.table import GROUPS, TASKS, scoring_of, tasks_named

# commonsense_evaluate.py's expressions.
PATTERNS = {
    "boolq": r"true|false",
    "piqa": r"solution1|solution2",
    "social_i_qa": r"answer1|answer2|answer3|answer4|answer5",
    "hellaswag": r"ending1|ending2|ending3|ending4",
    "winogrande": r"option1|option2",
    "ARC-Easy": r"answer1|answer2|answer3|answer4|answer5",
    "ARC-Challenge": r"answer1|answer2|answer3|answer4|answer5",
    "openbookqa": r"answer1|answer2|answer3|answer4|answer5",
}


def test_the_commonsense_group_is_the_papers_eight_by_the_papers_settings():
    """Planted bugs caught: a task left out; the training prompt; another number of beams or tokens."""
    assert GROUPS["commonsense"] == tuple(PATTERNS)
    for task in tasks_named("commonsense"):
        assert task.prompt == prompt_of("llm-adapters", evaluation=True).without_input
        assert (task.num_beams, task.max_new_tokens) == (4, 32)
        assert task.scorings == ("beam", "logprob")


@pytest.mark.parametrize("name", PATTERNS)
def test_the_first_hit_after_the_last_heading_is_the_answer(name):
    """Planted bugs caught: the last hit; whole words only; without case; what stands before a repeated heading."""
    right, *_, wrong = PATTERNS[name].split("|")
    texts = [
        f"the correct answer is {right}",
        f"{right}, not {wrong}",
        f"{wrong}, not {right}",
        f"un{right}0 {wrong}",
        right.upper(),
        "",
        f"{wrong}\n\n### Response:\n{right}",
        f"{wrong}\n\n### Response:\nnothing",
    ]
    for text in texts:
        hits = re.findall(PATTERNS[name], text.split("### Response:")[-1].strip())
        verdict = TASKS[name].judge(right, text, "rows.json[0]")
        assert (verdict.parsed or "") == (hits[0] if hits else ""), text
        assert verdict.correct == bool(hits and hits[0] == right), text
        assert verdict.expected == right


@pytest.mark.parametrize(
    ("name", "answer", "text", "parsed", "correct"),
    [
        ("AddSub", "4", "7 - 3 = 4. The answer is 4.", "4.", True),
        ("AddSub", "0.6666666666666666", "about 0.6667", "0.6667", True),
        ("AddSub", "0.6666666666666666", "about 0.67", "0.67", False),
        ("AddSub", "1234", "it is 1,234", "1234", True),
        ("AddSub", "-3", "so x = -3", "-3", True),
        ("gsm8k", "she sold 18 - 2.\n#### 16", "16\n\n### Response:\n99", "16", True),
        ("gsm8k", "7", "seven", None, False),
        ("orca-math", "It costs $5.", "so $5", "$5", True),
        ("orca-math", "It costs $5.", "so 5", "5", False),
        ("orca-math", "a ratio of 3:4", "2 and 3:4.", "3:4", True),
        ("orca-math", "4", "4.0", "4.0", False),
        ("orca-math", "1,234", "1,234", "234", True),
    ],
)
def test_the_last_number_is_the_answer(name, answer, text, parsed, correct):
    """Planted bugs caught: the first number; orca-math compared by value; commas kept, or the text after a new heading
    searched, in LLM-Adapters' tasks."""
    verdict = TASKS[name].judge(answer, text, "rows.json[0]")
    assert (verdict.parsed, verdict.correct) == (parsed, correct)


def test_math_is_greedy_and_asked_as_published():
    assert TASKS["orca-math"].prompt == "###Question:\n{instruction}\n###Answer:\n"
    assert TASKS["orca-math"].max_new_tokens == 1024
    assert TASKS["AddSub"].prompt == TASKS["gsm8k"].prompt == prompt_of("llm-adapters").without_input
    assert all(TASKS[name].scorings == ("greedy",) for name in ("orca-math", "AddSub", "gsm8k"))


def test_names_are_tasks_and_groups_each_once():
    assert [task.name for task in tasks_named("boolq, AddSub,commonsense")] == ["boolq", "AddSub", *list(PATTERNS)[1:]]


@pytest.mark.parametrize(
    ("typed", "meant"), [("arc-easy", "ARC-Easy"), ("hella_swag", "hellaswag"), ("comonsense", "commonsense")]
)
def test_an_unknown_task_lists_the_known_ones_and_the_nearest(typed, meant):
    with pytest.raises(
        UsageError, match=rf"no such task\n  did you mean {meant}\? known are commonsense, boolq, .*lm-eval:"
    ):
        tasks_named(f"boolq,{typed}")


def test_what_cannot_be_scored_so():
    with pytest.raises(UsageError, match="AddSub is scored by greedy"):
        scoring_of(TASKS["AddSub"], "logprob")
    with pytest.raises(UsageError, match="boolq is scored by beam or logprob"):
        scoring_of(TASKS["boolq"], "bem")


def test_an_answer_that_the_task_cannot_have_names_its_row():
    with pytest.raises(
        DataError, match=r"rows.json\[7\]: the answer 'answer6' is none of those of ARC-Easy: answer1, "
    ):
        TASKS["ARC-Easy"].expected("answer6", "rows.json[7]")
    with pytest.raises(
        DataError, match=r"rows.json\[7\]: the answer 'four' holds no number, and AddSub compares numbers"
    ):
        TASKS["AddSub"].expected("four", "rows.json[7]")
