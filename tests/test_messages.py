"""Every command that a message prints is typed as it stands, and works; tests/export/test_hints.py has those of an export."""

import contextlib
import functools
import io
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from printed import tiny
from printed_commands import EXPORT_MODULES, ROOT, commands_in, hints
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from dorakit import Run, failpoints
from dorakit.cli import app as command_line
from dorakit.cli.app import app
from dorakit.doctor import examination
from dorakit.model.source import resolve
from dorakit.report import page

STEPS = ("training.save_every=1", "training.keep_checkpoints=9")


def said(*arguments, failpoint=""):
    """What a command prints, and the error that it ends with."""
    failpoints.arm(failpoint)
    try:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        failpoints.arm("")
    return f"{result.output}\n{result.exception or ''}"


class Site:
    """A directory with a blank in its name, with rows, a recipe, and copies of finished runs."""

    def __init__(self, tmp, trained):
        self.tmp, self.trained = tmp / "a place", trained
        tiny_recipe(self.tmp, "lora", STEPS)
        self.recipe = self.tmp / "lora.yaml"
        self.recipe.write_text(
            self.recipe.read_text(encoding="utf-8").replace("save_every: 0", "save_every: 1"), encoding="utf-8"
        )

    def run(self, mode="lora", name="a run"):
        return shutil.copytree(self.trained(mode).path, self.tmp / name)

    def without_checkpoints(self):
        """A run that stopped before its first checkpoint."""
        run = self.run(name="unfinished")
        Run.open(run).update(state="training")
        shutil.rmtree(run / "adapter")
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        return run

    def stopped(self):
        """A run that stopped after its second step."""
        self.train(failpoint="step:2=sigint")
        return self.tmp / "run-lora"

    def train(self, *arguments, failpoint=""):
        return said("train", self.recipe, *arguments, failpoint=failpoint)

    def write(self, name, text):
        file = self.tmp / name
        file.write_text(text, encoding="utf-8")
        return file

    def absent(self, name, mode="lora"):
        return said("eval", self.run(mode) / name)

    def adapter_as_base(self):
        text = self.recipe.read_text(encoding="utf-8").replace("tiny:llama", str(self.run() / "adapter"))
        return said("train", self.write("other.yaml", text))

    def on_nf4_only(self):
        said("quantize", "tiny:llama", "--output", self.tmp / "nf4")
        said("train", self.recipe, "--set", "adapter.mode=qlora", "--set", f"model.base={self.tmp}/nf4")
        return said("quantize", self.tmp / "run-lora")

    def set_aside(self):
        run = self.stopped()
        said("train", "--resume", run / "checkpoints/step-000000001", failpoint="step:1=sigint")
        return said("train", "--resume", run / "checkpoints/aside-step-000000002")

    def lost_beginning(self):
        self.train("--from", self.run())
        run = self.tmp / "run-lora"
        Run.open(run).update(state="training")
        for name in ("adapter", "checkpoints"):
            shutil.rmtree(run / name)
        return said("train", "--resume", run)

    def full_disk(self):
        return self.train(failpoint="checkpoint.file:1=enospc")

    def full_disk_at_the_beginning(self):
        return self.train("--from", self.run(), failpoint="checkpoint.file:1=enospc")

    def no_report(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page, "write_page", lambda _: 1 / 0)
            return self.train()

    def broken_check(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(examination._CHECKS, "memory", lambda: 1 / 0)
            return said("doctor")

    def broken(self, error):
        def fail(**_):
            raise error

        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as stderr:
            patch.setattr(command_line, "app", fail)
            patch.setattr(sys, "argv", ["dorakit", "doctor"])
            with pytest.raises(SystemExit):
                command_line.main()
        return stderr.getvalue()

    def init(self, *arguments):
        printed = said("init", "--data", self.tmp / "train.jsonl", "--output", self.tmp / "my own.yaml", *arguments)
        return printed + (self.tmp / "my own.yaml").read_text(encoding="utf-8")

    def card(self):
        said("export", self.run(), "--to", "peft")
        return (self.tmp / "a run/peft/README.md").read_text(encoding="utf-8")

    def with_key(self, key):
        text = self.recipe.read_text(encoding="utf-8").replace("training: {", f"training: {{{key}: true, ")
        return said("validate", self.write("other.yaml", text))

    def imported(self):
        text = (
            "base_model: tiny:llama\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nsequence_len: 64\nlearning_rate: 1e-3\n"
        )
        text += "lora_model_dir: ./theirs\n"
        text += "datasets: [{path: chats.jsonl, ds_type: json, type: chat_template}]\n"
        turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
        self.write("chats.jsonl", json.dumps({"messages": turns}) + "\n")
        return said("import", self.write("axolotl.yaml", text), "--output", self.tmp / "from axolotl.yaml")


CASES = {
    "a bug": lambda site: site.broken(ZeroDivisionError()),
    "out of memory": lambda site: site.broken(MemoryError()),
    "init without rows": lambda site: said("init"),
    "init": lambda site: site.init("--model", "tiny:llama"),
    "import": Site.imported,
    "methods": lambda site: said("methods"),
    "no method": lambda site: said("methods", "verra"),
    "no runs": lambda site: said("runs", site.tmp / "nothing"),
    "trained": Site.train,
    "trained anew": lambda site: said("train", "--resume", site.run()),
    "stopped at once": lambda site: site.train(
        "--set", "training.micro_batch_size=2", failpoint="micro:1=sigint,loss:2=sigint"
    ),
    "stopped": lambda site: site.train(failpoint="step:1=sigint"),
    "stopped, and begun again": lambda site: site.stopped() and site.train(),
    "a full disk": Site.full_disk,
    "a full disk at the beginning": Site.full_disk_at_the_beginning,
    "a checkpoint set aside": Site.set_aside,
    "a lost beginning": Site.lost_beginning,
    "no report": Site.no_report,
    "nothing to analyze": lambda site: said("analyze", site.without_checkpoints()),
    "no result": lambda site: said("merge", site.without_checkpoints()),
    "no run": lambda site: said("report", site.tmp),
    "a checkpoint": lambda site: said("eval", site.stopped() / "checkpoints/step-000000001"),
    "a recipe": lambda site: said("eval", site.recipe),
    **{
        f"no {name}": lambda site, name=name: site.absent(name)
        for name in ("merged", "quantized", "peft", "gguf", "lora")
    },
    "no merged of a stopped run": lambda site: said("eval", site.without_checkpoints() / "merged"),
    "an adapter as a base": Site.adapter_as_base,
    "NF4 only": Site.on_nf4_only,
    "quantized": lambda site: said("quantize", site.run()),
    "a check that breaks": Site.broken_check,
    "several processes for the harness": lambda site: said("eval", site.run(), "--task", "lm-eval:x", "--nproc", "2"),
    "a card": Site.card,
    "no config.json": lambda site: said("plan", site.recipe, "--set", "model.base=org/model"),
    "another toolkit's resume": lambda site: site.with_key("resume_from_checkpoint"),
    "another toolkit's resume by itself": lambda site: site.with_key("auto_resume_from_checkpoints"),
}
# Messages whose commands are parsed only (tests/test_docs.py), with the reason.
NOT_PROVOKED = {
    "it belongs to `dorakit train`": "names a command and asks for none",
    "# Made by `dorakit import` from": "names what made the file",
    "What `dorakit eval` measures": "names the reader of a section",
    "Defaults of `dorakit merge`": "names the reader of a section",
    "a name of `dorakit methods`": "names where the words stand",
    "ended with exit code": "names what failed",
    "not made by `dorakit eval`": "names what makes such a file",
    "is not converted": "names where to begin",
    "no recipe in that directory": "names what writes one",
    "another process of this run is gone": "takes several processes: tests/distributed/test_one_fails.py",
}


@pytest.fixture(scope="module")
def provoked(tmp_path_factory, trained):
    """A function that provokes a message, once: its text, and the directory that it is about."""

    @functools.cache
    def provoke(case):
        site = Site(tmp_path_factory.mktemp("hints"), trained)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(site.tmp)
            return CASES[case](site), site

    return provoke


def lines_to_type(text, site):
    """The commands in a text in their order, with what its placeholders stand for."""
    in_text = r"`(dorakit [^`]+)`|(?:^ +|: +)((?:dorakit|rm -r|mv) .+?)(?=;|, then|$)"
    lines = [found[1] or found[2] for found in re.finditer(in_text, text, re.MULTILINE)]
    whole = {"--resume RUN": "--resume unfinished", "RUN": "finished", "RECIPE": shlex.quote(str(site.recipe))}
    whole |= {
        "THIS": "'my own.yaml'",
        "DIRECTORY": "finished/adapter",
        "DIR": "elsewhere",
        "PATH/": "base/",
        "--debug ...": "--debug schema",
    }
    return [functools.reduce(lambda line, item: line.replace(*item), whole.items(), line) for line in lines]


@pytest.mark.parametrize("case", CASES)
def test_the_commands_of_a_message_work(provoked, case, trained, monkeypatch):
    """Planted bugs caught: a path with a blank not quoted; `train --resume` of a run that began with an adapter it has lost."""
    text, site = provoked(case)
    monkeypatch.chdir(site.tmp)
    monkeypatch.delenv("DORAKIT_DEBUG", raising=False)
    lines = lines_to_type(text, site)
    assert lines, text
    shutil.copytree(site.trained("lora").path, "finished")
    shutil.copy("train.jsonl", "my.jsonl")
    shutil.copytree(resolve("tiny:llama").directory, "base")
    if any("--resume unfinished" in line for line in lines):
        site.without_checkpoints()
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] != "dorakit":
            subprocess.run(words, check=True)
        elif len(words) > 2:  # else a mention
            # A resumed run goes on as it began.
            arguments = words[1:] if "--resume" in words else tiny(words[1:])
            result = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert result.exit_code == 0, f"{line}: {result.output}"


@pytest.mark.parametrize("name", ["adapter", "model", "merged"])
def test_where_no_command_helps_none_is_named(provoked, trained, tmp_path, name):
    """Planted bug caught: `train --resume` of a finished run, `merge` of one that has nothing to merge."""
    site = Site(tmp_path, trained)
    text = site.absent(name, "full" if name != "model" else "lora")
    assert "no such directory" in text and "the result is" in text and not commands_in(text)


def test_every_command_is_provoked(provoked):
    """Planted bug caught: a message with a command that no case above prints."""
    texts = [provoked(case)[0] for case in CASES]
    files = [file for file in sorted((ROOT / "dorakit").rglob("*.py")) if file.stem not in EXPORT_MODULES]
    found = [pattern for file in files for pattern in hints(file)]
    unseen = [
        pattern
        for pattern in found
        if not any(re.search(pattern, text, re.DOTALL) for text in texts)
        and not any(re.escape(piece) in pattern for piece in NOT_PROVOKED)
    ]
    assert len(found) > 35 and not unseen, "\n".join(unseen)
    assert all(any(re.escape(piece) in pattern for pattern in found) for piece in NOT_PROVOKED)
