"""Receipts: which files dorakit wrote into a directory, and their sha256, so that what changed since is noticed.

A result's receipt has them under `files`: dorakit.json of an adapter or a model that was trained, merge.json, quantize.json,
export.json. Results of versions that kept none, and whatever other programs wrote, are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dorakit.errors import RunError, UsageError
from dorakit.files import write_json
from dorakit.terminal import typed

TRAINED, MERGED, QUANTIZED, EXPORTED = "dorakit.json", "merge.json", "quantize.json", "export.json"
_RECEIPTS = (TRAINED, MERGED, QUANTIZED, EXPORTED)
# What a model or an adapter is made of; a card, say, may be edited and changes nothing.
_READ = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.gguf")
_DIGEST = re.compile("[0-9a-f]{64}")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_receipt(directory: Path, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a receipt of everything that is in a directory; returns what it holds."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / name)
    digests = {path.relative_to(directory).as_posix(): sha256(path) for path in files}
    receipt = {**content, "files": digests}
    write_json(directory / name, receipt)
    return receipt


def listed_files(receipt: Path) -> dict[str, str]:
    """The files that a receipt lists, with their sha256; empty where it lists none.

    Raises:
        RunError: It is damaged.
    """
    try:
        content = json.loads(receipt.read_text(encoding="utf-8"))
        files = content.get("files", {})
        if not all(_DIGEST.fullmatch(digest) for digest in files.values()):
            raise ValueError("a digest under 'files' is none")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{receipt} is damaged: {error}\n  put it back, or make {receipt.parent} anew") from None
    return dict(files)


def refuse_changed(read: Mapping[Path, Mapping[str, str]], accepted: Sequence[str]) -> list[str]:
    """Refuse results whose files are not what was written.

    Args:
        read: The directories that are read, each with the digests of its files that are known already.
        accepted: Changes to go on with, each DIRECTORY/FILE.

    Returns:
        A line for each accepted change.

    Raises:
        RunError: Something changed that is not accepted.
        UsageError: Something is accepted that did not change.
    """
    found = {key: line for directory, known in read.items() for key, line in changes(directory, known).items()}
    if unknown := [key for key in accepted if key not in found]:
        raise UsageError(
            f"--accept-change {unknown[0]}: that did not change; what changed: {', '.join(found) or 'nothing'}"
        )
    if refused := [key for key in found if key not in accepted]:
        lines = "\n  ".join(found[key] for key in refused)
        options = " ".join(f"--accept-change {typed(key)}" for key in refused)
        raise RunError(f"{lines}\n  put it back or make it anew; if you changed it, go on with {options}")
    return [f"accepted: {line}" for line in found.values()]


def changes(directory: Path, known: Mapping[str, str]) -> dict[str, str]:
    """By DIRECTORY/FILE, a line on each file that is read and is not what a receipt says."""
    receipts = [directory / name for name in _RECEIPTS if (directory / name).is_file()]
    then = {name: digest for receipt in receipts for name, digest in listed_files(receipt).items()}
    # Only what is found here is opened, whatever names a receipt of a stranger holds.
    there = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    found = {}
    for name, before in sorted(then.items()):
        if not any(fnmatch(name, pattern) for pattern in _READ):
            continue
        now = None if name not in there else known.get(name) or sha256(there[name])
        if now != before:
            seen = "is gone" if now is None else f"changed (sha256 {before:.12} then, {now:.12} now)"
            found[f"{directory.resolve().name}/{name}"] = f"{directory / name} {seen} since dorakit wrote it"
    return found
