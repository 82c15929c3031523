"""What cannot be trained, said before it is tried; and a DoRA that was none, said before it is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dorakit.adapters.attach import adapter_layers, whole_modules
from dorakit.errors import Gate, GateError, ModelError, ResourceError
from dorakit.model.attention import NAME
from dorakit.training.objectives.supervised import SupervisedLoss
from dorakit.words import counted


def check_trainable_dtype(name: str) -> None:
    """Refuse float16."""
    if name == "float16":
        raise ModelError(
            "model.dtype: float16 is not trained in: without loss scaling, which is not built, small gradients become 0\n"
            "  set model.dtype: bfloat16, or float32 where the device has none"
        )


def check_packing(objective: SupervisedLoss) -> None:
    """Refuse to pack for a family that knows no borders between documents.

    One that knows them only by transformers' mask, because its attention is not told the positions, gets that back.
    """
    apart = objective.keeps_documents_apart()
    if not apart and objective.model.config._attn_implementation == NAME:
        objective.model.set_attn_implementation("sdpa")
        apart = objective.keeps_documents_apart()
    if not apart:
        raise ModelError(
            f"data.packing does not work with {type(objective.model).__name__}: documents in a row would see each other\n"
            "  set data.packing: false"
        )


def check_recomputed(model: nn.Module) -> None:
    """A module trained whole may lie inside a layer that is computed again in backward, but not be or hold one.

    Its parameters are casts, made outside the layer; the second pass would use others than the first.
    """
    for name, module in whole_modules(model):
        if any(isinstance(inner, GradientCheckpointingLayer) for inner in module.base.modules()):
            raise ModelError(
                f"adapter.modules_to_save: {name} cannot be trained whole with training.gradient_checkpointing\n"
                "  set training.gradient_checkpointing: false, or name modules inside of it"
            )


def check_room(run: Path, *, trained_bytes: int, state_bytes: int, keep: int, keep_best: bool) -> None:
    """Make sure that the checkpoints to be kept, one more beside them, and the result fit on the disk.

    Args:
        run: The run directory; it need not exist yet.
        trained_bytes: Of the trained parameters in a checkpoint.
        state_bytes: Of the optimizer's states.
        keep: Checkpoints to keep.
        keep_best: Weights of the best validation are kept too: one for each checkpoint may be named, and one more.

    Raises:
        ResourceError: They do not; better now than at the first checkpoint.
    """
    needed = (trained_bytes + state_bytes) * (keep + 1) + trained_bytes * (keep + 2 if keep_best else 1)
    place = next(parent for parent in (run.absolute(), *run.absolute().parents) if parent.exists())
    # What lies there already takes part of that room, or gives it back.
    ours = [run / name for name in ("checkpoints", "best", "adapter", "model")]
    there = sum(file.stat().st_size for directory in ours for file in directory.rglob("*") if file.is_file())
    free = shutil.disk_usage(place).free
    if free + there < needed:
        what = (
            f"{counted(keep + 1, 'checkpoint')}, the best weights and the result"
            if keep_best
            else f"{counted(keep + 1, 'checkpoint')} and the result"
        )
        raise ResourceError(
            f"{run}: {what} need {needed:,} bytes, {free:,} are free\n"
            "  make room, or set output_dir to another disk; --set training.keep_checkpoints=2 is the least"
        )


def check_moved(model: nn.Module, summed_rate: float, magnitude_ratio: float) -> list[str]:
    """Refuse a result that is what it began as; returns lines to note.

    Args:
        model: Trained.
        summed_rate: The learning rates of all steps that were taken, added up.
        magnitude_ratio: What DoRA's magnitudes have of them.

    Raises:
        GateError: No adapter moved, or a magnitude did not.
    """
    still = check_adapter_moved(model, summed_rate)
    check_magnitudes_moved(model, summed_rate * magnitude_ratio)
    return (
        [f"{len(still)} adapted layers got no gradient and are as they were, the first is {still[0]}"] if still else []
    )


def check_adapter_moved(model: nn.Module, summed_rate: float) -> list[str]:
    """Refuse an adapter that could have moved and did nowhere; returns the layers that alone got no gradient.

    Raises:
        GateError: Every B is still what it began as, though steps were taken.
    """
    layers = list(adapter_layers(model))
    still = [name for name, layer in layers if layer.is_untrained()]
    if layers and len(still) == len(layers) and summed_rate > 0:
        raise GateError(
            f"none of the {len(layers)} adapters moved, though learning rates summed to {summed_rate:.2e}: the result would be "
            "what they began as, so none is written.\n  its gradients are zero: are the supervised tokens the ones to train on?"
            "\n  more: docs/faq.md#it-answers-as-before",
            Gate("moved_adapters", 0, 1),
        )
    return still


def check_magnitudes_moved(model: nn.Module, summed_rate: float) -> None:
    """A DoRA whose magnitudes could have moved and did not has trained as LoRA: say so instead of saving it."""
    for name, layer in adapter_layers(model):
        if layer.lora_magnitude_vector is None:
            continue
        ulp = torch.finfo(torch.float32).eps * float(layer.lora_magnitude_vector.detach().abs().mean())
        # A layer that no text passes through has no gradient for B either; that is not rounding.
        if summed_rate > 100 * ulp and not layer.is_untrained() and layer.has_still_magnitude():
            raise GateError(
                f"the DoRA magnitude of {name} never moved, though learning rates summed to {summed_rate:.2e}.\n"
                "  its gradient is zero or it was rounded away; the result would be a plain LoRA, so none is written",
                Gate("moved_magnitudes", 0, 1),
            )
