"""JSON files of a model or an adapter that somebody else wrote: read with the place of a mistake, refused where they name code.

transformers and PEFT import modules, and fetch kernels from a hub, by keys of such files. None of that is offered here,
so a file that asks for it asks for something that it would not get; it is refused before a library reads it. Nor may a config
name a file elsewhere, which a tokenizer would open and take over, line by line.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dorakit.errors import ModelError

_MAX_BYTES = 64 << 20  # the largest tokenizer.json and indices are half of that
# Keys by which a library imports or fetches code, with the values that mean "not used".
_CODE_KEYS: dict[str, tuple[Any, ...]] = {
    "auto_map": (None, {}, []),
    "trust_remote_code": (None, False),
    "_attn_implementation_internal": (None,),
    "_experts_implementation_internal": (None,),
    "megatron_config": (None,),
    "megatron_core": (None, "megatron.core"),  # PEFT writes it into every adapter; alone it imports nothing
}
# Keys whose value may be a name that transformers knows, or a kernel on a hub.
_IMPLEMENTATION_KEYS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
_BUILT_IN = re.compile(r"[a-z0-9_|]+")
# PEFT names the class of the base so where an adapter has no task_type. It is never imported here.
_OF_TRANSFORMERS = re.compile(r"transformers(\.[A-Za-z0-9_]+)*")
# Where it was made, which is recorded and not opened.
_RECORDED = ("name_or_path", "_name_or_path", "base_model_name_or_path", "special_tokens_map_file")
# Keys of files, whose value may be a bare name: `vocab`, `merges_file`, `spm_file`, `fast_tokenizer_files`.
_FILE_KEY = re.compile(r"vocab|merges|.*(file|files|path|spm)")


def check_configs(directory: Path) -> None:
    """Read every `*config.json` of a model or adapter directory and refuse those that name code or a file elsewhere.

    Raises:
        ModelError: One is not valid JSON, or names code, or a file outside the directory.
    """
    for path in sorted({*directory.glob("*config.json"), *directory.glob("special_tokens_map.json")}):
        stated = read_object(path)
        refuse_code(path, stated)
        _refuse_files_elsewhere(path, stated)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: It is no regular file, not UTF-8, not JSON (with line and column), or not an object.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file")
    if status.st_size > _MAX_BYTES:
        raise ModelError(f"{path} is {status.st_size:,} bytes, more than the {_MAX_BYTES:,} that such a file may have")
    content = path.read_bytes()
    if content.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a git-lfs pointer, not the file itself\n  run `git lfs pull` in {path.parent}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path}: not UTF-8 text: byte {error.object[error.start]:#04x} at offset {error.start}"
        ) from None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        seen = repr(text[error.pos : error.pos + 30]) if error.pos < len(text) else "the end of the file"
        raise ModelError(
            f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}, at {seen}\n  mend it, or download it again"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists within lists
        raise ModelError(f"{path}: not usable JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {_kind(found)}, expected an object {{...}}")
    return found


def refuse_code(path: Path, stated: dict[str, Any]) -> None:
    """Refuse a config that names code, however deeply inside.

    Args:
        path: For messages.
        stated: What the file holds.

    Raises:
        ModelError: With the key and its value.
    """
    for place, key, value in _entries(stated):
        if key in _CODE_KEYS:
            is_code = not any(value is unused or value == unused for unused in _CODE_KEYS[key])
        elif key in _IMPLEMENTATION_KEYS:
            names = list(value.values()) if isinstance(value, dict) else [value]
            is_code = any(not isinstance(n, str) or not _BUILT_IN.fullmatch(n) for n in names if n is not None)
        elif key == "auto_mapping":
            library = value.get("parent_library") if isinstance(value, dict) else value
            is_code = library is not None and not (isinstance(library, str) and _OF_TRANSFORMERS.fullmatch(library))
        else:
            continue
        if is_code:
            raise ModelError(
                f"{path}: {place} = {_short(value)} names code, and code that a model brings or asks for is never run\n"
                f"  use a model that transformers has built in; if this one is, remove {key!r} from {path.name}"
            )


def _refuse_files_elsewhere(path: Path, stated: dict[str, Any]) -> None:
    """Refuse a value that names a file outside the directory, as a library may open it: from here, or from the directory."""
    root = path.parent.resolve()
    for place, key, value in _entries(stated):
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str) or key in _RECORDED or not ("/" in name or _FILE_KEY.fullmatch(key)):
                continue
            for found in (Path(name), path.parent / name):
                # Of a snapshot of the hub, what lies in it is a link to its blobs.
                is_within = Path(os.path.normpath(Path.cwd() / found)).is_relative_to(os.path.abspath(path.parent))
                if os.path.isfile(found) and not (is_within or found.resolve().is_relative_to(root)):
                    raise ModelError(
                        f"{path}: {place} = {_short(value)} names a file outside {path.parent}, which is not read\n"
                        f"  put the file there, or remove {key!r} from {path.name}"
                    )


def _entries(stated: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Dotted place, key and value of everything in nested objects and lists."""
    left: list[tuple[str, Any]] = [("", stated)]
    while left:
        place, value = left.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                inside = f"{place}.{key}" if place else key
                yield inside, key, inner
                left.append((inside, inner))
        elif isinstance(value, list):
            left += [(f"{place}[{number}]", inner) for number, inner in enumerate(value)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
