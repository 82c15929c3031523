"""What a finished training leaves: adapter/, or model/ for full fine-tuning, written, read back and compared."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dorakit.adapters.peft_format import check_saved, save_adapter
from dorakit.data.generation_config import write_generation_config
from dorakit.digests import TRAINED, write_receipt
from dorakit.errors import RunError
from dorakit.failpoints import reach
from dorakit.files import whole_directory
from dorakit.model.companions import copy_companions
from dorakit.model.configs import read_object
from dorakit.model.generate import ready_to_generate
from dorakit.model.load import Base
from dorakit.parallel.sharding import whole_tensors
from dorakit.recipe.schema import Recipe
from dorakit.run import Run


def whole_model(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """A model's tensors on the CPU by the names of its state, whole where they are shared out; every rank must call it.

    Tied weights are one tensor. Where not `keep`, an empty dict.
    """
    named = model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in named.items()}
    whole = whole_tensors({names[id(t)]: t.detach() for t in named.values()}, keep=keep)
    return {name: whole[names[id(t)]] for name, t in named.items()} if keep else {}


def write_result(run: Run, recipe: Recipe, base: Base, whole: dict[str, Tensor]) -> Path:
    """Write the trained weights whole or not at all, and compare what can be read back with what is in memory.

    Args:
        run: Where to.
        recipe: Says which weights.
        base: The trained model and its tokenizer.
        whole: Of a fully trained model, its tensors.

    Raises:
        RunError: What was written reads back as something else.
    """
    if recipe.trains_whole:
        with whole_directory(run.model, what="result") as staging:
            # transformers refuses to save some of the settings that models come with.
            with ready_to_generate(base.model):
                base.model.save_pretrained(staging, state_dict=dict(whole))
            reach("result.file")
            base.tokenizer.save_pretrained(staging)
            notes = copy_companions(base.model, staging, base.tokenizer)
            notes += write_generation_config(staging, base.model.generation_config, base.tokenizer)
            for line in notes:
                run.note(line)
            _check_model(whole, staging)
            write_receipt(staging, TRAINED, {})
        return run.model
    with whole_directory(run.adapter, what="result") as staging:
        save_adapter(base.model, staging, base_name_or_path=recipe.model.base, revision=base.revision or None)
        reach("result.file")
        if recipe.model.added_tokens or recipe.data.chat_template:
            base.tokenizer.save_pretrained(staging)
        write_generation_config(staging, base.model.generation_config, base.tokenizer)
        check_saved(base.model, staging)
        write_receipt(staging, TRAINED, read_object(staging / TRAINED))
    return run.adapter


def _check_model(whole: dict[str, Tensor], directory: Path) -> None:
    """Compare what was written with the model's tensors, bit for bit.

    Some families have other names or shapes on disk than in memory: what is not there under its own name is looked for by
    its bytes, and where that fails too, the number of elements must agree.

    Raises:
        RunError: A tensor reads back as something else, or is not there.
    """
    own: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in whole.items():
        own.setdefault(tensor.data_ptr(), (name, tensor))  # tied weights are written once
    written = {name: t for file in sorted(directory.glob("*.safetensors")) for name, t in load_file(file).items()}
    for name, tensor in written.items():
        if name in whole and not torch.equal(whole[name], tensor):
            raise RunError(f"{directory.name}: {name} reads back as something else than what was trained")
    by_name = {whole[name].data_ptr() for name in written if name in whole}
    missing = [(name, tensor) for place, (name, tensor) in own.items() if place not in by_name]
    if not missing:
        return
    known = {_digest(tensor) for name, tensor in written.items() if name not in whole}
    lost = [name for name, tensor in missing if _digest(tensor) not in known]
    had = sum(tensor.numel() for _, tensor in own.values())
    has = sum(tensor.numel() for tensor in written.values())
    if lost and had != has:
        raise RunError(
            f"{directory.name}: {lost[0]} was not written ({has:,} elements on disk, {had:,} in memory)\n"
            "  transformers does not write this family as it reads it: train an adapter instead, or report it"
        )


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).digest()
