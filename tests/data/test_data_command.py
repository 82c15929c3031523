"""`dorakit data`, run in this process on the tiny base."""

import json

import pytest
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import DataError

RECIPE = """\
version: 1
model: {{base: tiny:llama}}
adapter: {{mode: lora}}
data:
  train: [{{path: {path}, format: instruction, prompt: "{{instruction}}="}}]
  validation: {{rows: 2}}
optimizer: {{learning_rate: 1e-3}}
"""


@pytest.fixture
def recipe(tmp_path):
    rows = [{"instruction": f"{i} + 1 \x1b[31m", "output": str(i + 1)} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(path="a.jsonl"):
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(path=path))
        return str(tmp_path / "recipe.yaml")

    return write


def run(*arguments):
    return CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)


def test_trained_text_is_marked_off_a_terminal(recipe):
    result = run(recipe(), "--limit", "1")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "a.jsonl:2 · 14 tokens, 2 trained on",
        "1 + 1 \\x1b[31m=⟦2<|im_end|>⟧",
        "",
        "train:      8 documents of 14 to 15 tokens (median 14); 113 tokens, 17 trained on (15.0%)",
        "validation: 2 documents of 14 to 14 tokens (median 14); 28 tokens, 4 trained on (14.3%)",
    ]


def test_json_holds_the_same(recipe):
    result = run(recipe(), "--json", "-n", "2", "--set", "data.max_seq_len=14")
    report = json.loads(result.stdout)
    assert report["train"]["documents"] == 7
    assert report["train"]["lengths"] == {"min": 14, "median": 14, "max": 14}
    assert report["notes"][-1] == "1 of 10 documents are longer than 14 tokens: dropped"
    assert [sample["row"] for sample in report["samples"]] == ["a.jsonl:2", "a.jsonl:3"]
    assert report["samples"][0]["pieces"][-1] == {"text": "2<|im_end|>", "trained": True}


def test_a_twin_shows_made_rows(recipe):
    result = run(recipe("someone/data"), "--twin", "--json")
    report = json.loads(result.stdout)
    assert report["train"]["documents"] == 46
    assert any("someone/data is a hub data set: --twin made 48 rows" in note for note in report["notes"])


def test_a_mistake_is_one_error(recipe):
    with pytest.raises(DataError, match=r"no such file: b.jsonl (.|\n)*the directory holds .*a.jsonl"):
        run(recipe("b.jsonl"))
