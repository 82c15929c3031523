"""Embedding and output head that share one weight in a base: which they are, and whether an adapter's are one too."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def tied_ends(model: PreTrainedModel) -> list[str]:
    """Names of embedding and head where they share a weight, else none; of a base without modules trained whole."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = [getattr(module, "weight", None) for module in ends]
    if weights[0] is None or weights[0] is not weights[1]:
        return []
    return [name for name, module in model.named_modules() if module in ends]


def keeps_ties(config: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Whether modules trained whole share a weight where the base ties them.

    PEFT gives those of modules_to_save a weight of their own, unless ensure_weight_tying; what it saves for another reason,
    as an embedding that grew, goes into the tied weight itself. Two that are equal, as a tied pair is saved here, are one.

    Args:
        config: Content of adapter_config.json.
        tensors: Of `read_tensors`, those of adapted layers left out.
    """
    named = tuple(config.get("modules_to_save") or ())  # PEFT compares ends of names, without a dot between
    if config.get("ensure_weight_tying") or not any(name.rpartition(".")[0].endswith(named) for name in tensors):
        return True
    matrices = [tensor for tensor in tensors.values() if tensor.dim() == 2]
    return any(one.dtype == other.dtype and torch.equal(one, other) for one, other in combinations(matrices, 2))
