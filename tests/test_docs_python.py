"""Every Python example in docs/ runs as printed, and every public name has its place in docs/python.md."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dorakit
from dorakit.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
# test_tour.py runs this one, with the commands between which its example stands.
ELSEWHERE = {"tour.md"}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory of the examples: empty but for the files that docs/python.md prints."""
    monkeypatch.chdir(tmp_path)
    for text in blocks("python.md", "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", text)[1]
        Path(name).write_text(text, encoding="utf-8")
    exec(blocks("python.md", "python")[0], {})
    return tmp_path


def test_the_pages_that_have_examples():
    """Dies if the examples are no longer found, so that nothing would be run."""
    assert {"python.md", "plan.md"} <= set(WITH_PYTHON)
    assert len(blocks("python.md", "python")) >= 10


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in ELSEWHERE])
def test_the_examples_run_as_printed(page, here):
    """Dies if one needs a name that it does not import, or a file that no example before it leaves."""
    script = "\n".join(f"exec({text!r}, {{'__name__': '__main__'}})" for text in blocks(page, "python"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for text in blocks(page, "python"):
        for expected in re.findall(r"print\(.*\)  # ([^,\n]+)$", text, re.MULTILINE):
            assert expected in done.stdout.splitlines(), (expected, done.stdout)


def test_every_public_name_is_on_the_page():
    """Dies if a name that becomes public is not described, with an example that uses it."""
    page = PAGES["python.md"]
    examples = "\n".join(blocks("python.md", "python"))
    for name in dorakit.__all__:
        assert f"`{name}`" in page, f"docs/python.md does not name {name}"
        assert re.search(rf"\b{name}\b(?!`)", examples), f"docs/python.md has no example of {name}"
        anchor = re.search(rf"\[`{name}`\]\(#([\w-]+)\)", page)[1]
        headings = [
            re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-")
            for line in re.findall(r"^## (.+)$", page, re.M)
        ]
        assert anchor in headings, anchor


@pytest.mark.slow
def test_the_commands_of_the_plan_run_as_printed(here):
    """With the recipes of this repository, and a file of the sizes of Llama 3 8B where the page has it downloaded."""
    (here / "recipes").symlink_to(ROOT / "recipes")
    (here / "Llama-3-8B").mkdir()
    (here / "Llama-3-8B" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    commands = re.findall(r"^    dorakit (plan .+)$", PAGES["plan.md"], re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        arguments = [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', command)]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0 and "fits: " in result.output, result.output
