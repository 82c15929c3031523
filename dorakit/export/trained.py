"""The run or the adapter directory that an export is made from: what outputs, export.json and the model card need of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dorakit.adapters.peft_config import adapter_base, update_of
from dorakit.adapters.peft_format import adapter_mode, check_adapter
from dorakit.adapters.storage import base_storage
from dorakit.build import nf4_format
from dorakit.errors import UsageError
from dorakit.model.nf4 import NF4Format
from dorakit.place import Place, find_target
from dorakit.recipe.paths import is_path
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.terminal import typed


@dataclass(frozen=True)
class Trained:
    """What is exported.

    Attributes:
        text: Its name, as `merge` and `open_target` take it.
        path: Its directory.
        run: None for an adapter directory, of whose training nothing is known.
        recipe: The run's.
        adapter: Directory of the adapter; None in mode full.
        config: adapter_config.json; empty in mode full.
        base: The base as the recipe, the adapter or `base_model` names it.
        revision: Commit or branch of a base from the hub, else "".
        base_model: The base that was asked for instead of the one that the adapter names.
        storage: How the adapter's base was quantized in training; None where it was not, or nothing says so.
    """

    text: str
    path: Path
    run: Run | None
    recipe: Recipe | None
    adapter: Path | None
    config: dict[str, Any]
    base: str
    revision: str
    base_model: str | None
    storage: NF4Format | None

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.resolve().name if self.run is None else self.run.name

    @property
    def is_hub_base(self) -> bool:
        """Whether other programs find the base by its name."""
        return bool(self.revision)

    @property
    def served_base(self) -> str | None:
        """The base as vLLM and PEFT load it, a hub id or a directory; None for what they cannot put an adapter on."""
        if self.is_hub_base:
            return self.base
        path = Path(os.path.expanduser(self.base))
        return str(path) if path.is_dir() else None

    @property
    def mode(self) -> str:
        """The mode of the recipe, or the one that would train such an adapter."""
        if self.recipe is not None:
            return self.recipe.adapter.mode
        assert self.adapter is not None
        return adapter_mode(self.adapter)

    @property
    def shape(self) -> str:
        """Mode, rank and alpha in words."""
        if self.adapter is None:
            return f"mode {self.mode}"
        of = self.recipe.adapter if self.recipe else None
        update = update_of(self.config)
        words = [f"mode {self.mode}", f"rank {of.rank if of else self.config['r']}"]
        if update == "lora":
            words.append(f"alpha {of.alpha if of else self.config['lora_alpha']:g}")
        else:
            words.insert(1, f"update {update}")
        return ", ".join(words)

    def command(self, to: str) -> str:
        """The command that exports it in another form, as one types it."""
        base = f" --base-model {typed(self.base_model)}" if self.base_model else ""
        return f"dorakit export {typed(self.text)} --to {to}{base}{'' if self.run else ' --output DIR'}"

    def place(self, to: str, output: Path | str | None) -> Path:
        """Directory of an export: the output asked for, or the run's own for that form.

        Raises:
            UsageError: An adapter directory, which has none of its own, and no output.
        """
        if output is not None:
            return Path(os.path.expanduser(output))
        if self.run is None:
            raise UsageError(
                f"{self.text} is an adapter outside a run: say where the export goes\n  `{self.command(to)}`"
            )
        return {"peft": self.run.peft, "merged": self.run.merged, "gguf": self.run.gguf, "lora": self.run.lora}[to]


def find_trained(target: Run | Path | str, *, base_model: str | None = None) -> Trained:
    """The finished run that a target is, or lies in, or the adapter directory that it is.

    Args:
        target: A run, something in one, or a PEFT adapter directory.
        base_model: Base of an adapter directory, instead of the one that it names.

    Raises:
        UsageError: It is neither, or `base_model` goes with a run.
        RunError: Training has not finished.
        ModelError: The adapter cannot be read, or names no base.
    """
    place = find_target(str(target.path if isinstance(target, Run) else target))
    place.refuse_absent("nothing to export: ")
    if place.run is not None:
        if base_model is not None:
            raise UsageError(
                f"--base-model goes with an adapter directory, and {place.text} is a run, which knows its base"
            )
        return _of_run(place.run)
    if place.kind == "model":
        raise UsageError(f"nothing to export: {place.text} is a whole model, not a run or an adapter directory")
    return _of_adapter(place, base_model)


def _of_run(run: Run) -> Trained:
    recipe = run.recipe
    adapter = None if run.result == run.model else run.adapter
    config = {} if adapter is None else check_adapter(adapter)[0]
    # Only a base from the hub has a commit in the run's record.
    revision = str(run.read("run.json").get("base", {}).get("revision") or "")
    storage = nf4_format(recipe) if recipe.stores_nf4 else None
    return Trained(
        str(run.path),
        run.path,
        run,
        recipe,
        adapter,
        config,
        recipe.model.base,
        revision,
        base_model=None,
        storage=storage,
    )


def _of_adapter(place: Place, base_model: str | None) -> Trained:
    assert place.path is not None
    config, _ = check_adapter(place.path)
    base, revision = adapter_base(place.path, base_model)
    stored = base_storage(place.path)
    return Trained(
        place.text,
        place.path,
        run=None,
        recipe=None,
        adapter=place.path,
        config=config,
        base=base,
        revision=revision if is_hub_id(base) else "",
        base_model=base_model,
        storage=stored if isinstance(stored, NF4Format) else None,
    )


def is_hub_id(base: str) -> bool:
    """Whether a base's name is one of the hub: no path, nothing of this machine."""
    is_here = base.startswith(("pkg:", "tiny:")) or is_path(base) or Path(base).exists()
    return not is_here


def is_raw(trained: Trained, directory: Path) -> bool:
    """Whether prompts go in as they are: no row of the run's was a conversation; of an adapter, there is no template."""
    if trained.recipe is not None:
        return all(data.format != "chat" and data.prompt != "chat" for data in trained.recipe.data.train)
    if (directory / "chat_template.jinja").is_file():
        return False
    settings = directory / "tokenizer_config.json"
    return not (settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
