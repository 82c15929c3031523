"""Where results go: neither what is read nor what somebody else put there is replaced; a kill leaves nothing for ever."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from tiny_runs import tiny_run
from typer.testing import CliRunner

from dorakit import Run, merge
from dorakit.cli.app import app
from dorakit.errors import RunError, UsageError
from dorakit.evaluation.written import output_file
from dorakit.export.destination import check_output
from dorakit.export.outputs import export_peft
from dorakit.export.to_gguf import export_gguf
from dorakit.export.to_merged import export_merged

COMMANDS = ["merge", "quantize", "export --to peft", "export --to merged", "export --to gguf", "export --to lora"]


def ask(command, target, output):
    name, *options = command.split()
    arguments = [name, str(target), *options, "--output", str(output), "--quiet"]
    CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)


def content(directory):
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def second(trained, tmp_path_factory):
    """A run that was trained on an earlier merge, `rel`, on rows that lie elsewhere."""
    place = tmp_path_factory.mktemp("second")
    merge(trained("lora"), output=place / "rel", receipt=False, quiet=True)
    return tiny_run(
        place / "data", "lora", ("training.max_steps=1", f"output_dir={place}/a/run"), base=str(place / "rel")
    )


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("rel", "rel is what the result is made from"),
        ("rel/more", "rel/more lies in .*/rel, which"),
        ("by-link/rel", "by-link/rel is what the result is made from"),
        (".", "holds .*run, which"),
        ("a", "a holds .*/a/run, which"),
        ("a/run", "run is what the result is made from"),
        ("a/run/adapter", "run/adapter lies in .*/a/run, which"),
        ("a/run/adapter/more", "adapter/more lies in .*/a/run, which"),
        ("data", "data holds .*train.jsonl, which"),
    ],
)
def test_what_is_read_is_not_replaced(second, output, words):
    """The base that is an earlier result itself, and so could be replaced; and all else, whatever its name.

    Planted bugs caught: only the run compared; only equality; names compared without looking where links lead.
    """
    place = second.path.parents[1]
    if not (place / "by-link").exists():
        (place / "by-link").symlink_to(place)
    before = content(place / "rel") | content(place / "a") | content(place / "data")
    for command in COMMANDS:
        with pytest.raises(UsageError, match=words):
            ask(command, second.path, place / output)
    assert content(place / "rel") | content(place / "a") | content(place / "data") == before


def test_a_place_with_two_names(tmp_path, monkeypatch):
    """As of a bind mount. Planted bug caught: paths compared as texts alone."""
    for name in ("base", "other"):
        (tmp_path / name).mkdir()
    samefile = type(tmp_path).samefile
    names = {tmp_path / "base", tmp_path / "other"}
    monkeypatch.setattr(type(tmp_path), "samefile", lambda a, b: {a, b} <= names or samefile(a, b))
    for output in ("other", "other/more"):
        with pytest.raises(UsageError, match="is what the result is made from"):
            check_output(tmp_path / output, "merged", [tmp_path / "base"])


def test_only_what_this_form_wrote_is_replaced(run_of, tmp_path):
    """Planted bugs caught: any export.json taken for this form's; files that it does not list, or that were edited, removed."""
    run, out = run_of("lora"), tmp_path / "out"
    export_gguf(run, output=out, quiet=True)
    before = content(out)
    for command in (command for command in COMMANDS if "gguf" not in command):
        with pytest.raises(UsageError, match=r"model-f16\.gguf"):
            ask(command, run.path, out)
    (out / "Q4_K_M.gguf").write_bytes(b"made by llama-quantize")
    with pytest.raises(UsageError, match=r"alone: it holds Q4_K_M\.gguf\n"):
        export_gguf(run, output=out, quiet=True)
    (out / "Q4_K_M.gguf").unlink()
    assert content(out) == before

    for path in ("notes/of a person.md", "empty/../NOTES.md", "README.md"):
        peft = tmp_path / "peft"
        export_peft(run, output=peft, quiet=True)
        export_peft(run, output=peft, quiet=True)  # replaces its own
        (peft / path).parent.mkdir(parents=True, exist_ok=True)
        (peft / path).write_text("a person's")
        with pytest.raises(UsageError, match="was not made by this command alone: "):
            export_peft(run, output=peft, quiet=True)
        assert (peft / path).read_text() == "a person's"
        shutil.rmtree(peft)


def test_a_merge_that_is_taken_keeps_what_lies_there(run_of, tmp_path):
    """Planted bugs caught: a person's card overwritten in RUN/merged; their notes published with a copy."""
    run = run_of("lora")
    merge(run, receipt=False, quiet=True)
    (run.merged / "NOTES.md").write_text("mine")
    export_merged(run, quiet=True)
    copy = export_merged(run, output=tmp_path / "copy", quiet=True).directory
    assert (run.merged / "NOTES.md").is_file() and not (copy / "NOTES.md").exists()
    (run.merged / "README.md").write_text("mine too")
    with pytest.raises(UsageError, match=r"merged/README\.md was not made by this command, or changed since"):
        export_merged(run, quiet=True)
    with pytest.raises(UsageError, match=r"it holds NOTES\.md, README\.md \(changed since\)\n"):
        merge(run, quiet=True)
    assert (run.merged / "README.md").read_text() == "mine too"


@pytest.mark.parametrize("command", [*COMMANDS, "train"])
@pytest.mark.parametrize("target", ["a directory", "nothing", "itself"])
def test_a_link_is_refused_before_any_work(trained, tmp_path, command, target):
    """Planted bug caught: found out by the rename at the end, or the link replaced by a directory on the smaller disk."""
    link, disk = tmp_path / "out", tmp_path / "disk"
    if target == "a directory":
        disk.mkdir()
    link.symlink_to(link if target == "itself" else disk)
    with pytest.raises(
        (UsageError, RunError), match=r"out is a link to .*, which is not written through\n  name the place"
    ):
        if command == "train":
            ask("train", trained("lora").path.parent / "lora.yaml", link)
        else:
            ask(command, trained("lora").path, link)
    assert link.is_symlink() and (not disk.exists() or not any(disk.iterdir()))


WRITES = """\
import sys
from pathlib import Path
from dorakit.files import whole_directory
from dorakit.lock import working_directory
place = Path(sys.argv[1])
with working_directory(place) as work, whole_directory(place, work=work) as staging:
    (staging / "a").write_text("new")
    (work / "scratch").mkdir()
    (work / "scratch" / "logits").write_text("large")
"""


def write(place, failpoint=""):
    environment = os.environ | {"DORAKIT_FAILPOINT": failpoint}
    return subprocess.run([sys.executable, "-c", WRITES, place], env=environment).returncode


@pytest.mark.parametrize("where", ["directory.written", "directory.replacing", "prune", "directory.renamed"])
def test_the_next_one_clears_what_a_kill_left(tmp_path, where):
    """And nothing that may be somebody else's. Planted bugs caught: staging or the replaced directory left for ever; one that
    is still written removed, or one that has only the name.
    """
    place = tmp_path / "out"
    assert write(place) == 0
    mine = tmp_path / ".tmp-out-0123abcd"
    mine.mkdir()
    (mine / "held.lock").write_text("a person's")
    for _ in range(2):
        assert write(place, f"{where}:1=kill9") == -signal.SIGKILL
    assert len(list(tmp_path.glob(".tmp-out-*"))) >= 2
    from dorakit.lock import working_directory

    with working_directory(place) as held:
        assert write(place) == 0
        assert held.is_dir() and {path.name for path in tmp_path.iterdir()} == {"out", mine.name, held.parent.name}
    assert (mine / "held.lock").read_text() == "a person's" and (place / "a").read_text() == "new"


def test_a_kill_between_two_renames_and_another_form(run_of, tmp_path):
    """Planted bug caught: the earlier result, which has no name for the moment, replaced as if nothing were there."""
    run, out = run_of("lora"), tmp_path / "out"
    export_peft(run, output=out, quiet=True)
    before = content(out)
    out.rename(tmp_path / ".old-out-0123abcd")
    with pytest.raises(UsageError, match="was not made by this command"):
        export_gguf(run, output=out, quiet=True)
    assert content(out) == before


def test_a_result_of_an_earlier_version(run_of):
    """Planted bug caught: a receipt without a list of files taken to own everything beside it."""
    run = Run.open(run_of("lora").path)
    export_peft(run, quiet=True)
    receipt = json.loads((run.peft / "export.json").read_text())
    del receipt["files"]
    (run.peft / "export.json").write_text(json.dumps(receipt))
    with pytest.raises(UsageError, match=r"then: rm -r .*peft"):
        export_peft(run, quiet=True)


def test_an_evaluation_replaces_only_an_evaluation(tmp_path):
    """Planted bug caught: the test rows, or a run.json, overwritten by the figures."""
    file, link = tmp_path / "test.json", tmp_path / "link.json"
    link.symlink_to(file)
    for content in ('{"target": "r", "variant": "adapter"}', '[{"prompt": "a"}]', '{"schema": 1}', "{"):
        file.write_text(content)
        if "variant" in content:
            assert output_file(file) == file
            continue
        with pytest.raises(UsageError, match="was not made by `dorakit eval`"):
            output_file(file)
        with pytest.raises(UsageError, match="which is not written through"):
            output_file(link)
        assert file.read_text() == content


@pytest.mark.parametrize("name", ["scratch", "held.lock"])
def test_an_output_may_be_called_anything(run_of, tmp_path, name):
    """Planted bug caught: a scratch directory of that name beside the staging one."""
    assert merge(run_of("lora"), output=tmp_path / name, dtype="float32", receipt=False, quiet=True) == tmp_path / name
