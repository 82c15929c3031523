"""Where the result of an evaluation goes, and its predictions beside it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dorakit.errors import UsageError
from dorakit.files import refuse_link

# Facts of a measurement that a person cannot read: `settings` as a whole, and a digest.
_UNNAMED = ("settings", "rows")


def output_file(output: Path | str | None) -> Path | None:
    """Where `--output` goes, refused before anything is measured if nothing can be written there.

    Raises:
        UsageError: It is no .json file, a link, a file that is no earlier result, a directory, or below a file.
    """
    if output is None:
        return None
    path = Path(os.path.expanduser(output))
    if path.suffix != ".json":
        raise UsageError(
            f"--output {output}: name a .json file; the predictions go into a .predictions.jsonl file beside it"
        )
    if path.is_dir():
        raise UsageError(f"--output {output}: that is a directory; name a file in it: {path / 'result.json'}")
    refuse_link(path, UsageError)
    if path.is_file() and not _is_result(path):  # the test rows, say
        raise UsageError(
            f"--output {output}: that file was not made by `dorakit eval`; give another, or remove it first"
        )
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir():
        raise UsageError(
            f"--output {output}: {above} is a file, so nothing can be written below it; name another place"
        )
    return path


def _is_result(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"target", "variant"} <= content.keys()


def free_name(directory: Path, names: Iterable[str], same: dict[str, Any]) -> Path:
    """The first of the names, then the last of them with a number, that is free or the result of the same thing.

    `same` are fields of the result with the values that say so.
    """
    tried = list(names)
    numbered = (f"{tried[-1]}-{number}" for number in itertools.count(2))
    files = (directory / f"{stem}.json" for stem in itertools.chain(tried, numbered))
    return next(file for file in files if not file.exists() or _has(file, same))


def place_of(directory: Path, variant: str, data: str, measured: dict[str, Any]) -> tuple[Path, list[str]]:
    """VARIANT-DATA.json, or a longer name where that holds another measurement; and a line that says so.

    Args:
        directory: RUN/eval.
        variant: Of the model: adapter, base, merged ...
        data: Name of the rows.
        measured: `data_path`, `data_split` and `settings` of the result: one that has the same is replaced.
    """
    path = measured["data_path"]
    first = directory / f"{variant}-{Path(data).stem}.json"
    stems = [first.stem]
    if path is not None and first.exists() and not _has(first, {"data_path": path}):
        stems.append("-".join(filter(None, (variant, Path(path).parent.name, Path(data).stem))))
    found = free_name(directory, stems, measured)
    if found == first:
        return found, []
    return found, [
        f"{first.name} holds another measurement ({_differences(first, measured)}): this one is {found.name}"
    ]


def _differences(file: Path, measured: dict[str, Any]) -> str:
    """Differences between a result on disk and the one measured now, in words."""
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        then, now = ({**one, **one["settings"]} for one in (there, measured))
        named = [
            f"{key} {_told(then[key])} there, {_told(now[key])} here"
            for key in now
            if key not in _UNNAMED and then[key] != now[key]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return "of another dorakit, or no result"
    return "; ".join(named) or "other rows"


def _told(value: Any) -> Any:
    return "none" if value is None else value


def losses_beside(path: Path) -> Path:
    """Where the loss of each row of a result goes."""
    return path.with_suffix(".losses.jsonl")


def beside(path: Path, name: str = "") -> Path:
    """Where the predictions of a result go; of several, those of one `name`."""
    return path.with_suffix(f".{name}.predictions.jsonl" if name else ".predictions.jsonl")


def _has(file: Path, fields: dict[str, Any]) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return all(content[field] == value for field, value in fields.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False  # of a version that did not tell, or no result at all
