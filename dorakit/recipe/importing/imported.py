"""`dorakit import`: another toolkit's YAML in, a recipe and a list of what was not carried over out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dorakit.errors import Problem, RecipeError, UsageError
from dorakit.recipe.importing.keys import Left
from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.importing.objectives import other_objectives
from dorakit.recipe.importing.toolkits import TOOLKITS, toolkit_of
from dorakit.recipe.importing.torchtune import without_references
from dorakit.recipe.importing.trackers import set_trackers
from dorakit.recipe.importing.written import recipe_text
from dorakit.recipe.paths import is_path
from dorakit.recipe.scalars import scalar_1_1
from dorakit.recipe.tree import Place
from dorakit.recipe.yaml_text import decode, parse


@dataclass(frozen=True)
class Imported:
    """A recipe's text, whose configuration it was, what was carried (recipe key -> where from) and what was not."""

    text: str
    toolkit: str
    carried: dict[str, str]
    left: list[Left]
    empty: list[str]


def import_recipe(file: Path | str, *, toolkit: str | None = None, directory: Path | None = None) -> Imported:
    """Turn a configuration of axolotl, LLaMA-Factory, torchtune, TRL or unsloth into a recipe.

    Args:
        file: Their YAML.
        toolkit: Whose it is; None finds out.
        directory: Where the recipe will lie. The others start relative paths from the working directory, recipes from
            their own, so data.root is set where the two differ.

    Raises:
        RecipeError: The file, or a dataset_info.json that it points to, cannot be read; or its objective is not supervised
            fine-tuning.
        UsageError: An unknown toolkit, or one that cannot be told from the keys.
    """
    name, path = os.fspath(file), Path(file)
    content = path.read_bytes()
    text, problems = decode(content, name, len(content))
    root, found = (None, problems) if problems else parse(text, Place(name), scalar_1_1)
    if found or root is None or not root.entries:
        raise RecipeError(found or [Problem("no keys in this file", name)])
    plain = root.plain()
    toolkit = toolkit or toolkit_of(plain)
    if toolkit is None:
        message = f"{name}: its keys are none of those that tell toolkits apart"
        raise UsageError(f"{message}\n  there are {', '.join(TOOLKITS)}: say which with --from")
    if toolkit not in TOOLKITS:
        raise UsageError(
            f"{name}: a configuration of {toolkit}, which is not converted\n  begin with `dorakit init`, and carry over "
            "what docs/recipes.md has a setting for"
        )
    if toolkit == "torchtune":
        plain = without_references(plain, plain)
    if found := other_objectives(toolkit, root):
        raise RecipeError(found)
    ledger = Ledger(toolkit, plain)
    TOOLKITS[toolkit](ledger, path.parent)
    set_trackers(ledger)
    _settle_paths(ledger, directory or Path())
    ledger.finish()
    ordered = {key: ledger.recipe[key] for section in _SECTIONS for key in ledger.recipe if key.startswith(section)}
    ordered |= ledger.recipe
    comments = {key: source for key, source in ledger.sources.items() if source != key.rsplit(".", 1)[-1]}
    head = [f"# Made by `dorakit import` from {path.name} ({toolkit})."]
    head += [f"#   not carried over: {one_line(item)}" for item in ledger.left]
    body = recipe_text(ordered, comments)
    return Imported("\n".join([*head, "version: 1", body]), toolkit, ledger.sources, ledger.left, ledger.empty)


def _settle_paths(ledger: Ledger, here: Path) -> None:
    """Their relative paths start from the working directory; a directory that is there goes before a hub id of its name."""
    base = str(ledger.recipe.get("model.base", ""))
    if not base or base.startswith(("/", "~", "pkg:", "tiny:")):
        pass
    elif is_path(base) or base.count("/") > 1 or Path(base).is_dir():
        ledger.recipe["model.base"] = f"./{os.path.relpath(base, here)}"
    if here.resolve() != Path().resolve():
        ledger.set("data.root", os.path.relpath(Path(), here), "the working directory, where their paths start")


def one_line(item: Left) -> str:
    """A key that was left, its value and the reason, without line breaks."""
    value = " ".join(str(item.value).split())
    return " ".join(f"{item.key}: {value if len(value) <= 60 else value[:57] + '...'} ({item.reason})".split())


_SECTIONS = (
    "model.",
    "adapter.",
    "quantization.",
    "data.",
    "training.",
    "optimizer.",
    "evaluation.",
    "logging.",
    "output_dir",
)
