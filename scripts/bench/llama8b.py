"""Write a model of Llama-3-8B's shape with random weights: 16 GB of bfloat16 shards, one layer in memory at a time.

python llama8b.py DIRECTORY TOKENIZER_DIRECTORY [LAYERS]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


def normal(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)


def main() -> None:
    place, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    layers = int(sys.argv[3]) if len(sys.argv) > 3 else 32
    place.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    index: dict[str, str] = {}

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        file = f"model-{name}.safetensors"
        save_file(tensors, place / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
        print(file, flush=True)

    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaDecoderLayer(config, 0).named_parameters()}
    for layer in range(layers):
        tensors = {
            f"model.layers.{layer}.{name}": normal(*shape)
            if len(shape) == 2
            else torch.ones(shape, dtype=torch.bfloat16)
            for name, shape in shapes.items()
        }
        write(f"layer-{layer:02}", tensors)
    write("embedding", {"model.embed_tokens.weight": normal(config.vocab_size, config.hidden_size)})
    write("head", {"lm_head.weight": normal(config.vocab_size, config.hidden_size)})
    write("norm", {"model.norm.weight": torch.ones(config.hidden_size, dtype=torch.bfloat16)})
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.save_pretrained(place)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, place)


if __name__ == "__main__":
    main()
