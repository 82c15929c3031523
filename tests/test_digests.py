"""Results whose files are not what dorakit wrote: every command that reads them names them, and uses them only if asked to."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from dorakit import Run, evaluate, merge
from dorakit.cli.app import app
from dorakit.digests import refuse_changed, write_receipt
from dorakit.errors import RunError, UsageError

ADAPTER = "adapter/adapter_model.safetensors"
MERGED = "merged/model.safetensors"
READERS = {
    ADAPTER: [
        "eval {run} --limit 1", "eval {run}/adapter --limit 1", "generate {run} -p a", "chat {run}", "merge {run}",
        "quantize {run}", "export {run} --to peft", "export {run} --to merged", "export {run} --to gguf",
        "export {run} --to lora", "train {recipe} --from {run} --output {place}/next",
    ],
    MERGED: [
        "eval {run}/merged --limit 1", "generate {run}/merged -p a", "quantize {run}", "quantize {run}/merged",
        "export {run} --to merged", "export {run} --to merged --output {place}/copy", "export {run} --to gguf",
        "train {recipe} --set model.base={run}/merged --output {place}/next",
    ],
}  # fmt: skip
CASES = [(name, command) for name, commands in READERS.items() for command in commands]


def ask(command: str, **places):
    return CliRunner().invoke(
        app, [*command.format(**places).split(), "-q"], input="a\n", catch_exceptions=False, standalone_mode=False
    )


def flip(file):
    """One bit of the exponent of one weight, as a disk or a memory may do."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x04
    file.write_bytes(content)


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    """A finished run with its merge, by the file in which a bit is flipped, and the recipe to go on with."""
    place = tmp_path_factory.mktemp("digests")
    whole = Run.open(shutil.copytree(trained("lora").path, place / "whole"))
    merge(whole, receipt=False, quiet=True)
    for name in READERS:
        flip(shutil.copytree(whole.path, place / name.partition("/")[0]) / name)
    return {
        "place": place,
        "recipe": trained("lora").path.parent / "lora.yaml",
        **{name: place / name.partition("/")[0] for name in READERS},
    }


@pytest.mark.parametrize(("name", "command"), CASES)
def test_one_flipped_bit_is_named(merged, name, command):
    """Planted bugs caught: a reader that does not look, or looks after it has written."""
    run = merged[name]
    before = {path for path in run.rglob("*") if path.suffix != ".lock"}
    with pytest.raises(RunError) as refused:
        ask(command, run=run, **{key: merged[key] for key in ("place", "recipe")})
    line, hint = str(refused.value).split("\n")
    assert line.startswith(f"{run / name} changed (sha256 ") and line.endswith(" since dorakit wrote it")
    assert hint.endswith(f"go on with --accept-change {name}")
    assert {path for path in run.rglob("*") if path.suffix != ".lock"} == before
    assert not (merged["place"] / "next").exists() and not (merged["place"] / "copy").exists()


@pytest.mark.parametrize(
    "command",
    ["eval {run} --limit 1 --json", "export {run} --to peft --json", "train {recipe} --from {run} --output {place}/of"],
)
def test_a_change_is_accepted(merged, command):
    """And kept with what came of it. Planted bugs caught: the option passed over; a key that changed nothing taken."""
    places = {"run": merged[ADAPTER], "place": merged["place"], "recipe": merged["recipe"]}
    with pytest.raises(UsageError, match=rf"--accept-change adapter/x: that did not change; what changed: {ADAPTER}"):
        ask(f"{command} --accept-change {ADAPTER} --accept-change adapter/x", **places)
    said = ask(f"{command} --accept-change {ADAPTER}", **places)
    notes = (
        json.loads(said.stdout)["notes"]
        if "--json" in command
        else Run.open(merged["place"] / "of").read("run.json")["notes"]
    )
    assert any(note.startswith(f"accepted: {merged[ADAPTER] / ADAPTER} changed (sha256 ") for note in notes), notes


def test_results_of_earlier_versions_and_of_others(merged, run_of):
    """Planted bugs caught: a result without digests refused; a file that nothing reads, or that was added, called a change."""
    run = run_of("lora")
    for name in ("adapter/dorakit.json", "../nothing"):
        if (file := run.path / name).is_file():
            file.write_text(
                json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "files"})
            )
    flip(run.path / ADAPTER)
    evaluate(run, limit=1, quiet=True)
    whole = merged["place"] / "whole"
    (whole / "merged" / "README.md").write_text("a card")
    assert refuse_changed({whole / "merged": {}, whole / "adapter": {}}, []) == []


def test_what_a_receipt_of_a_stranger_names(tmp_path):
    """Planted bugs caught: a file outside read because a receipt names it; odd receipts end in a traceback."""
    directory = tmp_path / "merged"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (tmp_path / "secret.json").write_text("s")
    write_receipt(directory, "merge.json", {})
    stated = json.loads((directory / "merge.json").read_text())["files"]
    (directory / "merge.json").write_text(json.dumps({"files": {**stated, "../secret.json": "0" * 64}}))
    with pytest.raises(RunError, match=r"secret\.json is gone since"):
        refuse_changed({directory: {}}, [])
    for odd in ("[]", "{", '{"files": 3}', '{"files": {"config.json": 3}}', '{"files": {"config.json": "0"}}', "\xff"):
        (directory / "merge.json").write_text(odd, encoding="latin-1")
        with pytest.raises(RunError, match=r"merge\.json is damaged"):
            refuse_changed({directory: {}}, [])
