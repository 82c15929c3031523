"""What is refused before a base is loaded: the same for the command, for a resume and for the library."""

import shlex

import pytest
from tiny_runs import tiny_recipe

from dorakit import Run, train
from dorakit.cli import app
from dorakit.errors import DataError, RunError
from dorakit.training import prepare


@pytest.fixture
def no_loading(monkeypatch):
    monkeypatch.setattr(prepare, "build_model", lambda *_, **__: pytest.fail("the base was loaded"))


def begun(place):
    """A run whose training has not begun, and its recipe."""
    recipe = tiny_recipe(place, "lora")
    return Run.create(recipe), recipe


def test_a_run_beside_a_finished_one_says_where_it_goes(tmp_path, capsys):
    """Planted bugs caught: the line of every run; one with quiet."""
    recipe = tiny_recipe(tmp_path, "lora")
    first = train(recipe)
    assert "is finished" not in capsys.readouterr().err
    second = train(recipe)
    line = f"{first.path} is finished: this run goes to {second.path}"
    assert second.path == first.path.with_name(f"{first.name}-2") and capsys.readouterr().err.splitlines()[0] == line
    train(recipe, quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("way", ["library", "library resume", "command", "command resume"])
def test_a_bad_row_is_known_before_the_base_is_loaded(tmp_path, monkeypatch, capsys, no_loading, way):
    """Dies if one of the ways loads the base first."""
    run, recipe = begun(tmp_path) if "resume" in way else (None, tiny_recipe(tmp_path, "lora"))
    rows = tmp_path / "train.jsonl"
    rows.write_text(rows.read_text() + "{no json\n")
    number = len(rows.read_text().splitlines())
    if way.startswith("library"):
        with pytest.raises(DataError, match=rf"{rows.name}:{number}: not JSON"):
            train(recipe, resume=run, quiet=True)
        return
    arguments = ["--resume", str(run.path)] if run else [recipe.origin.path]
    monkeypatch.setattr("sys.argv", ["dorakit", "train", *arguments, "--quiet"])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 2 and f"{rows.name}:{number}: not JSON" in capsys.readouterr().err


def test_a_row_that_takes_a_tokenizer_to_judge(tmp_path, no_loading):
    """Planted bug caught: rows encoded after minutes of loading."""
    recipe = tiny_recipe(tmp_path, "lora", ("data.overlength=error", "data.max_seq_len=16"))
    with pytest.raises(DataError, match=r"train\.jsonl:\d+: \d+ tokens, data\.max_seq_len is 16"):
        train(recipe, quiet=True)
    assert not (tmp_path / "run-lora").exists()


def test_a_finished_run_is_refused_before_its_rows_are_read(tmp_path, no_loading):
    """Dies if rows that are gone by now are what is said of it."""
    run, recipe = begun(tmp_path)
    run.update(state="finished")
    rows = tmp_path / "train.jsonl"
    rows.unlink()
    with pytest.raises(RunError, match="is finished"):
        train(recipe, resume=run, quiet=True)


@pytest.mark.parametrize("taken", [False, True])
def test_a_checkpoint_that_was_set_aside(tmp_path, no_loading, taken):
    """Dies if it is called absent, or if a line that says how to use it moves something else: the path has a blank."""
    (tmp_path / "my runs").mkdir()
    run, recipe = begun(tmp_path / "my runs")
    aside, own = run.checkpoints / "aside-step-000000006", run.checkpoints / "step-000000006"
    aside.mkdir(parents=True)
    if taken:
        own.mkdir()
    with pytest.raises(RunError, match="was set aside when the run went on from an older checkpoint") as caught:
        train(recipe, resume=run, checkpoint=aside.name, quiet=True)
    said = [shlex.split(line) for line in str(caught.value).splitlines()[2:]]
    other = [["mv", str(own), f"{run.checkpoints}/other-step-000000006"]] if taken else []
    assert said == [*other, ["mv", str(aside), str(own)], ["dorakit", "train", "--resume", str(own)]]
    with pytest.raises(RunError, match="has no checkpoint 'aside-step-000000007'"):
        train(recipe, resume=run, checkpoint="aside-step-000000007", quiet=True)


def test_what_is_printed_to_be_typed_can_be_typed(tmp_path):
    """Dies if a path with a blank is two words: `rm -r my run` removes another directory."""
    (tmp_path / "my runs").mkdir()
    run, recipe = begun(tmp_path / "my runs")
    with pytest.raises(RunError, match="holds an unfinished run") as caught:
        Run.place(recipe)
    resume, remove, beside = (shlex.split(line.partition(":")[2]) for line in str(caught.value).splitlines()[1:])
    assert resume == ["dorakit", "train", "--resume", str(run.path)]
    assert remove == ["rm", "-r", str(run.path)]
    assert beside == ["dorakit", "train", "RECIPE", "-o", "DIR"]
    with pytest.raises(RunError, match="did not finish") as caught:
        _ = run.result
    assert shlex.split(str(caught.value).splitlines()[-1]) == ["dorakit", "train", "--resume", str(run.path)]
