"""Plurals, durations and the names that may have been meant."""

import pytest

from dorakit.words import counted, did_you_mean, duration


@pytest.mark.parametrize(
    ("word", "there", "meant"),
    [
        ("trian.jsonl", ["train.jsonl", "data.jsonl"], "train.jsonl"),
        ("train.json", ["train.jsonl"], "train.jsonl"),
        ("q_porj", ["k_proj", "q_proj"], "q_proj"),
        ("chta", ["chat", "chats"], "chat"),
        ("llama-3", ["llama-1", "llama-2", "gemma"], "llama-1 or llama-2"),
        ("chat.jsonl", ["data.jsonl"], None),
        ("b.yaml", ["c.yaml"], None),
        ("query", ["q_proj"], None),
        ("", [""], None),
    ],
)
def test_only_near_names_are_suggested(word, there, meant):
    """Planted bugs caught: a shared extension that makes any two files alike; one letter in place of another one."""
    assert did_you_mean(word, there) == (f"did you mean {meant}?" if meant else "")


def test_figures():
    assert [counted(0, "row"), counted(1, "row"), counted(1200, "entry", "entries")] == [
        "0 rows",
        "1 row",
        "1,200 entries",
    ]
    assert [duration(0.04), duration(59.94), duration(200), duration(7500)] == [
        "0.0 s",
        "59.9 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
