"""A first look at the files that a recipe names: whether they are here, and whether their first rows fit.

For `dorakit validate`: no torch, and milliseconds. Training reads every row before it loads a base (precheck.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dorakit.data.formats import Sample, read_samples
from dorakit.data.hub import check_saved, missing
from dorakit.data.sources import like_first, read_file, selected
from dorakit.errors import DataError, ModelError, Problem
from dorakit.files import nearby
from dorakit.model.directory import check_model_directory
from dorakit.model.gguf_check import check_gguf
from dorakit.model.packages import inside_package, is_installed, near_name
from dorakit.recipe.paths import is_hub_id, is_path, is_template_text
from dorakit.recipe.schema import Recipe, SourceSection
from dorakit.recipe.where import problem_at

MOST_ROWS, MOST_BYTES = 1000, 8 << 20  # of each file


@dataclass
class Look:
    """The findings of `look`.

    `problems` have their place in the recipe, `absent` are paths at which nothing is, and `notes` are lines to print.
    `trained` and `asked` are the rows that were read of data.train, and of what an evaluation judges.
    """

    problems: list[Problem] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trained: list[Sample] = field(default_factory=list)
    asked: list[Sample] = field(default_factory=list)


def look(recipe: Recipe) -> Look:
    """Look at the base, the rows and the chat template of a recipe, as far as they are files of this machine.

    At most 1,000 rows of a file are read, from at most 8 MiB. With `--twin`, rows may be absent.
    """
    found = Look()
    with _reporting(recipe, "model.base", found):
        _look_at_base(recipe.model.base, found)
    for key, source, evaluation in _sources(recipe):
        with _reporting(recipe, key, found):
            _look_at_rows(recipe, source, found, evaluation=evaluation)
    template = recipe.data.chat_template
    if template is not None and not is_template_text(template):
        with _reporting(recipe, "data.chat_template", found):
            path = Path(recipe.data.root, os.path.expanduser(template))
            if not path.is_file():
                found.absent.append(str(path))
                raise missing(path, template)
    found.problems = list(dict.fromkeys(found.problems))  # several sources may lack one directory
    found.notes = list(dict.fromkeys(found.notes))
    return found


@contextlib.contextmanager
def _reporting(recipe: Recipe, key: str, found: Look) -> Iterator[None]:
    """Make an error within the block a problem at a key of the recipe."""
    try:
        yield
    except (DataError, ModelError) as error:
        message, *hint = str(error).splitlines()
        found.problems.append(problem_at(recipe, key, message, " ".join(line.strip() for line in hint)))
    except OSError as error:  # a directory that may not be searched
        found.problems.append(problem_at(recipe, key, f"{error.filename} cannot be looked at: {error.strerror}"))


def _sources(recipe: Recipe) -> Iterator[tuple[str, SourceSection, bool]]:
    """Each source of rows with its key, and whether an evaluation judges answers to them."""
    data, tested = recipe.data, recipe.evaluation
    for index, source in enumerate(data.train):
        yield f"data.train.{index}.path", source, False
    if data.validation.path is not None:
        yield "data.validation.path", like_first(data, data.validation.path, split=data.validation.split), False
    if tested.path is not None:
        source = like_first(data, tested.path, prompt=tested.prompt, offset=tested.offset, limit=tested.limit)
        yield "evaluation.path", source, tested.metric != "none"


def _look_at_base(base: str, found: Look) -> None:
    if base.startswith("tiny:"):
        return
    path = Path(os.path.expanduser(base))
    if base.startswith("pkg:"):
        if not is_installed(base) and near_name(base) is None:
            found.notes.append(f"not here, not checked: {base} (its package is not installed)")
            return
        path = inside_package(base)
    elif not path.exists():
        if is_path(base):
            found.absent.append(str(path))
            kind = "file" if path.suffix == ".gguf" else "model directory"
            raise ModelError(f"no such {kind}: {path}\n  {nearby(path)}")
        found.notes.append(f"not checked: {base} (a model of the hub)")
        return
    if path.is_dir():
        check_model_directory(path)
    else:
        check_gguf(path)


def _look_at_rows(recipe: Recipe, source: SourceSection, found: Look, *, evaluation: bool) -> None:
    path = Path(recipe.data.root, os.path.expanduser(source.path))
    if is_hub_id(source.path, path):
        found.notes.append(f"not checked: {source.path} (a data set of the hub)")
    elif not path.exists():
        found.absent.append(str(path))
        if recipe.origin.is_twin:
            found.notes.append(f"not here: {path} (--twin makes rows in its place)")
        elif not (root := Path(recipe.data.root)).is_dir() and path.is_relative_to(root):
            with _reporting(recipe, "data.root", found):
                raise DataError(f"data.root: no such directory: {root}\n  {nearby(root)}")
        else:
            raise missing(path, source.path)
    elif path.is_dir():
        check_saved(path)
        found.notes.append(f"not checked: the rows in {source.path} (a saved data set)")
    else:
        file = read_file(path, source.path, most_rows=source.offset + MOST_ROWS, most_bytes=MOST_BYTES)
        found.notes += file.notes
        rows = selected(file.rows, source) if file.is_whole else file.rows[source.offset :][: source.limit]
        samples = read_samples(rows, source, evaluation=evaluation, is_whole=file.is_whole)
        (found.asked if evaluation else found.trained).extend(samples)
