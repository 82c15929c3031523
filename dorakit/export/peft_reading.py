"""What PEFT computes of an adapter that somebody else made, from its files and the base's weights alone.

A merge is otherwise held against the live model, which our own code read from the same files: what is misread is merged as it
was misread, and looks right. Nothing of that reading is used here.

Shapes: O out, I in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from dorakit.adapters.attach import whole_modules
from dorakit.adapters.foreign_names import PREFIX
from dorakit.adapters.peft_config import CONFIG
from dorakit.adapters.peft_format import WEIGHTS
from dorakit.memory import return_freed_memory
from dorakit.model.configs import read_object
from dorakit.model.nf4 import ROWS_AT_ONCE

# As for a layer's own forward pass (proof.py): the rounding of float32, of a row and of its change.
_OF_ROW, _OF_CHANGE = 4e-7, 1e-5


class PeftReading:
    """Checks merged tensors one by one.

    Args:
        directory: Of the adapter.
        model: The live model, for the base's weights and the names of embedding and head.
    """

    def __init__(self, directory: Path, model: PreTrainedModel):
        self._file = directory / WEIGHTS
        self._config = read_object(directory / CONFIG)
        with safe_open(self._file, framework="pt") as content:
            self._keys: dict[str, str] = {key.removeprefix(PREFIX): key for key in content.keys()}
        self._left = {name for name in self._keys if not re.search("original_module|modules_to_save", name)}
        self._inside = frozenset(self._left)
        self._of_base = _tied_weight(model)
        self.num_checked = 0

    @torch.no_grad()
    def fault(self, owner: str, leaf: str, merged: Tensor, base_OI: Tensor | None) -> str | None:
        """What is wrong with a merged tensor; None where it is PEFT's.

        Args:
            owner: Name of its module.
            leaf: Its name in there.
            merged: As it is computed, before it is rounded.
            base_OI: The base's weight, of an adapted layer.
        """
        if base_OI is not None:
            is_right = self._is_linear(owner, merged, base_OI)
        else:
            expected = self._whole(owner, leaf)
            if expected is None:
                return None
            is_right = torch.equal(merged.float().cpu(), expected)
        self.num_checked += 1
        return None if is_right else f"{owner}.{leaf} is not what PEFT makes of {self._file}"

    def left_out(self, written: set[str]) -> str | None:
        """What of the adapter, or of a tied pair that it unties, is in no merged tensor.

        Args:
            written: Names of the modules that have a weight of their own in the merged model.
        """
        if (names := self._of_base.keys() & written) and (rest := self._of_base.keys() - written):
            # The one that is not written is the other one.
            one, other = (self._whole(names_.pop(), "weight") for names_ in ({*names}, {*rest}))
            if one is not None and other is not None and not torch.equal(one, other):
                return f"{next(iter(rest))} is tied in the merged model, and PEFT unties it for {self._file}"
            self._left -= {f"{name}.weight" for name in rest}
        return f"{min(self._left)} of {self._file} is not in the merged model" if self._left else None

    def _is_linear(self, owner: str, merged_OI: Tensor, base_OI: Tensor) -> bool:
        a_RI, b_OR = (self._take(f"{owner}.lora_{matrix}.weight").double() for matrix in "AB")
        rank = self._stated(owner, "rank_pattern", "r")
        scale = self._stated(owner, "alpha_pattern", "lora_alpha") / (
            rank**0.5 if self._config.get("use_rslora") else rank
        )
        magnitude_O = self._magnitude(owner)
        for start in range(0, len(merged_OI), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            weight = base_OI[rows].double().cpu()
            expected = weight + scale * (b_OR[rows] @ a_RI)
            if magnitude_O is not None:
                expected *= (magnitude_O[rows] / expected.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny))[
                    :, None
                ]
            error = (merged_OI[rows].double().cpu() - expected).norm(dim=1)
            allowed = _OF_ROW * expected.norm(dim=1) + _OF_CHANGE * (expected - weight).norm(dim=1)
            if not (error <= allowed).all():  # a NaN is none
                return False
            return_freed_memory(3 * weight.nbytes)
        return True

    def _stated(self, owner: str, patterns: str, key: str) -> float:
        """A number of the config, by PEFT's rule for names: the first pattern that is the end of one."""
        for pattern, value in (self._config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", owner):
                return float(value)
        return float(self._config[key])

    def _magnitude(self, owner: str) -> Tensor | None:
        names = (f"{owner}.lora_magnitude_vector", f"{owner}.lora_magnitude_vector.weight")
        found = next((name for name in names if name in self._inside), None)
        return self._take(found).double().flatten() if found else None

    def _whole(self, owner: str, leaf: str) -> Tensor | None:
        """A tensor that is not merged from others; None for one that is the base's and that no tie leads to."""
        name = f"{owner}.{leaf}"
        if name in self._inside:
            return self._take(name).float()
        if owner not in self._of_base:
            return None
        (other,) = self._of_base.keys() - {owner}
        saved = tuple(self._config.get("modules_to_save") or ())
        if self._config.get("ensure_weight_tying") or not other.endswith(saved):
            return self._take(f"{other}.weight").float() if f"{other}.weight" in self._inside else None
        return self._of_base[owner].float().cpu()

    def _take(self, name: str) -> Tensor:
        self._left.discard(name)
        with safe_open(self._file, framework="pt") as content:
            tensor: Tensor = content.get_tensor(self._keys[name])
        return tensor


def _tied_weight(model: PreTrainedModel) -> dict[str, Tensor]:
    """The base's one weight by the names of embedding and head that share it; empty where they do not."""
    whole = {id(module): module.base for _, module in whole_modules(model)}
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    named: Iterator[tuple[str, Any]] = ((name, module) for name, module in model.named_modules() if module in ends)
    weights = {name: whole.get(id(module), module).weight for name, module in named}
    is_tied = len(weights) == 2 and len({id(weight) for weight in weights.values()}) == 1
    return {name: weight.detach() for name, weight in weights.items()} if is_tied else {}
