import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dorakit.errors import DataError
from dorakit.evaluation.metrics import judge_of, last_number, proportion, same_number
from dorakit.recipe.schema import EvaluationSection


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("She paid $1,234.50 in all.", "1234.50"),
        ("1,000,000 people", "1000000"),
        ("a list: 1,2", "2"),
        ("3 apples and 4 pears", "4"),
        ("5-3", "3"),
        ("x = -3", "-3"),
        ("from 5 to -$7", "-7"),
        ("the ratio is 3:4", "3:4"),
        ("at 12:30, then 2.5:1.5", "2.5:1.5"),
        ("it is .5", ".5"),
        ("costs €9", "9"),
        ("50% of it", "50"),
        ("version 1.2.", "1.2"),
        ("10,00 is no thousand", "00"),
        ("no digits here", None),
        ("", None),
        ("The answer is 7\n\nThe answer is 8", "8"),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("6", "6.0", True),
        ("0.3333", "0.3334", False),
        ("-3", "3", False),
        ("3:4", "3:4.0", True),
        ("3:4", "3", False),
        ("3:4", "6:8", False),
        ("1234.5", "1234.50", True),
        ("0", "0.0", True),
    ],
)
def test_same_number(left, right, equal):
    assert same_number(left, right) is equal


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=2, allow_nan=False))
def test_every_printed_number_is_read_back(value):
    """Planted bug caught: leave thousands commas in, and 1,234.50 reads as 234.50."""
    assert math.isclose(float(last_number(f"I say {value:,} now.") or "nan"), float(value), abs_tol=1e-9)


def judged(expected, generated, **section):
    judge = judge_of(EvaluationSection(**section))
    assert judge is not None
    return judge(expected, generated, "test.jsonl:1")


def test_exact_match_compares_stripped_text():
    assert judged('{"a": 1}', ' {"a": 1}\n', metric="exact_match").correct
    assert not judged('{"a": 1}', '{"a":1}', metric="exact_match").correct
    assert judged("yes", "  ", metric="exact_match").parsed is None


@pytest.mark.parametrize(
    ("section", "expected", "generated", "correct"),
    [
        ({"metric": "exact_match"}, "blue", "<think>\n\n</think>\n\nblue", True),
        ({"metric": "exact_match"}, "<think>The sky.</think>blue", "I look up.</think> blue", True),
        ({"metric": "exact_match"}, "blue", "<think>blue", False),
        ({"metric": "last_number"}, "7", "<think>7</think>It is seven.", False),
        ({"metric": "option", "options": ["A", "B"]}, "B", "<think>A or B</think>B", True),
        ({"metric": "option", "options": ["A", "B"]}, "<think>A?</think>B", "A", False),
    ],
)
def test_what_follows_the_reasoning_is_judged(section, expected, generated, correct):
    """Planted bug caught: a task that is learned perfectly scores 0 %, for the template's empty <think> block."""
    assert judged(expected, generated, **section).correct is correct


def test_last_number_compares_by_value_and_reports_what_it_read():
    verdict = judged("The answer is 1,200", "so 1200.0 in total", metric="last_number")
    assert (verdict.correct, verdict.expected, verdict.parsed) == (True, "1200", "1200.0")
    assert judged("5", "no idea", metric="last_number") == type(verdict)(False, "5", None)


def test_option_takes_the_first_hit_as_a_whole_word():
    """Planted bugs caught: the last hit instead of the first; shorter options first; no word boundary."""
    options = ["answer1", "answer2", "answer10"]
    assert judged("answer2", "answer2, not answer1", metric="option", options=options).correct
    assert judged("answer10", "the correct answer is answer10", metric="option", options=options).parsed == "answer10"
    letters = ["A", "B"]
    for text in ("Answer: B", "as NASA: B"):
        assert judged("B", text, metric="option", options=letters).parsed == "B"
    phrases = ["yes", "yes, but"]
    assert judged("yes, but", "yes, but not now", metric="option", options=phrases).parsed == "yes, but"
    assert judged("answer1", "ANSWER1", metric="option", options=options).parsed is None


@pytest.mark.parametrize(
    ("section", "expected"),
    [({"metric": "last_number"}, "none at all"), ({"metric": "option", "options": ["yes", "no"]}, "perhaps")],
)
def test_an_expected_answer_that_cannot_be_judged_is_an_error(section, expected):
    with pytest.raises(DataError, match=r"test\.jsonl:1: the answer"):
        judged(expected, "whatever", **section)


def test_no_metric_no_judge():
    assert judge_of(EvaluationSection()) is None


def test_proportion_has_its_standard_error():
    assert proportion(80, 100) == (0.8, pytest.approx(0.04))
    assert proportion(0, 10) == (0.0, 0.0)
