"""Every command that a refusal or a note of `dorakit export` prints is typed as it stands, and works."""

import functools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from printed_commands import EXPORT_MODULES, commands_in, hints, parse
from tiny_runs import tiny_run
from typer.testing import CliRunner

import dorakit
from dorakit import Run
from dorakit.cli.app import app
from dorakit.errors import DorakitError
from dorakit.model.source import resolve

ROOM = Path(dorakit.__file__).parent / "export"


class Site:
    """Copies of finished runs, and what is not one."""

    def __init__(self, tmp: Path, trained):
        self.tmp, self.trained = tmp, trained

    def run(self, mode: str) -> Path:
        return shutil.copytree(self.trained(mode).path, self.tmp / mode)

    def adapter(self, mode: str) -> Path:
        return shutil.copytree(self.trained(mode).adapter, self.tmp / f"my {mode} adapter")

    def of(self, base: str, mode: str = "lora", *overrides: str) -> Path:
        return tiny_run(self.tmp / "trained", mode, ("training.max_steps=1", *overrides), base=base).path

    def with_pieces(self) -> Path:
        """A run whose tokenizer is no byte-level BPE."""
        base = shutil.copytree(resolve("tiny:llama").directory, self.tmp / "pieces")
        tokenizer = json.loads((base / "tokenizer.json").read_text())
        tokenizer["model"]["byte_fallback"] = True
        (base / "tokenizer.json").write_text(json.dumps(tokenizer))
        return self.of(str(base))

    def with_a_rule(self) -> Path:
        """A run whose tokenizer cuts text by a rule without a name."""
        base = shutil.copytree(resolve("tiny:llama").directory, self.tmp / "rule")
        tokenizer = json.loads((base / "tokenizer.json").read_text())
        tokenizer["normalizer"] = {"type": "Lowercase"}
        (base / "tokenizer.json").write_text(json.dumps(tokenizer))
        return self.of(str(base))

    def with_positions(self, mode: str = "lora") -> Path:
        """A run of a model whose positions llama.cpp knows no name for."""
        base = shutil.copytree(resolve("tiny:llama").directory, self.tmp / "positions")
        config = json.loads((base / "config.json").read_text())
        config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        (base / "config.json").write_text(json.dumps(config))
        return self.of(str(base), mode)

    def unfinished(self) -> Path:
        run = self.run("lora")
        Run.open(run).update(state="training")
        shutil.rmtree(run / "adapter")
        return run


REFUSED = {
    "a whole run as an adapter": lambda site: [site.run("full"), "--to", "peft"],
    "a whole run merged": lambda site: [site.run("full"), "--to", "merged"],
    "a whole run as a plain LoRA": lambda site: [site.run("full"), "--to", "lora"],
    "a whole run with a dtype": lambda site: [site.run("full"), "--to", "gguf", "--dtype", "float32"],
    "a whole run onto a base": lambda site: [site.run("full"), "--to", "gguf", "--onto", "trained"],
    "an adapter without a place": lambda site: [site.adapter("dora"), "--to", "gguf"],
    "an adapter without a place, merged": lambda site: [site.adapter("lora"), "--to", "merged"],
    "another base without a place": lambda site: [site.adapter("lora"), "--to", "peft", "--base-model", "tiny:llama"],
    "another family": lambda site: [site.of("tiny:gemma2"), "--to", "gguf"],
    "another tokenizer": lambda site: [site.with_pieces(), "--to", "gguf"],
    "another rule": lambda site: [site.with_a_rule(), "--to", "gguf"],
    "other positions": lambda site: [site.with_positions(), "--to", "gguf"],
    "modules trained whole": lambda site: [site.of("tiny:llama", "lora", "adapter.modules_to_save=[norm]"), "--to", "lora"],
    "no rank suffices": lambda site: [site.run("dora"), "--to", "lora", "--max-lost", "1e-12", "--max-rank", "8"],
    "a start on a base in 4 bits": lambda site: [site.of("tiny:llama", "qlora", "adapter.start=pissa"), "--to", "peft"],
    "not finished": lambda site: [site.unfinished(), "--to", "gguf"],
    "not merged": lambda site: [site.run("lora") / "merged", "--to", "gguf"],
}  # fmt: skip
# Refusals that name no command: the message says what to do, or there is nothing to do.
WORDS_ONLY = {
    "nothing": (lambda site: ["./nothing", "--to", "gguf"], "no such run or directory"),
    "a model": (lambda site: [resolve("tiny:llama").directory, "--to", "gguf"], "not a run or an adapter directory"),
    "another base of a run": (
        lambda site: [site.run("lora"), "--to", "gguf", "--base-model", "tiny:llama"],
        "is a run, which knows its base",
    ),
    "a whole run of another family": (
        lambda site: [site.of("tiny:gemma2", "full"), "--to", "gguf"],
        "convert_hf_to_gguf.py",
    ),
    "a whole run of another family as an adapter": (
        lambda site: [site.of("tiny:gemma2", "full"), "--to", "peft"],
        "which transformers and vLLM load as it is",
    ),
    "a rank that is none": (lambda site: [site.run("lora"), "--to", "lora", "--max-rank", "7"], "expected one of"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory, trained):
    """A function that provokes a refusal, once: its message, its target, and a directory of its own."""

    @functools.cache
    def provoke(case):
        tmp = tmp_path_factory.mktemp("hints")
        make = REFUSED[case] if case in REFUSED else WORDS_ONLY[case][0]
        target, *options = make(Site(tmp, trained))
        with pytest.raises(DorakitError) as caught:
            arguments = ["export", str(target), *options, "-q"]
            CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
        return str(caught.value), target, tmp

    return provoke


def filled(text, target, tmp_path):
    return (
        text.replace(" RUN", f" {target}").replace(" ADAPTER", f" '{target}'").replace(" DIR", f" {tmp_path}/elsewhere")
    )


def works(command):
    parse(command)
    arguments = shlex.split(command)[1:]
    if arguments[0] != "train":  # a training of its own
        result = CliRunner().invoke(app, [*arguments, "-q"], catch_exceptions=False, standalone_mode=False)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("case", REFUSED)
def test_the_command_of_a_refusal_works(refused, case):
    """Planted bugs caught: a form that the run has not; a path with a blank not quoted; an option of another command."""
    commands = commands_in(filled(*refused(case)))
    assert commands
    for command in commands:
        works(command)


@pytest.mark.parametrize("case", WORDS_ONLY)
def test_where_no_command_helps_none_is_named(refused, case):
    """Planted bug caught: a command that would be refused in its turn."""
    message, _, _ = refused(case)
    assert WORDS_ONLY[case][1] in message and not commands_in(message)


@pytest.mark.parametrize("kind", ["run", "adapter"])
def test_the_commands_of_a_note_work(trained, tmp_path, kind):
    """Planted bug caught: a note that names a form as if it were a command."""
    target = getattr(Site(tmp_path, trained), kind)("dora")
    arguments = ["export", str(target), "--to", "peft", "--output", str(tmp_path / "peft"), "--json", "-q"]
    made = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False).stdout)
    commands = commands_in(filled("\n".join(made["notes"]), target, tmp_path))
    assert [command.split("--to ")[1].split()[0] for command in commands] == ["lora", "merged", "gguf"]
    for number, command in enumerate(commands):
        works(command.replace("/elsewhere", f"/elsewhere-{number}"))


def test_every_command_is_provoked(refused):
    """Planted bug caught: a hint in the room that none of the refusals above prints."""
    messages = [refused(case)[0] for case in REFUSED]
    found = [text for module in EXPORT_MODULES for text in hints(ROOM / f"{module}.py")]
    assert len(found) >= 5 and not [text for text in found if not any(re.search(text, m, re.DOTALL) for m in messages)]
