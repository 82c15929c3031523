"""Whatever the text, loading ends in a recipe or in a RecipeError with a place."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dorakit.errors import RecipeError
from dorakit.recipe.loader import dump_resolved, load_recipe
from dorakit.recipe.schema import Recipe
from dorakit.recipe.yaml_text import MAX_BYTES

VALID = """\
# yaml-language-server: $schema=schema.json
version: 1
model: {base: tiny:llama, architecture: llama, dtype: float32}
adapter:
  mode: qdora
  rank: 16
  alpha: 32.0
  target_modules: [q_proj, v_proj]
  rank_pattern: {q_proj: 4}
  magnitude: {learning_rate_ratio: 2.0}
quantization: {block_size: 128, skip_modules: [lm_head]}
data:
  root: data/
  train:
    - {path: a.jsonl, format: chat, weight: 0.5}
    - {path: b.csv, format: instruction, columns: {instruction: question}, prompt: chat}
  validation: {fraction: 0.02}
training: {epochs: 1, sample_prompts: ["What is 2 + 2?"], keep_best: true}
optimizer: {name: paged_adamw_8bit, learning_rate: 1e-4, betas: [0.9, 0.99], warmup_ratio: 0.03}
evaluation: {metric: option, options: [a, b]}
"""
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
PIECES = st.sampled_from(
    [
        "version",
        "model",
        "base",
        "adapter",
        "mode",
        "qdora",
        "data",
        "train",
        "path",
        "format",
        "chat",
        "rank",
        "lora_r",
        ": ",
        ":",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "'",
        '"',
        "#",
        "&a",
        "*a",
        "<<",
        "!!str",
        "|",
        ">",
        "?",
        "\t",
        "---",
        "...",
        "%YAML 1.2\n",
        "1",
        "0o17",
        "1e400",
        ".nan",
        "null",
        "~",
        "true",
        "yes",
        "\\ud800",
        "é",
        "\x00",
        "\u2028",
        "\r",
        "9" * 400,
    ]
)


def outcome(content: bytes, *overrides: str) -> Recipe | None:
    """Load; a recipe that comes back must survive its own dump."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "r.yaml")
        path.write_bytes(content)
        recipe = None
        try:
            recipe = load_recipe(str(path), list(overrides))
        except RecipeError as error:
            assert error.problems
            assert str(error)
        if recipe is not None:
            path.write_text(dump_resolved(recipe), encoding="utf-8")
            assert load_recipe(str(path), []).model_dump() == recipe.model_dump()
        return recipe


def test_the_valid_recipe_is_valid() -> None:
    assert outcome(VALID.encode()) is not None


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    outcome(content)


@QUICK
@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_yaml(text: str) -> None:
    outcome(text.encode())


@QUICK
@given(st.integers(0, len(VALID)), st.integers(0, 12), PIECES)
def test_mutated_recipe(start: int, length: int, piece: str) -> None:
    outcome((VALID[:start] + piece + VALID[start + length :]).encode())


@QUICK
@given(
    st.sampled_from(
        [
            "adapter",
            "adapter.rank",
            "data.train.0.path",
            "data.train",
            "optimizer.betas.0",
            "a.b",
            "adapter.rank_pattern.x.y",
            "model.base",
        ]
    ),
    st.one_of(st.text(max_size=20), st.lists(PIECES, max_size=6).map("".join)),
)
def test_any_override(key: str, value: str) -> None:
    outcome(VALID.encode(), f"{key}={value}")


@QUICK
@given(st.text(max_size=30))
def test_any_text_as_override(override: str) -> None:
    outcome(VALID.encode(), override)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * MAX_BYTES,
        "[" + "a," * (MAX_BYTES // 8),
        "{" + "a: b," * (MAX_BYTES // 5),
        "- " * (MAX_BYTES // 2),
        VALID.replace("[q_proj, v_proj]", "[" + "1," * 15_000 + "]"),
        VALID + "".join(f"k{i}: 1\n" for i in range(4_000)),
        VALID.replace("[q_proj, v_proj]", "(" * 100_000),
        VALID.replace("q_proj: 4", "x" * 100_000 + ": 1"),
    ],
    ids=["deep", "wide", "mapping", "blocks", "wrong entries", "unknown keys", "expression", "long key"],
)
def test_hostile_text_costs_no_more_than_its_length(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(RecipeError):
        outcome(text[:MAX_BYTES].encode())
    assert time.process_time() - started < 20
