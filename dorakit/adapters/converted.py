"""An adapter with a start that changed its base, as a LoRA of twice the rank on the original base.

W_res + s B A = W + s (B A - B0 A0) = W + s [B, -B0] [A; A0]: exact in real numbers, and rounded only where W_res was. A magnitude
divides the same row norms, so it stays as it is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dorakit.adapters.foreign_names import PREFIX
from dorakit.adapters.initial import read_initial
from dorakit.adapters.peft_config import CONFIG, read_config
from dorakit.adapters.peft_format import WEIGHTS, read_tensors
from dorakit.files import give_rights_of_new


def write_on_original(directory: Path, output: Path) -> dict[str, Any]:
    """Write PEFT's two files of the adapter in `directory` for the original base; returns adapter_config.json."""
    config, tensors, initial = read_config(directory), read_tensors(directory), read_initial(directory)
    for name in initial.scalings:
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        a0_RI, b0_OR = initial.pair(name)
        tensors[a] = torch.cat([tensors[a], a0_RI])
        tensors[b] = torch.cat([tensors[b], -b0_OR], dim=1)
    factor = math.sqrt(2) if config.get("use_rslora") else 2
    config = {
        **{key: value for key, value in config.items() if key != "dorakit"},
        "peft_type": "LORA",
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in (config.get("alpha_pattern") or {}).items()},
    }
    named = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in sorted(tensors.items())}
    save_file(named, output / WEIGHTS, metadata={"format": "pt"})
    give_rights_of_new(output / WEIGHTS)
    (output / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config
