"""From a recipe to a model ready to train: where recipe sections become plain numbers for model/ and adapters/."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dorakit.adapters.attach import attach_, text_part
from dorakit.adapters.initial import Initial, taken_out
from dorakit.adapters.whole import TrainedCopy
from dorakit.errors import ModelError
from dorakit.methods import UPDATES
from dorakit.model.arrival import AS_STORED, Arrival
from dorakit.model.linear import is_linear, sizes
from dorakit.model.load import Base, BaseFiles, find_base, load_tokenizer, load_weights
from dorakit.model.nf4 import NF4Format, NF4Linear, stored_format
from dorakit.recipe.schema import Recipe
from dorakit.starting import new_initial


def find_files(recipe: Recipe, *, dtype: str | None = None) -> BaseFiles:
    """The base of a recipe, its weights not read yet; the added tokens are in its tokenizer. `dtype` replaces the recipe's."""
    model = recipe.model
    found = find_base(model.base, revision=model.revision, dtype=dtype or model.dtype)
    if model.added_tokens:
        if known := [token for token in model.added_tokens if token in found.tokenizer.get_vocab()]:
            found.notes.append(f"model.added_tokens: {', '.join(known)} is in the tokenizer already")
        _extend_(found.tokenizer, model.added_tokens)
    return found


def find_files_to_train(recipe: Recipe) -> BaseFiles:
    """As `find_files`, in the dtype that `build_model` loads."""
    # Masters are float32, or updates smaller than half an ulp would round away; the compute dtype is the loop's.
    return find_files(recipe, dtype="float32" if recipe.trains_whole else None)


def build_base(
    recipe: Recipe, *, original: bool = False, found: BaseFiles | None = None, arrival: Arrival = AS_STORED
) -> Base:
    """The frozen base of a recipe: NF4 in the q modes, unless `original` asks for the unquantized weights.

    `found` is of `find_files`, where that was called already; `arrival` says what else the weights go through.
    """
    model = recipe.model
    if recipe.stores_nf4 and not original:
        arrival = replace(arrival, nf4=nf4_format(recipe))
    base = load_weights(found or find_files(recipe), attention=model.attention, arrival=arrival)
    if (stored := stored_format(base.model)) is not None:
        base.notes.append(f"{model.base} is stored as NF4: {_in_words(stored)}")
        _check_stored(recipe, stored)
    if model.added_tokens:
        _fit_embedding_(base)
    pad, rows = int(base.tokenizer.pad_token_id), base.model.get_input_embeddings().weight.shape[0]
    if pad >= rows:
        raise ModelError(
            f"{model.base}: the tokenizer pads with token {pad}, and the model's embedding has {rows} rows: the tokenizer "
            "is another model's\n  use the tokenizer that the model came with"
        )
    return base


def _in_words(form: NF4Format) -> str:
    return f"block {form.block_size}, {'' if form.double_quant else 'not '}double-quantized"


def _check_stored(recipe: Recipe, stored: NF4Format) -> None:
    """Refuse what a base that was quantized elsewhere cannot give.

    Raises:
        ModelError: Another format than the recipe's, or row norms of weights that are gone.
    """
    if not recipe.stores_nf4:
        return
    asked = NF4Format(recipe.quantization.block_size, recipe.quantization.double_quant, ())
    if asked != stored:
        raise ModelError(
            f"{recipe.model.base} is stored as NF4: {_in_words(stored)}; the recipe says {_in_words(asked)}\n"
            f"  quantization: {{block_size: {stored.block_size}, double_quant: {str(stored.double_quant).lower()}}}"
        )
    if recipe.has_original_magnitude:
        raise ModelError(
            f"adapter.magnitude.init: original needs the weights before quantization, and {recipe.model.base} is stored as NF4\n"
            "  set adapter.magnitude.init: dequantized, or name the base that it was made from"
        )


def nf4_format(recipe: Recipe) -> NF4Format:
    """How a recipe in a q mode stores its base."""
    quantization = recipe.quantization
    assert quantization.format == "nf4"
    return NF4Format(quantization.block_size, quantization.double_quant, tuple(quantization.skip_modules))


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer, added tokens included, without its model."""
    tokenizer = load_tokenizer(recipe.model.base, revision=recipe.model.revision)
    _extend_(tokenizer, recipe.model.added_tokens)
    return tokenizer


def build_model(
    recipe: Recipe,
    *,
    found: BaseFiles | None = None,
    keeps_ties: bool = True,
    arrival: Arrival = AS_STORED,
    initial: Initial | None = None,
) -> Base:
    """The recipe's base with its adapters attached, or with float32 master weights to train in mode full.

    `found`, of `find_files_to_train`, and `arrival` are as for `build_base`, `keeps_ties` as for `attach_`; `initial` is what an
    earlier start took out of the base, and without it the recipe's own start is made.

    Raises:
        ModelError: The base cannot be had, or the adapter does not fit it.
    """
    adapter = recipe.adapter
    found = found or find_files_to_train(recipe)
    initial = initial or new_initial(recipe, found)
    base = build_base(recipe, found=found, arrival=taken_out(arrival, initial))
    if recipe.trains_whole:
        if any(isinstance(module, NF4Linear) for module in base.model.modules()):
            raise ModelError(
                f"{recipe.model.base} is stored as NF4 and cannot be trained whole; use adapter.mode: qlora or qdora"
            )
        _train_whole_(base)
        return base
    if "any rank" not in UPDATES[adapter.update].gives:
        _check_ranks(base.model, [adapter.rank, *adapter.rank_pattern.values()])
    attach_adapter_(base.model, recipe, keeps_ties=keeps_ties, initial=initial)
    ends = (base.model.get_input_embeddings(), base.model.get_output_embeddings())
    if recipe.model.added_tokens and not all(isinstance(module, TrainedCopy) for module in ends if module is not None):
        raise ModelError(
            "model.added_tokens gives new rows to the embedding and the output head, and one of them is not trained.\n"
            "  adapter.modules_to_save: [embed_tokens, lm_head]  (where they are tied, either names both)"
        )
    return base


def _check_ranks(model: nn.Module, ranks: list[int]) -> None:
    """Refuse ranks that are larger than any layer, before so much memory is asked for."""
    sides = {name: sizes(module) for name, module in model.named_modules() if is_linear(module)}
    largest = max(sides, key=lambda name: min(sides[name]), default=None)
    if largest is not None and max(ranks) > min(sides[largest]):
        outputs, inputs = sides[largest]
        raise ModelError(
            f"adapter.rank {max(ranks)} is above every layer of the model: the largest, {largest}, is {outputs} x {inputs}, "
            f"so that rank {min(sides[largest])} is already any matrix\n  usual ranks are 8 to 128"
        )


def attach_adapter_(
    model: nn.Module, recipe: Recipe, *, keeps_ties: bool = True, initial: Initial | None = None
) -> None:
    """Attach a recipe's adapters to its base, on any device, meta included.

    Raises:
        ModelError: The adapter does not fit the model.
    """
    adapter = recipe.adapter
    attach_(
        model,
        method="dora" if recipe.has_magnitude else "lora",
        update=adapter.update,
        target_modules=adapter.target_modules,
        rank=adapter.rank,
        alpha=adapter.alpha,
        dropout=adapter.dropout,
        rslora=adapter.rslora,
        rank_pattern=adapter.rank_pattern,
        alpha_pattern=adapter.alpha_pattern,
        modules_to_save=adapter.modules_to_save,
        keeps_ties=keeps_ties,
        seed=recipe.training.seed,
        magnitude_init=adapter.magnitude.init,
        settings=adapter.update_settings,
        initial=initial,
    )


def train_text_part_(model: PreTrainedModel) -> None:
    """Everything learns but what only images pass through: without a gradient weight decay alone would change it."""
    for part in (text_part(model), model.get_input_embeddings(), model.get_output_embeddings()):
        if part is not None:
            part.requires_grad_(True)


def _train_whole_(base: Base) -> None:
    model = base.model
    train_text_part_(model)
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        base.notes.append(f"{len(frozen)} tensors outside the text decoder are not trained, the first is {frozen[0]}")


def _fit_embedding_(base: Base) -> None:
    """Give the embedding a row for each of the tokenizer's tokens."""
    if len(base.tokenizer) > base.model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # every load must give the new rows the same start
            base.model.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
        base.model.requires_grad_(False)


def _extend_(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
