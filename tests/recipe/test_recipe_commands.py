"""`dorakit validate` and `dorakit schema`, as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """\
version: 1
model: {base: tiny:llama}
adapter: {mode: qdora, rank: 16}
data:
  train:
    - {path: train.jsonl, format: chat}
optimizer: {learning_rate: 2e-4}
"""
ROW = '{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}\n'


def dorakit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dorakit", *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "train.jsonl").write_text(ROW)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "bad.yaml").write_text(GOOD.replace("rank", "rnak").replace("2e-4", "'2e-4'"))
    (tmp_path / "sub" / "worse.yml").write_text("version: 1\n\tmodel: x\n")
    return tmp_path


def test_good_recipe(recipes: Path) -> None:
    done = dorakit("validate", "good.yaml", "--set", "adapter.mode=lora", cwd=recipes)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ok  good.yaml  lora rank 16 on tiny:llama, train.jsonl\n"


def test_all_problems_of_all_recipes(recipes: Path) -> None:
    done = dorakit("validate", ".", "--twin", cwd=recipes)
    assert done.returncode == 2
    assert done.stdout == "ok  good.yaml  qdora rank 16 on tiny:llama, train.jsonl\n"
    assert [line for line in done.stderr.splitlines() if "error" in line or "problems" in line] == [
        "sub/bad.yaml:3:24: error: unknown key 'adapter.rnak'",
        "sub/bad.yaml:7:28: error: optimizer.learning_rate: quoted text '2e-4', expected a number above 0",
        "sub/worse.yml:2:1: error: a tab cannot be used to indent or separate",
        "3 problems in 2 recipes",
    ]


def test_json(recipes: Path) -> None:
    done = dorakit("validate", "good.yaml", "sub/bad.yaml", "--json", "--explain", cwd=recipes)
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert report["ok"] is False
    good, bad = report["recipes"]
    assert (good["absent"], good["notes"]) == ([], [])
    assert (good["path"], good["ok"], good["mode"], good["base"]) == ("good.yaml", True, "qdora", "tiny:llama")
    values = {value["key"]: value for value in good["values"]}
    assert values["adapter.rank"] == {
        "key": "adapter.rank",
        "value": "16",
        "source": "good.yaml:3",
        "read_by": "build.py",
    }
    assert bad["problems"][0] == {
        "message": "unknown key 'adapter.rnak'",
        "hint": "did you mean 'rank'?",
        "file": "sub/bad.yaml",
        "line": 3,
        "column": 24,
    }


def test_explain(recipes: Path) -> None:
    done = dorakit("validate", "good.yaml", "--explain", cwd=recipes)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["adapter.rank", "16", "good.yaml:3", "build.py"] in rows
    assert ["training.seed", "42", "default", "training/loop.py"] in rows


def test_quiet(recipes: Path) -> None:
    assert dorakit("validate", "good.yaml", "--quiet", cwd=recipes).stdout == ""


@pytest.mark.parametrize("arguments", [("no.yaml",), ("empty",), ()])
def test_nothing_to_validate(recipes: Path, arguments: tuple[str, ...]) -> None:
    (recipes / "empty").mkdir()
    done = dorakit("validate", *arguments, cwd=recipes)
    assert done.returncode == 2
    assert done.stderr and "Traceback" not in done.stderr


def test_schema_to_stdout_and_file(recipes: Path) -> None:
    done = dorakit("schema", "--output", "schema.json", cwd=recipes)
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads((recipes / "schema.json").read_text()) == json.loads(dorakit("schema", cwd=recipes).stdout)
    refused = dorakit("schema", "--output", "no/such/directory.json", cwd=recipes)
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr


@pytest.mark.parametrize("arguments", [["validate", "good.yaml", "--explain"], ["schema"], ["--help"]])
def test_no_torch(recipes: Path, arguments: list[str]) -> None:
    """Catches an import of torch, transformers or datasets at the top of a module that the command line reaches."""
    code = (
        "import sys\nfrom dorakit.__main__ import main\n"
        f"sys.argv = ['dorakit', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'bitsandbytes') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=recipes)
    assert done.stderr == "[]\n"
