"""A plain LoRA as the GGUF file that llama.cpp takes beside a base (`--lora`).

Each adapted matrix is two float32 tensors, `NAME.lora_a` (R, I) and `NAME.lora_b` (O, R), NAME being the matrix's in the
base's own file. llama.cpp multiplies their product by alpha / R, which is 1 here.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dorakit.adapters.attach import adapter_layers
from dorakit.errors import ModelError

# model_type of config.json, and the architecture whose graph llama.cpp runs for it.
FAMILIES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


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
            b_OR = layer.lora_B.detach().cpu()
            if architecture is gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj", "k_proj")):
                is_query = name.endswith("q_proj")
                b_OR = _interleaved(b_OR, config.num_attention_heads if is_query else config.num_key_value_heads)
            writer.add_tensor(f"{matrix}.weight.lora_a", layer.lora_A.detach().cpu().contiguous().numpy())
            writer.add_tensor(f"{matrix}.weight.lora_b", b_OR.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _interleaved(b_OR: Tensor, heads: int) -> Tensor:
    """Rows in the order of llama.cpp's Llama: it turns neighbours by one angle, transformers the halves of a head."""
    half = b_OR.shape[0] // heads // 2
    return b_OR.view(heads, 2, half, -1).transpose(1, 2).reshape(b_OR.shape)
