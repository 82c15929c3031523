"""A run directory leads nowhere else: it may come from a stranger, in an archive or a clone, or be a copy with hard links.

Links below it are refused when it is opened (`refuse_links`). A file that has another name elsewhere gets bytes of its own
before it is written in place (`as_own`, `own`); all other files are replaced as a whole (files.py).
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from pathlib import Path

from dorakit.errors import RunError

# Weights & Biases keeps links in its directory, to its cache too. Nothing of that is read, and it writes into new directories.
_NOT_OURS = "wandb"


def refuse_links(run: Path) -> None:
    """Refuse a run directory in which something is neither a file nor a directory. It may itself be a link.

    Raises:
        RunError: With the first such name.
    """
    places = [str(run)]
    while places:
        try:
            with os.scandir(places.pop()) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:  # gone meanwhile, or not to be read: then nothing is read or written below it
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if Path(entry.path) != run / _NOT_OURS:
                    places.append(entry.path)
            elif entry.is_symlink():
                raise RunError(_refusal(Path(entry.path)))
            elif not entry.is_file(follow_symlinks=False):
                raise RunError(
                    f"{entry.path} is not a regular file, and nothing of the kind belongs in a run: remove it"
                )


def _refusal(link: Path) -> str:
    return (
        f"{link} is a link to {os.readlink(link)}, and a run directory is not followed out of itself\n"
        "  to keep a run on another disk, move the whole directory there and link that; --output puts a result elsewhere\n"
        "  a run with a link that you did not make is not to be trusted"
    )


def own(file: Path) -> None:
    """Give a file that has other names too (hard links) bytes of its own, under this name."""
    try:
        found = os.lstat(file)
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        staging = file.with_name(f".tmp-{file.name}-{uuid.uuid4().hex[:8]}")
        try:
            shutil.copy2(file, staging, follow_symlinks=False)
            staging.replace(file)
        finally:
            staging.unlink(missing_ok=True)


def not_followed(path: str, flags: int) -> int:
    """An opener for `open`: through no link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def as_own(path: str, flags: int) -> int:
    """An opener for `open`, of a file that is written in place: through no link, and into no other name of the file."""
    own(Path(path))
    return not_followed(path, flags)
