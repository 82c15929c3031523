"""A trained adapter put into layers that are attached already: the same method goes on, or a LoRA as a DoRA."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from dorakit.adapters.attach import adapter_layers
from dorakit.adapters.layer import MAGNITUDE
from dorakit.adapters.peft_format import matched_parameters, read_tensors


@torch.no_grad()
def continue_adapter_(model: PreTrainedModel, directory: Path) -> None:
    """Copy the adapter in a directory into the model's, in place; the model then answers as that adapter does.

    Where a DoRA finds a LoRA there, it takes m = ||W + s B A||.

    Raises:
        ModelError: A tensor is missing, of another shape, or one that nothing here reads.
    """
    tensors = read_tensors(directory)
    becoming_dora = {
        name: layer
        for name, layer in adapter_layers(model)
        if layer.lora_magnitude_vector is not None and not any(MAGNITUDE in key for key in tensors)
    }
    for name, layer in becoming_dora.items():
        tensors[f"{name}.{MAGNITUDE}"] = layer.get_parameter(MAGNITUDE).detach()
    for name, parameter in matched_parameters(model, tensors, directory).items():
        parameter.copy_(tensors[name])
    for layer in becoming_dora.values():
        layer.magnitude_to_norm_()
    for _, adapter in adapter_layers(model):
        adapter.mark_start_()
