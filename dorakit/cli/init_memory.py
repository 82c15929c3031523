"""The card that `dorakit init` writes a recipe for: asked for, known, and planned with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dorakit.errors import DorakitError
from dorakit.memory import gib
from dorakit.terminal import typed

if TYPE_CHECKING:
    from dorakit.plan.fitting import Fitted
    from dorakit.recipe.schema import Recipe
    from dorakit.recipe.written import Fit

HERE = "this machine"


def card_question() -> str:
    """The question for the card; the proposed answer is `HERE`."""
    from dorakit.plan.device import this_machine

    device = this_machine()
    name = device.name if device.is_card else "no GPU"
    return f"card to train on (its memory, as 24GB, or its name; {HERE}: {name}, {gib(device.memory)})"


def known_card(answer: str) -> str | None:
    """A card as `--gpu` takes it; None for this machine.

    Raises:
        UsageError: There is no such card.
    """
    from dorakit.plan.device import card

    if answer == HERE:
        return None
    card(answer)
    return answer


def planned(recipe: Recipe, gpu: str | None) -> tuple[Fitted | None, str]:
    """The recipe as it fits the card, and a line about its memory.

    The base's config.json is fetched only where a card is given.
    """
    from dorakit.model.source import at_hand, gguf_file
    from dorakit.plan.fitting import fitted

    base = recipe.model.base
    command = f"dorakit plan {typed(recipe.origin.path)}" + (f" --gpu {typed(gpu)}" if gpu else "")
    if gpu is None and gguf_file(base) is None and at_hand(base) is None:
        return None, f"not estimated: {base} is not here; --gpu, or `{command}`, fetches its config.json"
    try:
        found = fitted(recipe, gpu=gpu)
    except DorakitError as error:
        return None, f"not estimated: {str(error).splitlines()[0]}"
    fits = "" if found.fits else f"; it does not fit, and `{command}` says what helps"
    return found, in_words(found) + fits


def in_words(found: Fitted) -> str:
    """Peak, with what the libraries themselves take, and the device's memory in one line."""
    device = found.device
    whole, itself = gib(found.peak + device.reserve), gib(device.reserve)
    libraries = "CUDA itself" if device.is_card else "Python and torch themselves"
    there = f"{gib(device.memory)} are there ({device.name})"
    return f"about {whole} at the peak of training, {itself} of it for {libraries}; {there}"


def fit_of(found: Fitted) -> Fit:
    """The settings that a plan was made with, as a recipe's comments need them."""
    from dorakit.recipe.written import Fit

    training = found.recipe.training
    rows = min(training.micro_batch_size, training.batch_size)
    checkpointing, length = training.gradient_checkpointing, found.recipe.data.max_seq_len
    return Fit(found.device.name, in_words(found), rows, checkpointing, length)
