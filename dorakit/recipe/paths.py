"""Paths in a recipe: what is one, and where a relative one starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dorakit.recipe.schema import Recipe
from dorakit.recipe.tree import Node, PathKey

ROW_FILES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_path(base: str) -> bool:
    """Whether model.base names a file or directory of this machine."""
    return base.startswith(("./", "../", "/", "~")) or (base.endswith(".gguf") and not base.startswith("pkg:"))


def is_hub_id(written: str, path: Path) -> bool:
    """Whether rows as a recipe names them can only be a hub data set: nothing is at `path`, and it looks like an id."""
    if path.exists() or written.startswith((".", "/", "~")) or path.suffix.lower() in ROW_FILES:
        return False
    return bool(_HUB_ID.fullmatch(written))


def is_template_text(written: str) -> bool:
    """Whether data.chat_template is the template itself, not the name of a file that holds it."""
    return "{{" in written or "{%" in written


def with_settled_paths(recipe: Recipe, root: Node) -> Recipe:
    """Make model.base and data.root absolute, and every path of data that does not start from data.root.

    A data.root that is nowhere stated is the directory of the file that lists the sources.
    """
    base, data, evaluation = recipe.model.base, recipe.data, recipe.evaluation
    if is_path(base):
        base = _absolute(base, _directory(root, ("model", "base")))
    is_stated = root.at(("data", "root")) is not None
    data_root = _absolute(data.root, _directory(root, ("data", "root") if is_stated else ("data", "train")))

    def settled(path: PathKey, written: str | None) -> str | None:
        if is_stated or written is None or root.at(path) is None or (directory := _directory(root, path)) == data_root:
            return written
        absolute = _absolute(written, directory)
        stays = is_template_text(written) if path[-1] == "chat_template" else is_hub_id(written, Path(absolute))
        return written if stays else absolute

    train = [
        source.model_copy(update={"path": settled(("data", "train", index, "path"), source.path)})
        for index, source in enumerate(data.train)
    ]
    held_out = {"path": settled(("data", "validation", "path"), data.validation.path)}
    update = {
        "root": data_root,
        "train": train,
        "validation": data.validation.model_copy(update=held_out),
        "chat_template": settled(("data", "chat_template"), data.chat_template),
    }
    tested = {"path": settled(("evaluation", "path"), evaluation.path)}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"base": base}),
            "data": data.model_copy(update=update),
            "evaluation": evaluation.model_copy(update=tested),
        }
    )


def _directory(root: Node, path: PathKey) -> str:
    node = root.at(path)
    assert node is not None
    return os.path.abspath(node.place.directory)


def _absolute(path: str, directory: str) -> str:
    return os.path.abspath(os.path.join(directory, os.path.expanduser(path)))
