"""Prompts pinned byte for byte."""

from pathlib import Path

import pytest

from dorakit.data.prompts import prompt_of
from dorakit.errors import DataError

# As the authors' files have them, with "·" for each blank and "⏎" at the end of each line but the last, so that no editor
# takes away what cannot be seen.
PROMPTS = Path(__file__).parent / "prompts"


def pinned(name):
    shown = (PROMPTS / f"{name}.txt").read_bytes().removesuffix(b"\n")
    assert b" " not in shown
    return shown.replace("⏎\n".encode(), b"\n").replace("·".encode(), b" ")


ALPACA = (
    b"Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
    b"\n"
    b"### Instruction:\n"
    b"Is ice cold?\n"
    b"\n"
    b"### Response:\n"
)
ALPACA_WITH_INPUT = (
    b"Below is an instruction that describes a task, paired with an input that provides further context. "
    b"Write a response that appropriately completes the request.\n"
    b"\n"
    b"### Instruction:\n"
    b"Is ice cold?\n"
    b"\n"
    b"### Input:\n"
    b"true/false\n"
    b"\n"
    b"### Response:\n"
)


@pytest.mark.parametrize(
    ("name", "evaluation", "context", "expected"),
    [
        ("default", False, "", ALPACA),
        ("default", True, "", ALPACA),
        ("default", False, "true/false", ALPACA_WITH_INPUT),
        ("Q: {instruction}\nA:", False, "", b"Q: Is ice cold?\nA:"),
        ("{input}|{instruction}|{input}", False, "true/false", b"true/false|Is ice cold?|true/false"),
        ("{input}|{instruction}", False, "", b"|Is ice cold?"),
    ],
)
def test_prompts_are_these_bytes(name, evaluation, context, expected):
    text = prompt_of(name, evaluation=evaluation).fill("Is ice cold?", context, "rows.json[0]")
    assert text.encode() == expected


@pytest.mark.parametrize(
    ("name", "evaluation", "file"),
    [
        ("llm-adapters", False, "llm-adapters.training"),
        ("llm-adapters", True, "llm-adapters.evaluation"),
        ("orca-math", False, "orca-math"),
        ("orca-math", True, "orca-math"),
    ],
)
def test_published_prompts_are_the_pinned_bytes(name, evaluation, file):
    """Planted bugs caught: a blank more or less at the end of a line; the evaluation's form in training."""
    prompt = prompt_of(name, evaluation=evaluation)
    assert prompt.without_input.encode() == pinned(file)
    if name == "llm-adapters":
        assert prompt.with_input.encode() == pinned(f"{file}-with-input")


def test_braces_inside_a_row_stay():
    text = prompt_of("{instruction} / {input}").fill("what is {input}? {x}", "{instruction}", "rows.json[0]")
    assert text == "what is {input}? {x} / {instruction}"


@pytest.mark.parametrize("name", ["orca-math", "Q: {instruction}"])
def test_an_input_without_a_place_is_refused(name):
    with pytest.raises(DataError, match=r"^rows.json\[3\]: the row has an `input` and the prompt has no place for it"):
        prompt_of(name).fill("a", "b", "rows.json[3]")


def test_an_unknown_prompt_lists_the_known_ones():
    with pytest.raises(DataError, match=r"'alpca' is neither a known prompt .*llm-adapters.* nor a text that holds"):
        prompt_of("alpca")
