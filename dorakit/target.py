"""What eval, generate, merge and quantize are pointed at, loaded: a run, an adapter, a model directory, a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dorakit.digests import refuse_changed
from dorakit.errors import ModelError, ResourceError, RunError, UsageError
from dorakit.model.arrival import AS_STORED, Arrival
from dorakit.place import Kind, Place, find_target
from dorakit.run import Run
from dorakit.terminal import typed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dorakit.model.load import Base
    from dorakit.model.nf4 import NF4Format
    from dorakit.recipe.schema import Recipe

Onto = Literal["trained", "original"]


@dataclass
class Target:
    """A loaded target.

    Attributes:
        variant: What is measured: adapter, full, base, merged, quantized or model.
        adapter: Directory of the adapter that is attached, None where none is.
        base: The base as the recipe or the adapter names it; for a model, the model.
        notes: Lines to print.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe | None
    run: Run | None
    kind: Kind
    name: str
    variant: str
    base: str
    adapter: Path | None = None
    notes: list[str] = field(default_factory=list)


def open_target(
    text: str,
    *,
    recipe: Recipe | None = None,
    base_only: bool = False,
    onto: Onto = "trained",
    base_model: str | None = None,
    as_stored: bool = False,
    accept_changes: Sequence[str] = (),
    scratch: Path | None = None,
) -> Target:
    """Load what the text names, in eval mode; an adapter is attached live.

    Args:
        text: A run, an adapter directory as PEFT or dorakit wrote it, a model directory, or a base as in `model.base`.
        recipe: Where rows and settings come from, instead of the run's own. The base of a run is always what it was
            trained on; only model.dtype and model.attention of the recipe count.
        base_only: Load the base without the adapter; for a run in mode full, the base that it started from.
        onto: Attach the adapter to the base that it was trained on, or to the unquantized weights. An adapter directory
            of PEFT's own does not say what it was trained on: NF4 if `recipe` says so, else unquantized weights.
        base_model: Base of an adapter directory, instead of the one that it names.
        as_stored: Load what belongs to no run in the dtype of its files, instead of the one that this machine computes
            in.
        accept_changes: Files of what is loaded that may have changed since they were written, each DIRECTORY/FILE.
        scratch: Where the packed weights of an adapter's base lie meanwhile; see model/arrival.py.

    Raises:
        ModelError: It cannot be loaded.
        RunError: The run has no result yet, there is no such run, or its files, or the base's, changed since training.
        UsageError: `base_only` of a model without an adapter, `base_model` of something that is no adapter directory.
    """
    place, arrival = find_target(text), Arrival(scratch=scratch)
    if base_model is not None and place.kind != "adapter":
        raise UsageError(f"--base-model goes with an adapter directory, and {text} is a {place.kind}")
    if recipe is None and place.run is not None:
        recipe = place.run.recipe
    if place.kind == "run":
        assert place.run is not None and recipe is not None
        own = _as_trained(place.run, recipe)
        target = _open_run(place.run, own, arrival, base_only=base_only, onto=onto, accept_changes=accept_changes)
        target.recipe = recipe
    elif place.kind == "adapter":
        target = _open_adapter(
            place,
            recipe,
            arrival,
            base_only=base_only,
            onto=onto,
            base_model=base_model,
            as_stored=as_stored,
            accept_changes=accept_changes,
        )
    else:
        target = _open_model(place, recipe, base_only=base_only, as_stored=as_stored, accept_changes=accept_changes)
    target.model.eval()
    target.model.requires_grad_(False)
    return target


def _as_trained(run: Run, recipe: Recipe) -> Recipe:
    own = run.recipe
    model = own.model.model_copy(update={"dtype": recipe.model.dtype, "attention": recipe.model.attention})
    return own.model_copy(update={"model": model})


def check_base(run: Run, identity: dict[str, str]) -> None:
    """Refuse a base whose files are not those that the run was trained on.

    Raises:
        RunError: With the digests of both.
    """
    before = run.read("run.json").get("base", {}).get("files")
    if before is not None and before != identity:
        changed = sorted(name for name in before.keys() | identity.keys() if before.get(name) != identity.get(name))
        seen = [f"{name} ({_digest(before, name)} in training, {_digest(identity, name)} now)" for name in changed]
        raise RunError(
            f"the base of {run.path} changed since training: {', '.join(seen[:5])}\n"
            "  put the former files back; an adapter fits only the base that it was trained on"
        )


def _digest(files: dict[str, str], name: str) -> str:
    return f"sha256 {files[name][:12]}" if name in files else "not there"


def _open_run(
    run: Run, recipe: Recipe, arrival: Arrival, *, base_only: bool, onto: Onto, accept_changes: Sequence[str]
) -> Target:
    from dorakit.adapters.initial import taken_out
    from dorakit.adapters.initial_format import initial_of
    from dorakit.adapters.peft_format import check_adapter, load_adapter
    from dorakit.build import build_base

    result = run.result
    common = {"recipe": recipe, "run": run, "name": run.name, "base": recipe.model.base}
    if result == run.model and not base_only:
        base = _load(str(result), "main", recipe, AS_STORED)
        notes = [*refuse_changed({result: base.identity}, accept_changes), *base.notes]
        return Target(base.model, base.tokenizer, kind="run", variant="full", notes=notes, **common)  # type: ignore[arg-type]
    if not base_only:
        check_adapter(result)  # from its header, before minutes go into the base
    accepted = refuse_changed({} if base_only else {result: {}}, accept_changes)
    initial = None if base_only else initial_of(result)
    base = build_base(recipe, original=onto == "original", arrival=taken_out(arrival, initial))
    check_base(run, base.identity)
    notes = [*accepted, *base.notes]
    if not base_only:
        load_adapter(base.model, result, initial=initial)
        notes = [*notes, *_idle(base, result)]
    return Target(
        base.model,
        base.tokenizer,
        kind="run",
        variant="base" if base_only else "adapter",
        adapter=None if base_only else result,
        notes=notes,
        **common,  # type: ignore[arg-type]
    )


def _open_adapter(
    place: Place,
    recipe: Recipe | None,
    arrival: Arrival,
    *,
    base_only: bool,
    onto: Onto,
    base_model: str | None,
    as_stored: bool,
    accept_changes: Sequence[str],
) -> Target:
    from dorakit.adapters.initial import taken_out
    from dorakit.adapters.initial_format import initial_of
    from dorakit.adapters.peft_config import adapter_base
    from dorakit.adapters.peft_format import check_adapter, load_adapter

    assert place.path is not None
    name, revision = adapter_base(place.path, base_model)
    if not base_only:
        check_adapter(place.path)
    accepted = refuse_changed({} if base_only else {place.path: {}}, accept_changes)
    form, notes = (None, []) if onto == "original" else _storage(place.path, recipe)
    initial = None if base_only else initial_of(place.path)
    arrival = taken_out(replace(arrival, nf4=form), initial)
    base = _load(name, revision, recipe, arrival, as_stored=as_stored)
    if not base_only:
        _fit_vocabulary_(base, place.path)
        load_adapter(base.model, place.path, initial=initial)
        notes = [*notes, *_idle(base, place.path)]
    return Target(
        base.model,
        base.tokenizer,
        recipe=recipe,
        run=None,
        kind="adapter",
        name=place.path.resolve().name,
        variant="base" if base_only else "adapter",
        base=name,
        adapter=None if base_only else place.path,
        notes=[*accepted, *notes, *base.notes],
    )


def _storage(directory: Path, recipe: Recipe | None) -> tuple[NF4Format | None, list[str]]:
    """How to store an adapter's base, None for as it is; and what to say where that is a guess."""
    from dorakit.adapters.storage import STORAGE, base_storage
    from dorakit.build import nf4_format

    stored = base_storage(directory)
    if stored is not None:
        return (None if stored == "unquantized" else stored), []
    silence = f"{directory} has no {STORAGE}, so nothing says how the base was stored in training"
    if recipe is not None and recipe.stores_nf4:
        return nf4_format(recipe), [f"{silence}: NF4, as in the recipe, is taken"]
    return None, [f"{silence}: its weights are taken as they are"]


def _idle(base: Base, directory: Path) -> list[str]:
    """What to say of an adapter that does nothing."""
    from dorakit.adapters.attach import changes_nothing

    if not changes_nothing(base.model):
        return []
    return [f"{directory}: every lora_B is zero, so this adapter changes nothing; was it saved before training?"]


def _fit_vocabulary_(base: Base, directory: Path) -> None:
    """Take the tokenizer that was saved with an adapter, and give the embedding as many rows as the adapter's has."""
    from dorakit.adapters.peft_format import check_adapter
    from dorakit.model.load import pad_, saved_tokenizer

    if (tokenizer := saved_tokenizer(directory)) is not None:
        pad_(tokenizer)
        base.tokenizer = tokenizer
    embedding = base.model.get_input_embeddings()
    name = next(name for name, module in base.model.named_modules() if module is embedding)
    _, stored = check_adapter(directory)
    own = stored.get(f"base_model.model.{name}.weight")
    rows = own.shape[0] if own is not None and len(own.shape) == 2 else len(embedding.weight)
    if rows != len(embedding.weight):
        base.model.resize_token_embeddings(rows, mean_resizing=False)


def _open_model(
    place: Place, recipe: Recipe | None, *, base_only: bool, as_stored: bool, accept_changes: Sequence[str]
) -> Target:
    if base_only:
        hint = f"\n  the base of its run: {typed(place.run.path)} --base" if place.run else ""
        raise UsageError(f"--base: {place.text} is a whole model, with no adapter to switch off{hint}")
    try:
        base = _load(place.text, "main", recipe, AS_STORED, as_stored=as_stored)
    except (ModelError, ResourceError) as error:
        if not place.is_absent:
            raise
        raise type(error)(f"no such run or directory: {place.text}; and as a hub id: {error}") from error
    # What the hub holds is known by its commit.
    read = {} if place.path is None else {place.path: base.identity}
    accepted = refuse_changed(read, accept_changes)
    variant = "model"
    if place.path is not None and place.run is not None:
        own = {place.run.merged.resolve(): "merged", place.run.quantized.resolve(): "quantized"}
        variant = own.get(place.path.resolve(), "model")
    return Target(
        base.model,
        base.tokenizer,
        recipe=recipe,
        run=place.run,
        kind="model",
        name=place.text if place.path is None else place.path.resolve().name,
        variant=variant,
        base=place.text,
        notes=[*accepted, *base.notes],
    )


def _load(name: str, revision: str, recipe: Recipe | None, arrival: Arrival, *, as_stored: bool = False) -> Base:
    """Load a base in the precision of the recipe, where there is one."""
    from dorakit.model.load import load_base
    from dorakit.model.source import stored_dtype

    if recipe is None:
        dtype = stored_dtype(name, revision) if as_stored else "auto"
        return load_base(name, revision=revision, dtype=dtype, arrival=arrival)
    model = recipe.model
    return load_base(name, revision=revision, dtype=model.dtype, attention=model.attention, arrival=arrival)
