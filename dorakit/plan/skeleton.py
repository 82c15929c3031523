"""A recipe's model without its weights: built from config.json on torch's meta device, adapters attached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel

from dorakit.build import attach_adapter_, train_text_part_
from dorakit.cache import refuse_hub_cache
from dorakit.errors import DorakitError, ModelError, ResourceError
from dorakit.files import names_a_place, nearby
from dorakit.model import hub
from dorakit.model.configs import read_object, refuse_code
from dorakit.model.gguf_reading import read_config
from dorakit.model.linear import layers_to_store
from dorakit.model.prequantized import is_nf4, refuse_quantized, skipped_modules
from dorakit.model.source import at_hand, gguf_file
from dorakit.model.tasks import CAUSAL_LM
from dorakit.recipe.schema import Recipe
from dorakit.terminal import typed


def find_config(recipe: Recipe, file: Path | None = None) -> Any:
    """The transformers config of a recipe's base, or the one in `file`. Of a hub id only config.json is fetched.

    Raises:
        ModelError: There is no usable config.
        ResourceError: The hub cannot be reached; says which file to give instead.
    """
    if file is not None:
        return _read(file / "config.json" if file.is_dir() else file)
    base = recipe.model.base
    if (here := at_hand(base, revision=recipe.model.revision)) is not None and (here / "config.json").is_file():
        return _read(here / "config.json")
    if (file := gguf_file(base)) is not None:
        return read_config(file)
    path = Path(os.path.expanduser(base))
    if path.is_dir():
        return _read(path / "config.json")
    if names_a_place(base):
        raise ModelError(f"no such model directory: {base}\n  {nearby(path)}")
    return _read(_fetch(recipe))


def build_skeleton(recipe: Recipe, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device, frozen but for what the recipe trains; linear layers stay dense in every mode.

    Raises:
        ModelError: transformers builds no causal language model of this config, or the adapter does not fit it.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = CAUSAL_LM.auto.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # what a config may say differs from family to family
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"no causal language model can be built from this config: {reason}") from error
    model.tie_weights()
    model.requires_grad_(False)
    if recipe.trains_whole:
        train_text_part_(model)
    else:
        attach_adapter_(model, recipe)
    return model


def quantized_layers(recipe: Recipe, model: PreTrainedModel) -> list[nn.Linear]:
    """The linear layers that a q mode stores as NF4, or that the base comes with as NF4; else none."""
    stated = model.config.to_dict()
    comes_as_nf4 = not recipe.trains_whole and is_nf4(stated)
    if not recipe.stores_nf4 and not comes_as_nf4:
        return []
    skipped = skipped_modules(stated) if comes_as_nf4 else recipe.quantization.skip_modules
    return [layer for _, layer in layers_to_store(model, skipped)]


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"no such file: {path}\n  give the model's config.json")
    stated = read_object(path)
    refuse_code(path, stated)
    refuse_quantized(str(path), stated)
    kind = stated.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(f"{path}: model_type is {kind!r}, which transformers does not know")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # sizes that are texts, say
        raise ModelError(
            f"{path} cannot be used: {(str(error).strip() or 'no reason given').splitlines()[0]}"
        ) from error


def _fetch(recipe: Recipe) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    refuse_hub_cache(constants.HF_HUB_CACHE)
    base, revision = recipe.model.base, recipe.model.revision
    instead = f"give its config.json instead: dorakit plan {typed(recipe.origin.path)} --config PATH/config.json"
    reason = ""
    try:
        with hub.asked(f"config.json of {base}") as reason:
            return Path(hf_hub_download(base, "config.json", revision=revision))
    except HFValidationError:
        raise ModelError(f"{base!r} is neither a directory nor a hub id\n  {instead}") from None
    except (HfHubHTTPError, OSError, DorakitError) as error:
        if not constants.HF_HUB_OFFLINE:
            refuse_hub_cache(constants.HF_HUB_CACHE, to_write=True)
        raise ResourceError(
            f"config.json of {base} is not in the hub cache and cannot be had from the hub: {reason or type(error).__name__}\n"
            f"  {instead}"
        ) from None
