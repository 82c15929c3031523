"""Data sets that are not plain files: saved by datasets, or on the hub. And what to say when there is nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dorakit.cache import refuse_hub_cache
from dorakit.errors import DataError, ResourceError
from dorakit.files import nearby
from dorakit.model import hub
from dorakit.recipe.paths import ROW_FILES
from dorakit.recipe.schema import SourceSection


def load_hub(source: SourceSection, path: Path, split: str) -> list[dict[str, Any]]:
    """Download (or find in the cache) one split of a hub data set; `path` is where a file of that name would have been.

    Raises:
        DataError: No such data set, configuration or split.
        ResourceError: The hub cannot be reached, or must not be.
    """
    import datasets

    refuse_hub_cache(str(datasets.config.HF_DATASETS_CACHE))
    has_bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    reason = ""
    try:
        with hub.asked(f"the data set {source.path}") as reason:
            dataset = datasets.load_dataset(source.path, source.name, revision=source.revision, split=split)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, OSError) as error:
        raise _unreachable(source.path, path, error, reason) from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source.path}: {_first_line(error)}") from None
    finally:
        if has_bars:
            datasets.utils.logging.enable_progress_bar()
    return list(dataset.to_list())


def load_saved(directory: Path, split: str, *, is_asked: bool) -> list[dict[str, Any]]:
    """Read a directory that datasets' `save_to_disk` wrote.

    Args:
        directory: Of a DatasetDict, or of a single Dataset.
        split: What to take of a DatasetDict.
        is_asked: The recipe names the split. A single Dataset must then be of that split, if it says of which it is.

    Raises:
        DataError: Not such a directory, or it has no such split.
    """
    import datasets

    is_dict = check_saved(directory)
    try:
        loaded = datasets.load_from_disk(str(directory))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{directory} cannot be read as a data set: {_first_line(error)}") from None
    if is_dict:
        if split not in loaded:
            raise DataError(
                f"{directory} has no split {split!r}; it has {', '.join(sorted(loaded))}\n"
                "  name one of them as the split of this path"
            )
        loaded = loaded[split]
    elif is_asked and loaded.split is not None and str(loaded.split) != split:
        raise DataError(
            f"{directory} holds the split {str(loaded.split)!r} alone, and split {split!r} was asked for\n"
            "  name the directory of that split, or remove `split`"
        )
    return list(loaded.to_list())


def check_saved(directory: Path) -> bool:
    """Whether a directory that `save_to_disk` wrote is that of a DatasetDict; nothing in it is read.

    Raises:
        DataError: Not such a directory.
    """
    is_dict = (directory / "dataset_dict.json").is_file()
    if not is_dict and not (directory / "state.json").is_file():
        inside = sorted(entry.name for entry in directory.iterdir())
        files = [name for name in inside if name.endswith(ROW_FILES)]
        hint = f"\n  name a file in it: {', '.join(files[:5])}" if files else f"\n  it holds {_some(inside)}"
        raise DataError(f"{directory} is a directory, and not one that datasets' save_to_disk wrote{hint}")
    return is_dict


def missing(path: Path, written: str) -> DataError:
    """The error for a file that is not there, with what is there, and where a relative path of a recipe starts."""
    place = f"{written} (looked for {path})" if path.parent.is_dir() else str(path)
    hint = nearby(path)
    parts = Path(os.path.expanduser(written)).parts
    if parts and not os.path.isabs(parts[0]) and (start := path.parents[len(parts) - 1]).resolve() != Path.cwd():
        hint += f"\n  {written} starts from {start}: data.root, else the directory of the recipe that lists it"
    return DataError(f"no such file: {place}\n  {hint}")


def _unreachable(written: str, path: Path, error: Exception, reason: str) -> Exception:
    import datasets

    switches = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    offline = next((switch for switch in switches if os.environ.get(switch, "0") not in ("", "0")), "")
    name = f"{written} (no such file or directory: {path}; so a hub data set)"
    what_to_do = (
        "  download it where there is a network and give its path: load_dataset(...).save_to_disk(DIRECTORY),\n"
        "  or try the recipe without its data: --twin"
    )
    if offline:
        return ResourceError(
            f"{name} is not in the cache, and {offline} is set, so it is not downloaded.\n"
            f"  unset {offline} (or leave out --offline); or {what_to_do.strip()}"
        )
    refuse_hub_cache(str(datasets.config.HF_DATASETS_CACHE), to_write=True)
    if reason or isinstance(error, ConnectionError) or "reach" in str(error) or "connect" in str(error).lower():
        return ResourceError(f"{name}: the hub cannot be reached: {reason or _first_line(error)}\n{what_to_do}")
    return DataError(
        f"{name} cannot be read: {_first_line(error)}\n"
        "  a gated one needs `hf auth login` and its licence accepted on the hub; more: docs/faq.md#hub-models-and-tokens"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
