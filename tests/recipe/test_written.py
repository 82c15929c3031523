"""The recipe that `init` writes: it loads for any rows and any kind of base, and says what it was given."""

import itertools
import re

import pytest

from dorakit import Recipe
from dorakit.recipe.schema import MODES
from dorakit.recipe.written import Draft, recipe_text

BASES = ("tiny:llama", "org/model", "./models/a b", "/models/x.gguf", "pkg:package/file.gguf", "../m.gguf")
COLUMNS = {
    "chat": {"messages": "a: b"},
    "instruction": {"instruction": "the question", "output": "no"},
    "completion": {},
    "text": {"text": "#"},
}
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def draft(**changes):
    told = {"base": "tiny:llama", "mode": "qdora", "path": "a.jsonl", "format": "text", "columns": {}, "num_rows": 500}
    return Draft(**{**told, "longest_of_99": 100, "counted_by": "counted", **changes})


@pytest.mark.parametrize(("form", "mode"), list(itertools.product(COLUMNS, MODES)))
def test_it_loads_as_what_was_asked(form, mode, tmp_path):
    """Planted bug caught: a setting that the mode or the format does not read, or a name that YAML takes for another thing."""
    for base, num_rows, longest in zip(BASES, (1, 19, 20, 999, 1000, 50_000), (10, 1100, 99_999) * 2, strict=True):
        asked = draft(
            base=base,
            mode=mode,
            path="my rows: 1 # of 2.jsonl",
            format=form,
            columns=COLUMNS[form],
            num_rows=num_rows,
            longest_of_99=longest,
            chat_template=TEMPLATE if form == "chat" else None,
        )
        file = tmp_path / "r.yaml"
        file.write_text(recipe_text(asked), encoding="utf-8")
        recipe = Recipe.from_yaml(str(file))
        (source,) = recipe.data.train
        assert (source.path, source.format, source.columns) == (asked.path, form, COLUMNS[form])
        assert (recipe.adapter.mode, recipe.data.max_seq_len) == (mode, asked.max_seq_len)
        assert recipe.model.base.endswith(base.lstrip("./"))
        assert recipe.data.chat_template == asked.chat_template
        assert recipe.origin.notes == []
        assert recipe.training.batch_size % recipe.training.micro_batch_size == 0


def test_every_setting_has_a_comment():
    """Planted bug caught: a line without one."""
    lines = recipe_text(draft(format="instruction", architecture="llama")).splitlines()
    settings = [line for line in lines if ": " in line and not line.startswith(("#", "version"))]
    assert len(settings) > 20
    assert [line for line in settings if not re.search(r"  # \w", line)] == []


@pytest.mark.parametrize(
    ("longest", "limit", "expected"),
    [
        (1, None, 64),
        (64, None, 64),
        (65, None, 128),
        (1000, None, 1024),
        (1025, None, 1152),
        (9999, None, 4096),
        (1000, 512, 512),
        (100, 512, 128),
    ],
)
def test_room_for_99_of_100_rows(longest, limit, expected):
    """Planted bug caught: rounding down, which drops the longest rows; or more than the model takes."""
    assert draft(longest_of_99=longest, model_limit=limit).max_seq_len == expected


@pytest.mark.parametrize(
    ("num_rows", "held_out", "written"),
    [
        (19, 0, "{rows: 0}"),
        (20, 2, "{rows: 2}"),
        (500, 25, "{rows: 25}"),
        (1000, 20, "{fraction: 0.02}"),
        (24_000, 480, "{fraction: 0.02}"),
        (1_000_000, 500, "{rows: 500}"),
    ],
)
def test_validation_fits_the_number_of_rows(num_rows, held_out, written):
    """Planted bug caught: a fraction of few rows, which holds out one or none."""
    made = draft(num_rows=num_rows)
    assert made.num_held_out == held_out
    assert f"  validation: {written} " in recipe_text(made)


def test_long_texts_are_cut_and_long_answers_are_not():
    """Planted bug caught: `drop` for texts of which most are too long, so that hardly anything is trained on."""
    assert "overlength: truncate" in recipe_text(draft(longest_of_99=9999))
    assert "overlength: drop" in recipe_text(draft(longest_of_99=99))
    assert "overlength: drop" in recipe_text(draft(longest_of_99=9999, format="chat"))
