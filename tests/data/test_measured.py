"""How long rows will be, and what a base without a chat template gets."""

import shutil

import pytest

from dorakit.data.measured import measure
from dorakit.data.sources import Row
from dorakit.data.tokens import encode_rows
from dorakit.model.source import resolve
from dorakit.model.tiny import tiny_tokenizer
from dorakit.recipe.schema import DataSection, SourceSection

TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


@pytest.fixture
def without_template(tmp_path):
    """The tiny base with a tokenizer that has no chat template."""
    base = shutil.copytree(resolve("tiny:llama").directory, tmp_path / "base")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(base)
    return str(base)


def test_a_base_without_a_template_gets_one_that_teaches_every_answer_to_stop(without_template):
    """Planted bug caught: line breaks behind a tag, which Jinja drops; or no end of text behind an answer."""
    source, rows = SourceSection(path="a.jsonl", format="chat"), [Row({"messages": TURNS}, "a.jsonl:1")]
    measured = measure(rows, source, without_template)
    tokenizer = tiny_tokenizer()
    data = DataSection(train=[source], max_seq_len=1024, chat_template=measured.chat_template)
    (document,) = encode_rows(rows, source, data, tokenizer)
    end = tokenizer.eos_token
    assert tokenizer.decode(document.input_ids) == (
        f"### user\na\n### assistant\nb{end}\n### user\nc\n### assistant\nd{end}\n"
    )
    assert tokenizer.decode(document.input_ids[document.mask]) == f"b{end}d{end}"
    assert (measured.is_counted, measured.median, measured.most_of_99) == (True, len(document), len(document))


def test_instructions_that_only_turns_can_hold(without_template):
    """Planted bug caught: a prompt without a place for the history, which training then refuses."""
    rows = [Row({"instruction": "c", "output": "d", "history": [["a", "b"]]}, "a.jsonl:1")]
    source = SourceSection(path="a.jsonl", format="instruction")
    measured = measure(rows, source, without_template)
    assert (measured.prompt, measured.is_counted) == ("chat", True) and measured.chat_template
    assert measure(rows, source, "nobody/not-here").prompt == "chat"


def test_instructions_go_through_the_template_of_a_base_that_has_one(without_template):
    """Planted bug caught: prompt `chat` for a base without a template, which training then refuses."""
    source = SourceSection(path="a.jsonl", format="instruction")
    rows = [Row({"instruction": "a", "output": "b"}, "a.jsonl:1")]
    with_one, without = measure(rows, source, "tiny:llama"), measure(rows, source, without_template)
    assert (with_one.prompt, without.prompt) == ("chat", "default")
    assert (with_one.chat_template, without.chat_template) == (None, None)
    assert with_one.is_counted and without.is_counted


def test_rows_that_the_template_cannot_take_are_estimated_and_said():
    """Planted bug caught: the error ends it all, and there is no recipe in which to set another template."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    rows = [Row({"messages": [{"role": "user", "content": "x" * 400}, call]}, "a.jsonl:1")]
    measured = measure(rows, SourceSection(path="a.jsonl", format="chat"), "tiny:llama")
    assert measured.is_counted is False
    assert measured.median == 400 // 4 + 2 * 6 + 1
    assert "a.jsonl:1: the chat template writes no tool calls" in measured.notes[0]


def test_one_row_of_a_hundred_may_be_longer():
    """Planted bug caught: the longest row decides how much memory all take; or the median, and half of them are dropped."""
    source = SourceSection(path="a.jsonl", format="text")
    texts = ["x" * 10] * 98 + ["x" * 20, "x" * 5000]
    measured = measure([Row({"text": text}, f"a.jsonl:{i}") for i, text in enumerate(texts, 1)], source, "tiny:llama")
    assert (measured.median, measured.most_of_99) == (11, 21)
