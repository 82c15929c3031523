"""Where a result goes: what may be replaced there, refused before any work, and the staging directory that becomes it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from dorakit.adapters.peft_config import adapter_base
from dorakit.digests import EXPORTED, MERGED, QUANTIZED, listed_files, sha256
from dorakit.errors import ResourceError, UsageError
from dorakit.export.receipt import read_receipt
from dorakit.files import put_back, refuse_link, whole_directory
from dorakit.lock import working_directory
from dorakit.place import Place
from dorakit.recipe.paths import is_template_text
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.terminal import typed

# What a card and its receipt are called in every export.
CARD = "README.md"
_WEIGHTS = (".safetensors", ".gguf")
_SHOWN = 6


def sources_of(place: Place, recipe: Recipe | None = None, base_model: str | None = None) -> list[Path]:
    """What is read for a result and lies on this machine: the target, its run, the base, the rows."""
    recipe = place.run.recipe if place.run is not None and recipe is None else recipe
    named = [place.text]
    if recipe is not None:
        data = recipe.data
        rows = [*(source.path for source in data.train), data.validation.path, recipe.evaluation.path]
        if data.chat_template is not None and not is_template_text(data.chat_template):
            rows.append(data.chat_template)
        named += [recipe.model.base, *(os.path.join(data.root, os.path.expanduser(name)) for name in rows if name)]
    if place.kind == "adapter" and place.path is not None:
        named.append(adapter_base(place.path, base_model)[0])
    found = [Path(os.path.expanduser(name)) for name in named]
    return [*([place.run.path] if place.run else []), *(path for path in found if path.exists())]


def check_output(directory: Path, form: str, sources: Iterable[Path], *, own: Path | None = None) -> None:
    """Refuse an output that would cost something that is not an earlier result of the same form.

    First restores a directory whose replacement was interrupted.

    Args:
        directory: Where the result is to go.
        form: merged, quantized, peft, gguf or lora.
        sources: What is read for the result.
        own: The run's own directory for this form, which may lie in the run.

    Raises:
        UsageError: The directory is a link or a file; it is, holds or lies in something of `sources`; or it holds what no
            earlier result of this form wrote.
    """
    refuse_link(directory, UsageError)
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; --output names a directory")
    put_back(directory.parent, only=directory.name)
    is_own = own is not None and directory.resolve() == own.resolve()
    for source in sources:
        if _holds(directory, source):
            which = "" if _holds(source, directory) else f"holds {source}, which "
            raise UsageError(f"{directory} {which}is what the result is made from; --output must be another directory")
        if not is_own and _holds(source, directory):
            raise UsageError(
                f"{directory} lies in {source}, which is what the result is made from; --output must be elsewhere"
            )
    if strange := _strange(directory, form):
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        owned = owned_files(directory, form)
        # Only the receipt itself: a result of a version that listed no files.
        why = (
            "has a receipt that lists no files"
            if owned and not any(owned.values())
            else "was not made by this command alone"
        )
        raise UsageError(
            f"{directory} {why}: it holds {', '.join(list(strange.values())[:_SHOWN])}{more}\n"
            f"  give another --output, or move what is to be kept, then: rm -r {typed(directory)}"
        )


def check_card(directory: Path, form: str) -> None:
    """Refuse to write a card into a result that has one of somebody else's.

    Raises:
        UsageError: It has.
    """
    if kept := [name for name in _strange(directory, form) if name in (CARD, EXPORTED)]:
        raise UsageError(
            f"{directory / kept[0]} was not made by this command, or changed since\n  move it, or give another --output"
        )


def owned_files(directory: Path, form: str) -> dict[str, str]:
    """The files of a result by its receipts of this form, with their sha256; of a receipt itself it is ""."""
    names = {"merged": (MERGED, EXPORTED), "quantized": (QUANTIZED,)}.get(form, (EXPORTED,))
    owned: dict[str, str] = {}
    for name in names:
        if not (directory / name).is_file():
            continue
        if name == EXPORTED and read_receipt(directory, name).get("to") != form:
            continue
        owned |= {**listed_files(directory / name), name: ""}
    return owned


def check_space(directory: Path, needed: int) -> None:
    """Make sure that `needed` bytes fit on the disk that will hold `directory`.

    Raises:
        ResourceError: They do not.
    """
    place = next(parent for parent in (directory.absolute(), *directory.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"{directory} needs {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free\n"
            "  give an --output on another disk"
        )


@contextlib.contextmanager
def staged(run: Run | None, output: Path) -> Iterator[tuple[Path, Path]]:
    """Give a staging directory that becomes `output`, and a scratch directory for logits and packed weights.

    The run's lock is held where the output is one of its own. Both directories lie in one beside the output, on its disk,
    which the next one to the same output clears if this process is killed.
    """
    with locked(run, output), working_directory(output) as work, whole_directory(output, work=work) as staging:
        scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=work))  # whatever the output is called
        yield staging, scratch


@contextlib.contextmanager
def locked(run: Run | None, output: Path) -> Iterator[None]:
    """Hold the run's lock while something is written into it; nothing for an output elsewhere."""
    if run is not None and output.parent.resolve() == run.path.resolve():
        with run.writing():
            yield
    else:
        yield


def _strange(directory: Path, form: str) -> dict[str, str]:
    """Files that this form did not write, and texts edited since, each with the words for a message.

    Weights are not hashed: nobody writes them by hand, and damaged ones may be replaced.
    """
    if not directory.is_dir():
        return {}
    owned = owned_files(directory, form)
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue  # what it holds is looked at itself
        if name not in owned:
            found[name] = name
        elif owned[name] and path.suffix not in _WEIGHTS and owned[name] != sha256(path):
            found[name] = f"{name} (changed since)"
    return found


def _holds(outer: Path, inner: Path) -> bool:
    """Whether `inner` is `outer`, or lies in it: links resolved, and by what the system says, since a place has many names."""
    inner, outer = inner.resolve(), outer.resolve()
    for place in (inner, *inner.parents):
        if place == outer or (place.exists() and outer.exists() and place.samefile(outer)):
            return True
    return False
