"""manifest.json: the size and sha256 of a directory's files, compared before anything parses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dorakit.digests import sha256
from dorakit.errors import RunError
from dorakit.files import write_json

_SCHEMA = 2
_LARGEST = 1 << 16  # bytes


def write_manifest(directory: Path, names: tuple[str, ...], step: int) -> None:
    """Write the manifest of the files `names`, which stand for a run after `step` steps."""
    files = {name: {"bytes": (directory / name).stat().st_size, "sha256": sha256(directory / name)} for name in names}
    write_json(directory / "manifest.json", {"schema": _SCHEMA, "step": step, "files": files})


def verify(path: Path, names: tuple[str, ...]) -> None:
    """Compare the files `names` with their manifest.

    Raises:
        RunError: The manifest is missing, of another version or odd; or a file is missing, of another size, or changed.
    """
    manifest = path / "manifest.json"
    try:
        if manifest.stat().st_size > _LARGEST:
            raise RunError(f"{manifest} has {manifest.stat().st_size:,} bytes: this is not one that dorakit wrote")
        stated = json.loads(manifest.read_text(encoding="utf-8"))
        schema, files = stated["schema"], stated["files"]
        if not isinstance(files, dict):
            raise TypeError(f"files is {type(files).__name__}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{manifest} cannot be used ({type(error).__name__}: {error})") from None
    if schema != _SCHEMA:
        raise RunError(f"{manifest} has schema {schema!r:.40}; this dorakit reads {_SCHEMA}")
    if odd := sorted(files.keys() ^ set(names)):
        raise RunError(
            f"{manifest} should list {', '.join(names)}; {odd[0]!r:.80} is {_too_many_or_few(odd[0], files)}"
        )
    for name in names:
        file, expected = path / name, files[name]
        if not file.is_file():
            raise RunError(f"{file} is missing")
        if not isinstance(expected, dict) or expected.keys() != {"bytes", "sha256"}:
            raise RunError(f"{manifest} says {expected!r:.80} of {name}, expected its bytes and sha256")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise RunError(f"{file} has {size:,} bytes, expected {expected['bytes']!r:.40}")
        try:
            found = sha256(file)
        except OSError as error:
            raise RunError(f"{file} cannot be read: {error.strerror}") from None
        if found != expected["sha256"]:
            raise RunError(
                f"{file} is damaged: its sha256 is {found[:12]}..., the manifest's {expected['sha256']!s:.12}..."
            )


def _too_many_or_few(name: str, files: dict[str, Any]) -> str:
    return "there and should not be" if name in files else "missing"
