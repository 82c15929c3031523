"""Names of tensors that another tool or a wrapper around the model wrote, told from those that PEFT writes."""

from __future__ import annotations

import re
from pathlib import Path

from dorakit.adapters.peft_config import MERGE_IN_PEFT
from dorakit.errors import ModelError

PREFIX = "base_model.model."  # what PEFT puts in front
_AS_PEFT_SAVES = "save the model inside with PEFT's save_pretrained"
# What a name has in it, who left it there, and what to do.
_FOREIGN: tuple[tuple[str, str, str], ...] = (
    (r"(^|\.)_orig_mod\.", "torch.compile left _orig_mod in it", _AS_PEFT_SAVES),
    (r"(^|\.)_fsdp_wrapped_module\.", "FSDP left _fsdp_wrapped_module in it", _AS_PEFT_SAVES),
    (r"(^|\.)_checkpoint_wrapped_module\.", "activation checkpointing wrapped its layer", _AS_PEFT_SAVES),
    (r"^module\.", "DistributedDataParallel or DeepSpeed left module in front of it", _AS_PEFT_SAVES),
    (
        r"\.lora_[AB]\.(?!weight$)[^.]+\.weight$",
        "a state_dict of PEFT has the adapter's own name in it",
        _AS_PEFT_SAVES,
    ),
    (r"^lora_(unet|te\d?|transformer)_", "kohya's trainer for image models wrote it", "it fits no language model"),
    (r"^(diffusion_model|unet|text_encoder)\.", "it is of an image model", "it fits no language model"),
    (r"\.lora_[ab](\.weight)?$", "mlx-lm or torchtune wrote it", "export it from there in PEFT's format"),
)


def refuse_foreign_name(file: Path, name: str, shared: tuple[str, ...] = ()) -> None:
    """Refuse a tensor whose name PEFT does not write, naming who does, and LoRA on an embedding.

    `shared` are names that stand outside of the model, as VeRA's matrices.

    Raises:
        ModelError: With the name.
    """
    if re.search(r"\.lora_embedding_[AB]$", name):
        raise ModelError(f"{file}: {name!r} is LoRA on an embedding, which is not supported\n  {MERGE_IN_PEFT}")
    for pattern, why, advice in _FOREIGN:
        if re.search(pattern, name):
            raise ModelError(f"{file}: {name!r} is not a name that PEFT writes: {why}\n  {advice}")
    if not name.startswith(PREFIX) and name not in shared:
        raise ModelError(f"{file}: {name!r} is not a name that PEFT writes (it would begin {PREFIX!r})")
