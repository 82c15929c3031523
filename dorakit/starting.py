"""Turn a recipe into a start that changes the base: its modules, their ranks and scalings, and the decomposition."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dorakit.adapters.attach import generator_of, target_names
from dorakit.adapters.initial import Initial, read_initial, refusal_of_stored
from dorakit.adapters.layer import scaling_of
from dorakit.digests import sha256
from dorakit.errors import ModelError, RunError
from dorakit.methods import STARTS
from dorakit.model.configs import read_object
from dorakit.model.linear import sizes
from dorakit.model.load import BaseFiles
from dorakit.model.names import pattern_value
from dorakit.model.prequantized import is_nf4
from dorakit.model.tasks import CAUSAL_LM
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.terminal import typed


def new_initial(recipe: Recipe, found: BaseFiles) -> Initial | None:
    """Prepare the recipe's start; None if it leaves the base as it is.

    Raises:
        ModelError: The base is stored in 4 bits already, or a rank is above a side of its matrix.
    """
    adapter = recipe.adapter
    if recipe.trains_whole or adapter.start == "kaiming":
        return None
    with torch.device("meta"):
        model: PreTrainedModel = CAUSAL_LM.auto.from_config(found.config, trust_remote_code=False)
    names = target_names(model, adapter.target_modules)
    if is_nf4(read_object(found.source.directory / "config.json")):
        raise refusal_of_stored(adapter.start, names[0])
    ranks = {name: pattern_value(name, adapter.rank_pattern, adapter.rank) for name in names}
    for name, rank in ranks.items():
        if rank > min(sides := sizes(model.get_submodule(name))):
            raise ModelError(
                f"adapter.start {adapter.start}: {name} is {sides[0]} x {sides[1]} and has no {rank} directions\n"
                f"  lower adapter.rank, or give it a rank of its own in adapter.rank_pattern, at most {min(sides)}"
            )
    scalings = {
        name: scaling_of(rank, pattern_value(name, adapter.alpha_pattern, adapter.alpha), rslora=adapter.rslora)
        for name, rank in ranks.items()
    }
    decompose = partial(STARTS[adapter.start].load(), **adapter.start_settings)

    def pair_of(name: str, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        generator = generator_of(recipe.training.seed, name)
        a_RI, b_OR = decompose(weight_OI, ranks[name], scalings[name], generator)
        return a_RI, b_OR

    return Initial(adapter.start, scalings, pair_of)


def saved_initial(run: Run) -> Initial | None:
    """Read the start of a run; None if it left the base as it was, or the run stopped before it was saved.

    Raises:
        RunError: The file is not the one that the run wrote.
        ModelError: It is missing or damaged.
    """
    written = run.read("run.json").get("initial")
    if written is None:
        return None
    found = read_initial(run.path)
    if (now := sha256(run.initial)) != written:
        raise RunError(
            f"{run.initial} changed since training began (sha256 {written:.12} then, {now:.12} now)\n"
            f"  put it back: the base of {typed(run.path)} cannot be made without it"
        )
    return found


def keep_initial(run: Run) -> None:
    """Record the digest of the run's initial.safetensors, if it has one."""
    if run.initial.is_file():
        run.update(initial=sha256(run.initial))
