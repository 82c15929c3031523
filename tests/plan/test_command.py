"""`dorakit plan` from outside."""

import json

import pytest
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import DorakitError

LARGE = ("--set", "data.packing=true", "--set", "data.max_seq_len=8192")


def plan(file, *arguments):
    result = CliRunner().invoke(app, ["plan", str(file), *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_what_it_advises_fits(tmp_path):
    """Dies of a comparison the wrong way round, and of advice that does not fit when it is followed."""
    tiny_recipe(tmp_path, "lora")
    asked = (tmp_path / "lora.yaml", "--gpu", "0.6GB", *LARGE)
    found = json.loads(plan(*asked, "--json"))
    assert not found["fits"] and found["modes"]["lora"]["peak"] > found["device"]["room"]
    best = min(found["advice"], key=lambda advice: advice["peak"])
    followed = [part for override in best["overrides"] for part in ("--set", override)]
    again = json.loads(plan(*asked, *followed, "--json"))
    assert again["fits"] and again["modes"]["lora"]["peak"] == best["peak"] and again["advice"] == []


def test_time_is_tokens_over_speed(tmp_path):
    """Dies of a speed that is not read, of the table without the recipe's own mode, and of a time made up."""
    tiny_recipe(tmp_path, "dora")
    found = plan(tmp_path / "dora.yaml", "--gpu", "RTX 4090", "--tokens-per-second", "0.5")
    assert "dora*" in found and "fits: full, lora, dora, qlora, qdora" in found
    tokens = int(found.partition("tokens: ")[2].partition(",")[0])
    minutes, seconds = divmod(2 * tokens, 60)
    assert f"time: 0:{minutes:02}:{seconds:02}" in found
    assert "time: unknown without --tokens-per-second" in plan(tmp_path / "dora.yaml", "--gpu", "RTX 4090")
    (tmp_path / "train.jsonl").unlink()
    found = plan(tmp_path / "dora.yaml", "--quiet", "--tokens-per-second", "0.5")
    assert "steps: at most 3; tokens and time are unknown: train.jsonl is not here" in found and "peak" not in found


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--set", "model.base=nobody/nothing"], 4, "dorakit plan 'my lora.yaml' --config PATH/config.json"),
        (["--config", "none/config.json"], 2, "no such file"),
        (["--gpu", "RTX 9999"], 2, "RTX 4090"),
        (["--tokens-per-second", "0"], 2, "above 0"),
    ],
)
def test_bad_input_says_what_to_give(tmp_path, monkeypatch, arguments, code, said):
    """Dies of another exit code, and of an error that names no way on, or one that cannot be pasted."""
    tiny_recipe(tmp_path, "lora")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora.yaml").rename("my lora.yaml")
    error = CliRunner().invoke(app, ["plan", "my lora.yaml", *arguments]).exception
    assert isinstance(error, DorakitError), error
    assert error.exit_code == code and said in str(error)
