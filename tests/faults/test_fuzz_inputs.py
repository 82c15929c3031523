"""Recipes and rows, damaged at random: an error of ours that says something, or a correct result; nothing else.

Bounded and repeatable: hypothesis runs without randomness of its own. Time and memory are bounded too, so that a
pattern that goes quadratic, or an allocation that a length field asks for, is a failure.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dorakit.data.formats import Conversation, Passage, read_samples
from dorakit.data.sources import read_rows
from dorakit.errors import DataError, RecipeError
from dorakit.recipe.loader import dump_resolved, load_recipe
from dorakit.recipe.schema import SourceSection

ROOT = Path(__file__).parents[2]
SHIPPED = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
MAX_GROWTH = 200 * 2**20

# A slip of the hand, or of a tool.
PIECES = st.sampled_from(
    ["", " ", "  ", "\t", "\n", ":", ": ", "-", "- ", "#", "'", '"', "[", "]", "{", "}", ",", "&x", "*x", "!!int ", "<<: ",
     "|", ">", "%", "@", "\\", "\0", "\x1b[31m", "\ufeff", "\u2028", "é", "null", "true", "yes", ".nan", ".inf", "1e999",
     "-1", "0", "1.5", "1_000", "99999999999999999999", "${HOME}", "../../x", "~root/x", "~nobody-here", "x" * 300,
     "tiny:", "pkg:", "{instruction}", "(((((", "a" * 5000, "---\n", "...\n"]
)  # fmt: skip


class Bounded:
    """Takes the time and memory of a block."""

    def __enter__(self) -> None:
        self.began, self.size = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __exit__(self, *_: object) -> None:
        assert time.process_time() - self.began < 5
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.size) * 1024 < MAX_GROWTH


def printable(text: str) -> bool:
    text.encode("utf-8")
    return all(c.isprintable() or c in "\n\t" for c in text)


def load(text: str | bytes, *overrides: str) -> None:
    with tempfile.TemporaryDirectory() as directory, Bounded():
        path = Path(directory, "r.yaml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        try:
            recipe = load_recipe(str(path), list(overrides))
        except RecipeError as error:
            assert error.problems and printable(str(error))
            assert all(len(problem.render()) < 6000 for problem in error.problems)
            return
        path.write_text(dump_resolved(recipe), encoding="utf-8")
        assert load_recipe(str(path), []).model_dump() == recipe.model_dump()


@QUICK
@given(st.data(), st.sampled_from(SHIPPED))
def test_recipes_with_a_slip(data: Any, text: str) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(PIECES) + text[start + data.draw(st.integers(0, 20)) :]
    load(text)


@QUICK
@given(st.data(), st.sampled_from(SHIPPED))
def test_recipes_whose_lines_went_wrong(data: Any, text: str) -> None:
    lines = text.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at, to = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        match data.draw(st.sampled_from(["drop", "double", "move", "indent", "cut"])):
            case "drop" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(to, lines[at])
            case "move":
                lines[at], lines[to] = lines[to], lines[at]
            case "indent":
                lines[at] = data.draw(st.sampled_from([" ", "    ", "\t"])) + lines[at]
            case _:
                lines[at] = lines[at][: data.draw(st.integers(0, len(lines[at])))]
    load("\n".join(lines))


@QUICK
@given(st.data(), st.sampled_from(SHIPPED))
def test_recipes_whose_bytes_went_wrong(data: Any, text: str) -> None:
    content = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    load(bytes(content[: data.draw(st.integers(0, len(content)))]))


KEYS = st.sampled_from(
    ["prompt", "completion", "instruction", "input", "output", "text", "answer", "messages", "conversations", "system",
     "tools", "role", "content", "from", "value", "weight", "tool_calls", "function", "name", "arguments", "type", ""]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), KEYS,
    st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "function_call", "{}", "[", "\ud83d", "a\0b"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": LEAVES,
        "content": VALUES,
        "from": LEAVES,
        "value": VALUES,
        "weight": LEAVES,
        "tool_calls": VALUES,
    },
)
ROWS = st.lists(
    st.dictionaries(KEYS, VALUES, max_size=6) | st.fixed_dictionaries({"messages": st.lists(TURN, max_size=4)}),
    min_size=1,
    max_size=3,
)
FORMS = st.sampled_from(["chat", "instruction", "completion", "text"])


def read(name: str, content: bytes, form: Any, *, evaluation: bool = False) -> None:
    with tempfile.TemporaryDirectory() as directory, Bounded():
        Path(directory, name).write_bytes(content)
        source = SourceSection(path=name, format=form)
        try:
            samples = read_samples(read_rows(source, directory)[0], source, evaluation=evaluation)
        except DataError as error:
            assert name in str(error) and printable(str(error)) and len(str(error)) < 3000
            return
        assert samples
        for sample in samples:
            if isinstance(sample, Passage):
                texts = [sample.prompt, sample.completion, sample.answer]
            else:
                assert isinstance(sample, Conversation)
                texts = [turn["content"] for turn in sample.messages] + [sample.answer]
            assert "".join(texts).encode("utf-8") is not None and sample.row.startswith(name)


@QUICK
@given(ROWS, FORMS, st.booleans(), st.booleans())
def test_any_rows(rows: list[Any], form: str, as_array: bool, evaluation: bool) -> None:
    text = json.dumps(rows) if as_array else "".join(json.dumps(row) + "\n" for row in rows)
    read("a.jsonl", text.encode(), form, evaluation=evaluation)


GOOD_ROWS = (
    '{"prompt": "née 1 + 1 =", "completion": " 2", "answer": 2}\n{"prompt": "", "completion": "[{\\"x\\": 1}]"}\n'
    '{"messages": [{"role": "user", "content": "one?"}, {"role": "assistant", "content": [{"type": "text", "text": "two"}]}]}\n'
)


@QUICK
@given(st.data(), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"]), FORMS)
def test_files_whose_bytes_went_wrong(data: Any, name: str, form: str) -> None:
    content = GOOD_ROWS.encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        piece = data.draw(
            st.binary(max_size=6)
            | st.sampled_from(
                [b"[" * 3000, b'{"a":' * 3000, b"NaN", b"-1e999", b"9" * 5000, b"\\ud800", b'"', b"\n", b","]
            )
        )
        content = content[:start] + piece + content[start + data.draw(st.integers(0, 20)) :]
    read(name, content, form)
