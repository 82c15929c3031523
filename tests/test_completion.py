"""What the shell is offered, through the protocol that the shells speak."""

import os
import subprocess
import sys

import pytest

from dorakit.cli import completion

_ENTRY = """
import atexit, sys
sys.argv = ["dorakit", *sys.argv[1:]]
atexit.register(lambda: print([m for m in ("torch", "transformers", "datasets") if m in sys.modules], file=sys.stderr))
from dorakit.cli.app import main
main()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with recipes, and with runs, one of them in a comparison; and names that a shell would read as its own."""
    for name in ("recipes/quick.yaml", "recipes/smoke/lora.yaml", "my.yaml", "$(touch owned).yaml", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for name in ("a", "compared/b", "$(touch owned)"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs" / "latest").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(**variables):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **variables}
    return subprocess.run(
        [sys.executable, "-c", _ENTRY], env=environment, capture_output=True, text=True, check=True, timeout=120
    )


def test_bash_is_offered_keys_and_torch_stays_away(here):
    """Planted bugs caught: a completion that imports what trains; completion switched off in the app."""
    line = "dorakit train my.yaml --set adapter.ran"
    result = asked(_DORAKIT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="4")
    assert result.stdout.split() == ["adapter.rank=", "adapter.rank_pattern="]
    assert result.stderr.strip() == "[]"


def test_zsh_is_offered_runs_and_nothing_that_it_would_run(here):
    """Planted bug caught: names of files handed to zsh, which evaluates what it gets."""
    result = asked(_DORAKIT_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="dorakit chat ")
    assert result.stdout.strip() == """_arguments '*: :(("runs/a"\n"runs/compared/b"\n"runs/latest"))'"""
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("offer", "begun", "expected"),
    [
        (completion.recipes, "", ["my.yaml", "recipes/quick.yaml", "recipes/smoke/lora.yaml"]),
        (completion.recipes, "recipes/s", ["recipes/smoke/lora.yaml"]),
        (completion.runs, "runs/c", ["runs/compared/b"]),
        (completion.modes, "lora,q", ["lora,qlora", "lora,qdora"]),
        (completion.modes, "full,lora,d", ["full,lora,dora"]),
        (completion.settings, "adapter.mode=q", ["adapter.mode=qlora", "adapter.mode=qdora"]),
        (completion.settings, "adapter.rs", ["adapter.rslora=true", "adapter.rslora=false"]),
        (completion.settings, "adapter.rank", ["adapter.rank=", "adapter.rank=16"]),
        (completion.settings, "nothing", []),
    ],
)
def test_what_is_offered(here, offer, begun, expected):
    """Planted bugs caught: a mode twice; a key without its section; a value for the key before it."""
    offered = offer(begun)
    assert [item if isinstance(item, str) else item[0] for item in offered] == expected


def test_each_key_that_is_offered_can_be_set():
    """Planted bug caught: a section offered as if it were a value."""
    from dorakit.recipe.fields import section_at, type_at

    keys = [tuple(text.removesuffix("=").split(".")) for text, _ in completion.settings("")]
    assert len(keys) > 60
    assert all(type_at(key) is not None and section_at(key) is None for key in keys)
