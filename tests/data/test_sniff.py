"""What rows are taken for, from their fields alone."""

import pytest

from dorakit.data.sniff import sniff, spread
from dorakit.data.sources import Row
from dorakit.errors import DataError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def rows_of(*fields):
    return [Row(row, f"a.jsonl:{line}") for line, row in enumerate(fields, 1)]


@pytest.mark.parametrize(
    ("fields", "form", "columns", "unused"),
    [
        ({"messages": TURNS, "id": 1}, "chat", {}, ["id"]),
        ({"conversations": SHAREGPT, "system": "x"}, "chat", {}, []),
        ({"dialog": TURNS}, "chat", {"messages": "dialog"}, []),
        ({"instruction": "a", "input": "b", "output": "c", "text": "abc"}, "instruction", {}, ["text"]),
        ({"instruction": "a", "context": "b", "response": "c"}, "instruction", {"output": "response", "input": "context"}, []),
        ({"question": "a", "answer": "b"}, "instruction", {"instruction": "question", "output": "answer"}, []),
        ({"query": "a", "response": "b"}, "instruction", {"instruction": "query", "output": "response"}, []),
        ({"prompt": "a", "response": "b"}, "instruction", {"instruction": "prompt", "output": "response"}, []),
        ({"input": "a", "output": "b"}, "instruction", {"instruction": "input"}, []),
        (
            {"problem": "a", "solution": "long", "answer": "7"},
            "instruction",
            {"instruction": "problem", "output": "solution"},
            [],
        ),
        ({"prompt": "a", "completion": "b"}, "completion", {}, []),
        ({"text": "a", "label": 3}, "text", {}, ["label"]),
        ({"content": "a", "url": "b"}, "text", {"text": "content"}, ["url"]),
        ({"anything": "a"}, "text", {"text": "anything"}, []),
    ],
)  # fmt: skip
def test_what_rows_are_taken_for(fields, form, columns, unused):
    """Planted bug caught: names in another order of preference, so that `answer` is taken where a solution is beside it."""
    found = sniff(rows_of(fields, fields), "a.jsonl")
    assert (found.format, found.columns, found.unused) == (form, columns, unused)


def test_an_input_that_only_some_rows_have_is_taken():
    """Planted bug caught: the fields of the first row alone."""
    found = sniff(
        rows_of({"question": "a", "answer": "b"}, {"question": "a", "answer": "b", "context": "c"}), "a.jsonl"
    )
    assert found.columns["input"] == "context"


def test_rows_of_two_kinds_are_refused_with_both_places():
    """Planted bug caught: the first row speaks for all."""
    with pytest.raises(DataError) as caught:
        sniff(rows_of({"text": "a"}, {"text": "b"}, {"messages": TURNS}), "a.jsonl")
    assert "a.jsonl:1 is text (text), a.jsonl:3 is chat (messages)" in str(caught.value)


def test_a_bad_row_among_thousands_is_named():
    """Planted bug caught: rows that were not among those whose fields were compared are never read."""
    rows = rows_of(*[{"prompt": "a", "completion": "b"}] * 3000)
    bad = 1001
    assert bad not in spread(3000, 64)
    rows[bad] = Row({"prompt": "a", "completion": None}, "a.jsonl:1002")
    with pytest.raises(DataError, match=r"a\.jsonl:1002: field 'completion' is null"):
        sniff(rows, "a.jsonl")


def test_rows_that_fit_nothing_are_shown_with_what_each_format_needs():
    """Planted bug caught: preference pairs are taken for a text, as `chosen` and `rejected` are texts too."""
    with pytest.raises(DataError) as caught:
        sniff(rows_of({"chosen": "a", "rejected": "b", "score": 0.5, "tags": [], "more": None}), "a.jsonl")
    text = str(caught.value)
    assert "a.jsonl:1 has: chosen (text), rejected (text), score (number), tags (list), more (null)" in text
    for form in ("chat", "instruction", "completion", "text"):
        assert f"\n  {form} " in text


def test_the_rows_looked_at_reach_from_the_first_to_the_last():
    """Planted bug caught: the first rows only, where files are often sorted by kind."""
    assert spread(3, 64) == [0, 1, 2]
    chosen = spread(1000, 64)
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 999, 64)
