"""Rules between fields, and `--twin`.

A setting that the mode never reads is an error where it stands beside the mode or above it, and a note where the mode
was set later (`--set adapter.mode=lora` on a QDoRA recipe, or a recipe that extends one).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from dorakit.errors import Problem
from dorakit.recipe.yaml_text import Node


def is_path(base: str) -> bool:
    """Whether model.base names a file or directory of this machine."""
    return base.startswith(("./", "../", "/", "~")) or (base.endswith(".gguf") and not base.startswith("pkg:"))


def broken_rules(root: Node) -> tuple[list[Problem], list[str]]:
    """Find what is wrong between fields; returns problems and notes."""
    return [], []


def twin_base(root: Node) -> tuple[str | None, list[Problem], list[str]]:
    """Work out what `--twin` puts in the place of model.base.

    Returns:
        The tiny base, or None where the base stays as it is; problems; notes.
    """
    node, architecture = root.at(("model", "base")), root.at(("model", "architecture"))
    if node is None or not isinstance(node.value, str) or node.value.startswith("tiny:"):
        return None, [], []
    if architecture is not None and isinstance(architecture.value, str):
        return f"tiny:{architecture.value}", [], []
    if is_path(node.value):
        config = node.place.directory / Path(node.value).expanduser() / "config.json"
        try:
            found = json.loads(config.read_text(encoding="utf-8"))["model_type"]
            if isinstance(found, str) and re.fullmatch(r"\w+", found):
                return f"tiny:{found}", [], []
        except (OSError, ValueError, KeyError, TypeError):
            pass
    hint = "add model.architecture, such as `architecture: llama`"
    return None, [node.place.problem(f"--twin: the architecture of {node.value!r} is not known", hint)], []
