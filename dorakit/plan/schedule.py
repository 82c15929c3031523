"""Steps and tokens of a training, from its rows where they can be read here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dorakit.data.batches import documents_of_step
from dorakit.data.sources import num_copies, read_rows
from dorakit.data.tokens import choose_held_out, encode
from dorakit.errors import ModelError
from dorakit.model.load import local_tokenizer
from dorakit.recipe.schema import Recipe
from dorakit.training.prepare import total_steps

# Bytes of row files that are read to count them, and that are tokenised: seconds of either.
_COUNTED = 256 << 20
_TOKENISED = 16 << 20


@dataclass(frozen=True)
class Schedule:
    """Of the whole training; None is what cannot be known here.

    `tokens` are without padding, over all epochs. `is_bound`: documents, steps and tokens may be fewer, since the rows were
    counted and not tokenised, so that each is taken to have max_seq_len tokens. `longest` is the tokens of the longest
    document. `remark` says what was not looked at, and why.
    """

    documents: int | None = None
    steps: int | None = None
    tokens: int | None = None
    is_bound: bool = True
    longest: int | None = None
    remark: str = ""


def schedule(recipe: Recipe) -> Schedule:
    """Tokenise a recipe's rows as its training will, or count them, or say why not.

    They are tokenised where the files are small and the base's tokenizer is here. No hub is asked.

    Raises:
        DataError: Rows that training would refuse too.
    """
    paths = {source.path: Path(recipe.data.root, os.path.expanduser(source.path)) for source in recipe.data.train}
    absent = [written for written, path in paths.items() if not path.exists()]
    if absent and not recipe.origin.is_twin:  # which makes rows in their place
        return Schedule(steps=recipe.training.max_steps, remark=f"{absent[0]} is not here: its rows are not counted")
    size = sum(map(_size, paths.values()))
    if size > _COUNTED:
        return Schedule(steps=recipe.training.max_steps, remark=f"{size:,} bytes of rows are not counted")
    if size > _TOKENISED:
        return _counted(recipe, f"{size:,} bytes of rows are not tokenised")
    try:
        tokenizer = local_tokenizer(recipe.model.base, revision=recipe.model.revision)
    except ModelError as error:
        return _counted(recipe, str(error).splitlines()[0])
    if tokenizer is None:
        return _counted(recipe, f"the tokenizer of {recipe.model.base} is not here")
    documents = encode(recipe.data, tokenizer, seed=recipe.training.seed, twin=recipe.origin.is_twin).train
    lengths = np.array([len(document) for document in documents])
    return _of_lengths(recipe, lengths, Schedule(is_bound=False, longest=int(lengths.max())))


def _counted(recipe: Recipe, remark: str) -> Schedule:
    """Rows as often as each is trained on, held-out ones left out, each at its longest."""
    data, seed = recipe.data, recipe.training.seed
    copies = [
        num_copies(len(read_rows(source, data.root, seed=seed, twin=recipe.origin.is_twin)[0]), source.weight, seed, i)
        for i, source in enumerate(data.train)
    ]
    # Rows that no copy is taken of are not held out either.
    taken = np.concatenate([each[each > 0] for each in copies])
    held_out, _ = choose_held_out(data, len(taken), seed, twin=recipe.origin.is_twin)
    taken[list(held_out)] = 0
    lengths = np.full(int(taken.sum()), data.max_seq_len)
    return _of_lengths(recipe, lengths, Schedule(remark=remark))


def _of_lengths(recipe: Recipe, lengths: npt.NDArray[np.int64], known: Schedule) -> Schedule:
    training = recipe.training
    steps = total_steps(recipe, len(lengths))
    tokens = sum(
        int(lengths[documents_of_step(len(lengths), training.batch_size, training.seed, step)].sum())
        for step in range(steps)
    )
    return Schedule(len(lengths), steps, tokens, known.is_bound, known.longest, known.remark)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
