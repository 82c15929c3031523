"""What can be known of rows without a model: found in a second, before minutes are spent on loading one."""

from __future__ import annotations

import os
from pathlib import Path

from dorakit.data.formats import Sample, read_samples
from dorakit.data.hub import missing
from dorakit.data.sources import like_first, read_rows
from dorakit.errors import DataError
from dorakit.recipe.paths import ROW_FILES, is_hub_id, is_template_text
from dorakit.recipe.schema import Recipe, SourceSection

# A file is read a second time when the rows are encoded. Of larger ones only that they are there is looked at.
_MAX_BYTES = 256 * 1024 * 1024


def check_rows(recipe: Recipe) -> None:
    """Read the files of rows that training will read, without a tokenizer; torch stays unimported.

    What is on the hub or in a directory is left for later, and so is what `--twin` makes up.

    Raises:
        DataError: A file is absent, cannot be read, or has rows that its format cannot take.
    """
    data = recipe.data
    sources = list(data.train)
    if data.validation.path is not None:
        sources.append(like_first(data, data.validation.path, split=data.validation.split))
    for source in sources:
        _check_source(source, data.root, twin=recipe.origin.is_twin)
    if (template := data.chat_template) is not None and not is_template_text(template):
        path = Path(data.root, os.path.expanduser(template))
        if not path.is_file():
            raise DataError(f"data.chat_template: {missing(path, template)}")


def check_test_rows(recipe: Recipe, path: str | None = None) -> list[Sample]:
    """Read a file of rows that an evaluation will read: `path`, which is absolute, else evaluation.path.

    Returns:
        The rows; none where they are left for later.

    Raises:
        DataError: As `check_rows`.
    """
    section = recipe.evaluation
    if (asked := path or section.path) is None:
        return []
    source = like_first(recipe.data, asked, prompt=section.prompt)
    is_judged = section.metric != "none"
    return _check_source(source, recipe.data.root, twin=recipe.origin.is_twin, evaluation=is_judged)


def _check_source(source: SourceSection, root: str, *, twin: bool, evaluation: bool = False) -> list[Sample]:
    path = Path(root, os.path.expanduser(source.path))
    is_there = path.exists()
    if (twin and not is_there) or is_hub_id(source.path, path) or path.is_dir():
        return []
    if is_there and path.suffix.lower() in ROW_FILES and path.stat().st_size > _MAX_BYTES:
        return []
    return read_samples(read_rows(source, root)[0], source, evaluation=evaluation)
