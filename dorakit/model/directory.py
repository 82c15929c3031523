"""A model directory as a whole, checked before anything in it is loaded: which files there are, where links lead, what the
index of several files says and the files hold, whether config.json can be true of them.

Of a snapshot in the hub's cache every file is a link into the cache's own blobs/; a link to anywhere else outside is
refused, as it would make a model of a stranger read, hash and name files of this machine.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dorakit.errors import ModelError
from dorakit.model.configs import check_configs, read_object
from dorakit.model.prequantized import refuse_quantized
from dorakit.model.weights_check import Stored, check_weights
from dorakit.terminal import typed

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What is read from a model directory, by us or by transformers.
READ = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_SIZES = ("hidden_size", "intermediate_size", "vocab_size", "n_embd", "d_model", "ffn_dim", "head_dim")
_SHOWN = 5


def check_model_directory(directory: Path) -> None:
    """Make sure that a directory is a base model that can be loaded as it says, from headers and JSON alone.

    Raises:
        ModelError: With the file, what is wrong with it and what to do.
    """
    check_files(directory)
    _check_kind(directory)
    check_configs(directory)
    config = read_object(directory / "config.json")
    refuse_quantized(str(directory), config)
    tensors = _tensors(directory)
    _check_dtypes(directory, tensors)
    _check_sizes(directory / "config.json", config, tensors)


def check_files(directory: Path) -> None:
    """Make sure that each file that may be read is a regular one, and lies where its directory does.

    Raises:
        ModelError: A link leads elsewhere, or something is no file.
    """
    root = directory.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")  # as it is: a blobs that is itself a link leads elsewhere
    for path in _looked_at(directory):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # a loop of links is a RuntimeError up to Python 3.12
            raise ModelError(f"{path} is a link to nothing: {path.readlink()}\n  download the file again") from None
        if not any(target.is_relative_to(place) for place in roots):
            raise ModelError(
                f"{path} is a link to {target}, outside its directory\n"
                "  put the file itself there, or name the directory that it is in"
            )
        if not target.is_file() and not (target.is_dir() and path.parent != directory):
            kind = "a directory" if target.is_dir() else "not a regular file"
            raise ModelError(f"{path} is {kind}; remove it or put the file there")


def _looked_at(directory: Path) -> list[Path]:
    """What is read from a directory, and every link below it to such a file or to a directory, at any depth."""
    found = {path for pattern in READ for path in directory.glob(pattern)}
    for above, directories, files in os.walk(directory):
        places = [
            *(Path(above, name) for name in directories),
            *(Path(above, name) for name in files if _is_read(name)),
        ]
        found |= {path for path in places if path.is_symlink()}
    return sorted(found)


def _is_read(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in READ)


def _check_kind(directory: Path) -> None:
    inside = ", ".join(sorted(p.name for p in directory.iterdir())[:8]) or "nothing"
    has_config, is_adapter = ((directory / name).exists() for name in ("config.json", "adapter_config.json"))
    if is_adapter and not has_config:
        raise ModelError(
            f"{directory} is an adapter, not a base model: it has adapter_config.json and no config.json\n"
            "  its base is what its base_model_name_or_path names; "
            f"`dorakit merge {typed(directory)} --output DIR` makes one model of both"
        )
    if is_adapter:  # transformers, where PEFT is installed, would put the adapter onto the weights unasked
        raise ModelError(
            f"{directory} is a base model and an adapter at once: it has config.json and adapter_config.json\n"
            "  move one of them, with its weights, to a directory of its own"
        )
    if not has_config:
        raise ModelError(f"{directory} is not a model directory: it has no config.json (it holds {inside})")
    if any(directory.glob("*.safetensors")):
        return
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.pth")):
        raise ModelError(
            f"{directory} has only pickled weights (.bin, .pt), which are never read; expected *.safetensors\n"
            "  convert it where you trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR) of transformers"
        )
    raise ModelError(f"{directory} has no weights: expected *.safetensors (it holds {inside})")


def _tensors(directory: Path) -> dict[str, Stored]:
    """The tensors of the files that transformers would load."""
    whole, index = directory / WHOLE, directory / INDEX
    headers = {path.name: check_weights(path) for path in sorted(directory.glob("*.safetensors"))}
    if index.exists():
        shards = _shards(index)
    if whole.exists():  # then transformers asks no index
        return headers[WHOLE]
    if not index.exists():
        found = ", ".join(sorted(headers)[:_SHOWN])
        raise ModelError(f"{directory} has neither {WHOLE} nor {INDEX}; it holds {found}\n  download what is missing")
    _check_index(index, shards, headers)
    return {name: stored for shard in shards for name, stored in headers[shard].items()}


def _shards(index: Path) -> list[str]:
    """The files that an index names, each a plain name."""
    content = read_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(content.get("metadata"), dict):
        raise ModelError(f"{index}: expected the objects metadata and weight_map\n  download it again")
    shards = {repr(shard): shard for shard in weight_map.values()}
    strange = [written for written, shard in shards.items() if not _is_plain(shard)]
    _refuse(index, "names what is no *.safetensors file beside it", strange)
    return list(shards.values())


def _check_index(index: Path, shards: list[str], headers: dict[str, dict[str, Stored]]) -> None:
    """Hold an index against the headers of the files that it names."""
    absent = [repr(shard) for shard in shards if shard not in headers]
    _refuse(index, "names files that are missing", absent, "download them")
    left = [name for name in headers if name.startswith("model-") and name not in shards]
    _refuse(
        index, "does not name all shards beside it", left, "they are of another download: remove them, or the index"
    )
    owners: dict[str, str] = {}
    twice = []
    for shard in shards:
        twice += [f"{name!r} ({owners[name]} and {shard})" for name in headers[shard] if name in owners]
        owners |= dict.fromkeys(headers[shard], shard)
    _refuse(index, "names shards that hold the same tensors", twice)
    wrong = [
        f"{name!r} (in {owners[name]}, not {shard})" if name in owners else f"{name!r} (not in {shard})"
        for name, shard in read_object(index)["weight_map"].items()
        if owners.get(name) != shard
    ]
    _refuse(index, "names tensors that are not where it says", wrong)


def _is_plain(shard: Any) -> bool:
    return isinstance(shard, str) and shard == Path(shard).name and shard.endswith(".safetensors") and "\\" not in shard


def _refuse(index: Path, what: str, wrong: Iterable[str], advice: str = "download the model again") -> None:
    found = list(wrong)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ModelError(f"{index} {what} ({len(found)}): {', '.join(found[:_SHOWN])}{more}\n  {advice}")


def _check_dtypes(directory: Path, tensors: dict[str, Stored]) -> None:
    small = {name: stored.dtype for name, stored in tensors.items() if stored.dtype.startswith("F8")}
    if small:
        name, dtype = next(iter(small.items()))
        raise ModelError(
            f"{directory}: {len(small)} tensors are {dtype}, the first is {name!r}; 8-bit floats cannot be read\n"
            "  name the 16-bit model that it was made from"
        )


def _check_sizes(path: Path, config: dict[str, Any], tensors: dict[str, Stored]) -> None:
    """Refuse sizes that the tensors cannot have: building such a model would take for ever, or all memory."""
    largest = max((size for stored in tensors.values() for size in stored.shape), default=0)
    for section in (config, *(inner for inner in config.values() if isinstance(inner, dict))):
        for key in (*_LAYERS, *_SIZES):
            size, most, what = section.get(key), len(tensors), "tensors"
            if key in _SIZES:
                most, what = largest, "as the largest size of a tensor"
            if isinstance(size, int) and not isinstance(size, bool) and size > most:
                raise ModelError(
                    f"{path}: {key} is {size:,}, and the weights have {most:,} {what}\n  download both again"
                )
