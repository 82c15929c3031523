"""Where a base model's files are: every kind of base becomes a local directory of safetensors, config and tokenizer.

A .gguf file is dequantized once by transformers and kept in the cache, as is a tiny model; a hub id is a snapshot in
the hub's own cache.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers

from dorakit.cache import cached, find, reading, refuse_hub_cache
from dorakit.digests import sha256
from dorakit.errors import ModelError, ResourceError
from dorakit.files import names_a_place, nearby
from dorakit.model import hub
from dorakit.model.configs import read_object
from dorakit.model.directory import READ, check_model_directory
from dorakit.model.gguf_check import check_gguf
from dorakit.model.gguf_reading import read_config, read_tokenizer, save_dequantized, save_on_any_rank
from dorakit.model.packages import inside_package

_QUICKLY_HASHED = 1 << 30  # bytes: about three seconds


@dataclass(frozen=True)
class Source:
    """A base model's directory and what identifies it.

    `revision` is the resolved commit of a hub id and "" for everything else. `identity` maps file names to sha256.
    """

    directory: Path
    revision: str
    identity: dict[str, str]


def resolve(base: str, *, revision: str = "main", dtype: torch.dtype = torch.float32) -> Source:
    """Find, fetch or convert a base model.

    Args:
        base: Hub id, directory, .gguf file, `pkg:<package>/<file>` or `tiny:<architecture>`.
        revision: Branch, tag or commit; hub ids only.
        dtype: What a .gguf file is dequantized to.

    Raises:
        ModelError: There is no such model, or it is not one that can be loaded.
        ResourceError: The hub cannot be reached.
    """
    if base.startswith("tiny:"):
        return _tiny(base.removeprefix("tiny:"))
    if base.startswith("pkg:"):
        base = str(inside_package(base))
    path = Path(os.path.expanduser(base))
    if path.suffix == ".gguf" or path.is_file():
        return _gguf(path, dtype)
    if path.is_dir():
        return _directory(path)
    if names_a_place(base):
        raise ModelError(f"no such model directory: {base}\n  {nearby(path)}")
    return _hub(base, revision)


def gguf_file(base: str) -> Path | None:
    """The GGUF file that a base is, None for any other; its header is checked.

    Raises:
        ModelError: It is not there, or damaged.
    """
    path = inside_package(base) if base.startswith("pkg:") else Path(os.path.expanduser(base))
    if path.suffix != ".gguf":
        return None
    if not path.is_file():
        raise ModelError(f"no such file: {path}\n  {nearby(path)}")
    check_gguf(path)
    return path


def _directory(path: Path) -> Source:
    check_model_directory(path)
    files = [
        p for p in sorted(path.iterdir()) if p.suffix == ".safetensors" or p.name in ("config.json", "tokenizer.json")
    ]
    return Source(path, "", {p.name: sha256(p) for p in files})


def _gguf(path: Path, dtype: torch.dtype) -> Source:
    if not path.is_file():
        raise ModelError(f"no such file: {path}\n  {nearby(path)}")
    check_gguf(path)
    digest = sha256(path)
    entry = cached(_converted(digest, dtype), partial(save_dequantized, path, dtype))
    with reading(entry):
        check_model_directory(entry)
    return Source(entry, "", {path.name: digest})


def _converted(digest: str, dtype: torch.dtype) -> str:
    return f"gguf-{digest[:16]}-{str(dtype).removeprefix('torch.')}-{transformers.__version__}"


@contextlib.contextmanager
def local_directory(base: str, *, revision: str = "main") -> Iterator[Path | None]:
    """A directory with a base's config and tokenizer, without a download and without converting weights.

    None for a hub id that is not whole in the hub's cache. Of a .gguf file the directory holds the tokenizer alone, and is
    there within the block only.

    Raises:
        ModelError: There is no such model here, or it is not one that can be loaded.
    """
    if (file := gguf_file(base)) is not None:
        with tempfile.TemporaryDirectory() as saved:
            read_tokenizer(file).save_pretrained(saved)
            yield Path(saved)
    elif base.startswith(("tiny:", "pkg:")) or names_a_place(base) or Path(base).is_dir():
        yield resolve(base).directory  # makes a tiny model; where there is none, it says so
    else:
        here = at_hand(base, revision=revision)
        if here is not None:
            try:
                check_model_directory(here)
            except ModelError:  # there in part only
                here = None
        yield here


def _tiny(architecture: str) -> Source:
    from dorakit.model.tiny import tiny_model, tiny_tokenizer

    if not architecture.replace("_", "").replace("-", "").isalnum():
        raise ModelError(f"tiny:{architecture} names no architecture; try tiny:llama")
    name = f"tiny-{architecture}-{transformers.__version__}-{torch.__version__}"

    def make(staging: Path) -> None:
        save_on_any_rank(tiny_model(architecture), staging)
        tiny_tokenizer().save_pretrained(staging)

    entry = cached(name, make)
    with reading(entry):
        return _directory(entry)


def _hub(base: str, revision: str) -> Source:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    refuse_hub_cache(constants.HF_HUB_CACHE)
    reason = ""
    try:
        with hub.asked(f"the model {base}") as reason:
            path = Path(snapshot_download(base, revision=revision, allow_patterns=list(READ)))
    except GatedRepoError:
        raise ModelError(
            f"the model {base} is gated: accept its licence on its hub page, then log in (`hf auth login`) or set HF_TOKEN\n"
            "  more: docs/faq.md#hub-models-and-tokens"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"no model {base!r} on the hub, or no access to it.\n"
            "  a local directory starts with ./ or /; a private model needs `hf auth login` or HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"the model {base} has no revision {revision!r}") from None
    except HFValidationError:
        raise ModelError(f"{base!r} is neither a directory nor a hub id") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if not constants.HF_HUB_OFFLINE:
            refuse_hub_cache(constants.HF_HUB_CACHE, to_write=True)
        raise ResourceError(
            f"the model {base} is not in the hub cache and the hub cannot be reached: "
            f"{reason or type(error).__name__}\n"
            "  a local directory starts with ./ or /; `--twin` runs a recipe without its weights"
        ) from None
    return Source(path, path.name, _directory(path).identity)


def at_hand(base: str, *, revision: str = "main") -> Path | None:
    """The directory of a base with its config and tokenizer, where nothing need be fetched or converted for it; else None.

    Raises:
        ModelError: `pkg:` or `tiny:` names nothing.
    """
    if base.startswith("tiny:"):
        return _tiny(base.removeprefix("tiny:")).directory
    path = inside_package(base) if base.startswith("pkg:") else Path(os.path.expanduser(base))
    if path.is_dir():
        return path
    if path.is_file():
        if path.stat().st_size > _QUICKLY_HASHED:
            return None
        digest = sha256(path)
        return find(_converted(digest, torch.float32)) or find(_converted(digest, torch.bfloat16))

    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    refuse_hub_cache(constants.HF_HUB_CACHE)
    with contextlib.suppress(HFValidationError, LocalEntryNotFoundError):
        return Path(snapshot_download(base, revision=revision, allow_patterns=list(READ), local_files_only=True))
    return None


def architecture(base: str) -> str | None:
    """The architecture of a base as transformers names it, where its config is here; None where it is not known."""
    try:
        if (file := gguf_file(base)) is not None:
            found = read_config(file).model_type
        else:
            here = at_hand(base)
            config = None if here is None else here / "config.json"
            found = read_object(config).get("model_type") if config is not None and config.is_file() else None
    except ModelError:
        return None
    return found if isinstance(found, str) and found.isidentifier() else None


def stored_dtype(name: str, revision: str) -> str:
    """The dtype that config.json states; auto where it states none that weights are computed in."""
    config = read_object(resolve(name, revision=revision).directory / "config.json")
    stated = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return stated if stated in ("bfloat16", "float16", "float32") else "auto"
