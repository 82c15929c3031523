"""With --json a failure is one JSON object on stdout, and the exit codes are those that --help lists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from dorakit import Run, errors, failpoints
from dorakit.cli import app
from dorakit.cli.failures import failure
from dorakit.errors import EXIT_CODES, DataError, DorakitError, Interrupted, ModelError, ResourceError, RunError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def failed(tmp_path, monkeypatch, capfd):
    """Run a command line that fails, in a directory with lora.yaml; returns its JSON and stderr."""
    tiny_recipe(tmp_path, "lora")
    monkeypatch.chdir(tmp_path)

    def run(*arguments, failpoint=""):
        failpoints.arm(failpoint)
        monkeypatch.setattr(sys, "argv", ["dorakit", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capfd.readouterr()
        content = json.loads(printed.out)  # one object and nothing else
        assert content["error"]["exit_code"] == ended.value.code in EXIT_CODES
        assert set(content["error"]) - {"hint", "gates", "problems"} == {"kind", "message", "place", "exit_code"}
        return content, printed.err

    yield run
    failpoints.arm("")


def test_usage_errors_of_typer_and_of_commands(failed):
    content, printed = failed("train", "lora.yaml", "--rank", "3", "--json")
    assert content == {"error": {"kind": "usage", "message": "No such option: --rank", "place": None, "exit_code": 2}}
    assert "error: No such option: --rank" in printed
    assert failed("nothing", "--json")[0]["error"]["kind"] == "usage"
    error = failed("train", "--json")[0]["error"]
    assert (error["kind"], error["message"]) == ("usage", "give a recipe, or --resume with a run directory")
    error = failed("merge", "tiny:llama", "--json")[0]["error"]
    assert error["kind"] == "usage" and error["place"] is None


def test_the_place_of_a_recipes_first_problem_and_all_of_them(failed):
    text = Path("lora.yaml").read_text().replace("rank: 4", "rnak: 4").replace("seed: 1", "sead: 1")
    Path("lora.yaml").write_text(text)
    error = failed("train", "lora.yaml", "--json")[0]["error"]
    assert error["kind"] == "recipe" and error["message"] == "unknown key 'adapter.rnak'"
    assert error["place"] == {"file": "lora.yaml", "line": 4, "column": 23} and error["hint"] == "did you mean 'rank'?"
    assert [problem["message"] for problem in error["problems"]] == [
        "unknown key 'adapter.rnak'", "unknown key 'training.sead'",
    ]  # fmt: skip
    content, _ = failed("validate", "lora.yaml", ROOT / "recipes/smoke/lora.yaml", "--json")
    assert [recipe["ok"] for recipe in content["recipes"]] == [False, True] and content["error"] == error


def test_the_place_of_a_row(failed):
    with open("train.jsonl", "a") as file:
        file.write('{"prompt": "x", "completion": null}\n')
    error = failed("train", "lora.yaml", "--json", "-q")[0]["error"]
    assert error["kind"] == "data" and error["hint"] == "remove the row, or fill it in"
    assert (Path(error["place"]["file"]).name, error["place"]["line"]) == ("train.jsonl", 25)


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (DataError("rows.json[17]: no field 'text'"), {"file": "rows.json", "row": 17}),
        (ModelError("model/config.json:3:7: not valid JSON: x"), {"file": "model/config.json", "line": 3, "column": 7}),
        (RunError("no such run: runs/x\n  runs holds a, b"), {"path": "runs/x"}),
        (ResourceError("rank 1 of 2 found nobody at 127.0.0.1:29500: refused"), None),
        (DorakitError("step 3: the loss is not finite"), None),
        (ModelError("nothing.at/all is mentioned here"), None),
    ],
)
def test_places_that_messages_begin_with(error, place):
    """Planted bugs caught: a host and port called a file, the number of a step called a line."""
    assert failure(error)["error"]["place"] == place


def test_a_path_that_is_there_is_the_place(tmp_path):
    assert failure(RunError(f"{tmp_path} exists and is not a run directory."))["error"]["place"] == {
        "path": str(tmp_path)
    }


def test_a_missed_gate_names_itself_beside_the_result(failed, run_of):
    run = run_of("lora").path
    content, printed = failed("eval", run, "--json", "-q", "--min", "accuracy=1.5", "--max", "loss=100")
    assert content["error"]["kind"] == "gate" and content["accuracy"] <= 1
    assert content["error"]["gates"] == [
        {"metric": "accuracy", "value": content["accuracy"], "limit": 1.5, "set_by": "--min"}
    ]
    assert printed.count("accuracy is") == 1


def test_a_loss_that_is_not_finite(failed):
    """Planted bug caught: NaN in JSON, which only Python reads."""
    error = failed("train", "lora.yaml", "--json", "-q", failpoint="loss:2=nan")[0]["error"]
    assert error["gates"] == [{"metric": "loss", "value": "nan", "limit": None, "set_by": None}]


def test_what_a_signal_stopped(failed):
    error = failed("train", "lora.yaml", "--json", "-q", failpoint="step:1=sigint")[0]["error"]
    assert (error["kind"], error["exit_code"]) == ("interrupted", 130) and "step 1" in error["message"]
    error = failed("train", "--resume", "run-lora", "--json", "-q", failpoint="step:1=sigterm")[0]["error"]
    assert (error["kind"], error["exit_code"]) == ("interrupted", 143)


def test_a_second_signal(failed):
    error = failed("train", "lora.yaml", "--json", failpoint="micro:1=sigint,loss:2=sigint")[0]["error"]
    assert (error["kind"], error["exit_code"]) == ("interrupted", 130)


def test_a_full_disk_and_no_memory(failed):
    error = failed("train", "lora.yaml", "--json", "-q", failpoint="result.file:1=enospc")[0]["error"]
    assert (error["kind"], error["exit_code"]) == ("resource", 4)
    error = failed("train", "lora.yaml", "--json", "-o", "other", failpoint="micro:1=memory")[0]["error"]
    assert error["kind"] == "resource" and error["message"].startswith("out of memory")


def test_a_bug(failed, monkeypatch):
    def broken(**_):
        raise ZeroDivisionError("of hf_abcdefghijklmnopqrstuvwxyz0123456789")

    monkeypatch.setattr(app, "app", broken)
    error = failed("doctor", "--json")[0]["error"]
    assert (error["kind"], error["exit_code"]) == ("bug", 1)
    assert error["message"].startswith("ZeroDivisionError") and "hf_abc" not in error["message"]


def test_import_keeps_its_result(failed):
    Path("sft.yaml").write_text("base_model: tiny:llama\nadapter: lora\nlora_r: 8\nsequence_len: 64\n")
    content, _ = failed("import", "sft.yaml", "--from", "axolotl", "--json")
    assert content["toolkit"] == "axolotl" and content["error"]["problems"] == content["problems"] != []


def test_no_json_where_none_is_asked_for(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["dorakit", "generate", "tiny:llama", "-p", "x", "--bad", "--", "--json"])
    with pytest.raises(SystemExit):
        app.main()
    assert capfd.readouterr().out == ""


def test_stdout_may_be_gone():
    """Planted bug caught: a traceback of the failure about the failure."""
    command = f"{sys.executable} -m dorakit train nothing.yaml --json >/dev/full"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "no such file" in ended.stderr and "Traceback" not in ended.stderr


def test_every_error_has_a_kind_and_a_code_that_help_lists():
    """Planted bugs caught: a class with its parent's kind, 143 left out of the table, a table that help does not show."""
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DorakitError)]
    named = [value for value in classes if value is not errors.ToldByAnother]
    assert len({value.kind for value in named}) == len(named)
    codes = {value.exit_code for value in named if value is not Interrupted} | {Interrupted("", 2).exit_code, 143}
    assert codes < set(EXIT_CODES)
    shown = " ".join(CliRunner().invoke(app.app, ["--help"], env={"COLUMNS": "200"}).stdout.split())
    for code, meaning in EXIT_CODES.items():
        assert f" {code}: {meaning}" in shown
    for name, command in typer.main.get_command(app.app).commands.items():
        assert "dorakit --help" in command.epilog, name


def test_docs_list_every_kind():
    page = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    kinds = {
        value.kind for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DorakitError)
    }
    assert set(re.findall(r'"(\w+)"', re.search(r'"kind": (.*)', page)[1])) == kinds | {"bug"}


def test_the_script_of_docs_measures_its_own_run_each_time(tmp_path):
    """Run twice in one workspace. Planted bug caught: the second time, the first run is measured again."""
    tiny_recipe(tmp_path, "lora")
    text = (tmp_path / "lora.yaml").read_text()
    (tmp_path / "my-recipes").mkdir()
    recipe = tmp_path / "my-recipes" / "small.yaml"
    [script] = re.findall(r"```sh\n(set -eu\n.*?)```", (ROOT / "docs/ci.md").read_text(encoding="utf-8"), re.DOTALL)
    rates = ("1e-3", "2e-2")
    for rate in rates:
        recipe.write_text(text.replace("learning_rate: 3e-2", f"learning_rate: {rate}"))
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    for name, rate in zip(("small", "small-2"), rates, strict=True):
        run = Run.open(tmp_path / "ci" / name)
        assert run.recipe.optimizer.learning_rate == float(rate)
        assert (run.eval / "adapter-test.json").is_file() and (run.eval / "merged-test.json").is_file()
        assert not list(run.eval.glob("*-2.json"))


def test_quiet_prints_paths_alone(failed, tmp_path, capfd, monkeypatch):
    """Planted bugs caught: a path quoted for the shell, or beside other words; --output that goes nowhere."""

    def path_of(*arguments):
        monkeypatch.setattr(sys, "argv", ["dorakit", *arguments, "-q"])
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capfd.readouterr()
        assert ended.value.code == 0 and printed.err == "", printed.err
        return Path(printed.out.removesuffix("\n"))

    run = path_of("train", "lora.yaml", "-o", "my runs/2024: a #1")
    assert run == Path("my runs/2024: a #1") and (run / "adapter").is_dir()
    for command, place in (
        (("merge",), run / "merged"),
        (("quantize",), run / "quantized"),
        (("export", "--to", "peft"), run / "peft"),
        (("export", "--to", "gguf"), run / "gguf" / "model-f16.gguf"),
        (("report",), run / "report.html"),
        (("analyze",), run / "analysis.json"),
    ):
        assert path_of(command[0], str(run), *command[1:]).resolve() == place.resolve() and place.exists()
    assert path_of("compare", "lora.yaml", "--twin", "--modes", "lora", "-o", "cells") == tmp_path / "cells"
    assert failed("train", "lora.yaml", "--json", "-o", "a", "--set", "output_dir=b")[0]["error"]["kind"] == "usage"
    assert failed("train", "--resume", str(run), "--json", "-o", "a")[0]["error"]["kind"] == "usage"
