"""Files and directories that are whole or not there, and errors that say where.

A file is at any instant the old one or the new one: one rename puts it there. A directory that is new too. One that
replaces another takes two renames, since the system's rename does not put a directory over a full one: between them its
name stands for nothing. The old one then lies beside it as `.old-NAME-...`, and whoever writes there next puts it back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dorakit.errors import DorakitError, RunError
from dorakit.failpoints import reach
from dorakit.words import near

# What a full disk, a quota, or a limit on the size of files says.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LISTED = 8
_REPLACED = re.compile(r"\.old-(.+)-[0-9a-f]{8}")


def names_a_place(text: str) -> bool:
    """Whether a text can only be a path here: a hub id has at most one slash, and none of `runs`, where runs go."""
    is_named = text.startswith(("tiny:", "pkg:"))
    return not is_named and (text.startswith((".", "/", "~", "runs/")) or text.count("/") > 1)


def nearby(path: Path) -> str:
    """A hint for a path that is not there: the names that may be meant, else what is there."""
    above = next(parent for parent in path.parents if parent.is_dir())
    wanted, *rest = path.relative_to(above).parts
    try:
        names = sorted(entry.name for entry in above.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"{above} cannot be listed: {error.strerror}"
    there = {name: str(Path(name, *rest)) for name in names if Path(above, name, *rest).exists()}
    if meant := near(wanted, there)[:3]:
        return f"did you mean {' or '.join(there[name] for name in meant)}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    listing = f"{', '.join(names[:_LISTED])}{more}" if names else "nothing"
    return f"nearest directory that exists: {above} (holds {listing})" if rest else f"the directory holds {listing}"


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is at any instant the old one or the new one, whole."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # A byte of a file's name that is not UTF-8 is half a surrogate pair to Python, which JSON can hold if it is escaped.
    write_whole(path, re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is at any instant the old one or the new one, whole."""
    staging = _beside(path, "tmp")
    try:
        with naming(path), open(staging, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    staging.replace(path)


def give_rights_of_new(*files: Path) -> None:
    """Give files the rights that a new file has, by the umask or the directory's default ACL; safetensors leaves 0600."""
    if not files:
        return
    probe = _beside(files[0], "tmp")
    try:
        with open(probe, "xb") as file:  # the umask itself cannot be read without setting it, for all threads
            rights = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for path in files:
        path.chmod(rights)


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_directory(
    path: Path, *, what: str = "directory", keep_existing: bool = False, work: Path | None = None
) -> Iterator[Path]:
    """Give a staging directory that becomes `path` if the block succeeds and vanishes if it does not.

    Every file gets the rights of a new one and is synced before the rename, the parent is synced after it, so that even
    after a crash of the system the name stands for whole files. An existing `path` is replaced only at that moment; what
    a process that was killed while it replaced it left is put back first.

    Args:
        path: What it becomes.
        what: Begins the names of its failpoints.
        keep_existing: Where another process made `path` in the meantime, its directory stays and this one goes.
        work: A directory on the same disk that the caller removes; staging and what is replaced go into it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    put_back(path.parent, only=path.name)
    staging = _beside(path, "tmp") if work is None else work / path.name
    staging.mkdir()
    try:
        with naming(path):
            yield staging
            reach(f"{what}.written")
            give_rights_of_new(*(file for file in staging.rglob("*") if file.is_file()))
            for place in [staging, *staging.rglob("*")]:
                sync(place)
            reach(f"{what}.synced")
            if not keep_existing and path.exists():
                old = _renamed(path, "old")
                reach(f"{what}.replacing")
                staging.rename(path)
                discard(old, into=work)  # half removed it must not get its name back
            else:
                try:
                    staging.rename(path)
                except OSError:
                    if not (keep_existing and path.is_dir()):
                        raise
            reach(f"{what}.renamed")
            sync(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        put_back(path.parent, only=path.name)


def refuse_link(path: Path, error: type[DorakitError]) -> None:
    """Refuse a link where something is to be written: a rename would put the new file or directory in the link's place.

    Raises:
        DorakitError: Of the class given.
    """
    if path.is_symlink():
        raise error(f"{path} is a link to {path.readlink()}, which is not written through\n  name the place itself")


def check_writable(path: Path) -> None:
    """Make something where `path` is to be, and remove it.

    Raises:
        RunError: It is a link, nothing can be made there, or its name could not be written into a file.
    """
    refuse_link(path, RunError)
    try:
        str(path).encode()
        above = next(parent for parent in path.absolute().parents if parent.exists())
        path.exists()  # a name may be too long
        with tempfile.TemporaryDirectory(dir=above, prefix=".tmp-"):
            return
    except UnicodeEncodeError:
        raise RunError(f"{path} cannot be made: its name is not UTF-8\n  set output_dir to another place") from None
    except OSError as error:
        if error.errno in FULL:
            raise
        raise RunError(f"{path} cannot be made: {error.strerror}\n  set output_dir to another place") from None


def why_not_writable(directory: Path) -> str:
    """Why nothing can be written into a directory, which is there or would be made; "" where it can."""
    for place in (directory, *directory.absolute().parents):
        try:
            place.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"{place}: {error.strerror}"
        if not place.is_dir():
            return f"{place} is not a directory"
        return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"
    return ""


def discard(directory: Path, *, into: Path | None = None) -> None:
    """Remove a directory so that it is at any instant whole or gone; what a kill leaves of it lies in `into`."""
    rubbish = _beside(directory if into is None else into / directory.name, "trash")
    directory.rename(rubbish)
    reach("prune")
    _remove(rubbish)


def remove_rubbish(directory: Path) -> None:
    """Remove what a process that was killed here left: staging directories, and what it was removing.

    What it was replacing is put back where the new one did not get its name. Only for a directory that nobody else
    writes into.
    """
    put_back(directory)
    for old in directory.glob(".old-*"):
        _renamed(old, "trash")
    for item in [*directory.glob(".tmp-*"), *directory.glob(".trash-*")]:
        _remove(item)


def _remove(item: Path) -> None:
    """Remove a directory or a file; of a link what it leads to stays."""
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item)
    else:
        item.unlink()


def put_back(directory: Path, *, only: str | None = None) -> None:
    """Give the directories that were being replaced here their names again, where nothing has them."""
    for old in directory.glob(".old-*"):
        found = _REPLACED.fullmatch(old.name)
        if found and only in (None, found[1]) and not (place := directory / found[1]).exists():
            with contextlib.suppress(FileNotFoundError):  # another process was as quick
                old.rename(place)


def _renamed(directory: Path, why: str) -> Path:
    other = _beside(directory, why)
    directory.rename(other)
    return other


def _beside(path: Path, why: str) -> Path:
    """A name that nobody else has, so that two who write the same do not meet."""
    return path.with_name(f".{why}-{path.name}-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a path into the errors of the block that have none: a write to a full disk does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:  # which carries the system's words in its text
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told is None:
            raise
        number = int(told[1])
        raise OSError(number, os.strerror(number), str(path)) from error
