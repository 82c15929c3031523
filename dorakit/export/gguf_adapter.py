"""A plain LoRA as the GGUF file that llama.cpp takes beside a base (`--lora`).

Each adapted matrix is two float32 tensors, `NAME.lora_a` (R, I) and `NAME.lora_b` (O, R), NAME being the matrix's in the
base's own file. llama.cpp multiplies their product by alpha / R, which is 1 here.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from transformers import PreTrainedModel

from dorakit.adapters.attach import adapter_layers
from dorakit.errors import ModelError
from dorakit.export.gguf_file import FAMILIES, as_in_llama_cpp


@torch.no_grad()
def write_gguf_adapter(model: PreTrainedModel, file: Path) -> None:
    """Write the LoRA attached to a model, whose scale is 1 in every layer.

    Raises:
        ModelError: The model's family is not one of FAMILIES.
    """
    config = model.config
    if config.model_type not in FAMILIES:
        raise ModelError(f"no GGUF adapter for model type {config.model_type!r}; known are {', '.join(FAMILIES)}")
    architecture = FAMILIES[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    layers = list(adapter_layers(model))
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(layers[0][1].alpha))
        for name, layer in layers:
            matrix = names.get_name(name)
            if matrix is None:
                raise ModelError(f"{name} has no name in GGUF files of {config.model_type}")
            a_RI, b_OR = (factor.detach().cpu() for factor in layer.factors())
            b_OR = as_in_llama_cpp(name, b_OR, config)
            writer.add_tensor(f"{matrix}.weight.lora_a", a_RI.contiguous().numpy())
            writer.add_tensor(f"{matrix}.weight.lora_b", b_OR.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
