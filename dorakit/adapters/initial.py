"""The factors A0 and B0 of a start that changes the base: W = W_res + s B0 A0.

They are found once, saved beside the adapter (initial.safetensors), and subtracted from the base again at every load, so that
no load depends on a decomposition.

Shapes: I in, O out, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dorakit.errors import ModelError, listed
from dorakit.files import give_rights_of_new, naming
from dorakit.model.arrival import Arrival
from dorakit.model.nf4 import NF4Linear
from dorakit.model.weights_check import check_weights

INITIAL = "initial.safetensors"
Pair = tuple[Tensor, Tensor]


class Initial:
    """The part of a base's weights that a start moves into A and B.

    Attributes:
        start: Its name in the table of methods.
        scalings: Module name -> s, of each module that the start changes.
        factors: Module name -> A0 float32 (R, I) and B0 float32 (O, R), of the modules whose residual is made.
        row_norms: Module name -> row norms of W, float32 (O,), likewise.
    """

    def __init__(self, start: str, scalings: dict[str, float], pair_of: Callable[[str, Tensor], Pair]):
        """`pair_of` computes A0 and B0 from a module's name and its float32 weight, when the weight arrives."""
        self.start = start
        self.scalings = scalings
        self.factors: dict[str, Pair] = {}
        self.row_norms: dict[str, Tensor] = {}
        self._pair_of = pair_of

    @torch.no_grad()
    def residual(self, name: str, weight_OI: Tensor) -> Tensor:
        """W_res = W - s B0 A0, float32 (O, I); a weight that the start leaves alone is returned as it is."""
        if name not in self.scalings:
            return weight_OI
        a_RI, b_OR = (factor.to(weight_OI.device).contiguous() for factor in self._pair_of(name, weight_OI))
        if (a_RI.shape[1], b_OR.shape[0]) != (weight_OI.shape[1], weight_OI.shape[0]):
            raise ModelError(
                f"{INITIAL} does not fit this base: {name} has shape {tuple(weight_OI.shape)}, "
                f"expected {(b_OR.shape[0], a_RI.shape[1])}"
            )
        self.factors[name] = a_RI, b_OR
        self.row_norms[name] = weight_OI.norm(dim=1)
        return weight_OI.addmm(b_OR, a_RI, alpha=-self.scalings[name])

    def pair(self, name: str) -> Pair:
        """A0 and B0 that were saved."""
        return self._pair_of(name, torch.empty(0))

    def factors_for(self, name: str, rank: int, scaling: float) -> Pair:
        """A0 and B0 for the adapter of this rank and s on a module.

        Raises:
            ModelError: They were made for another.
        """
        a_RI, b_OR = self.factors[name]
        if (len(a_RI), b_OR.shape[1], self.scalings[name]) != (rank, rank, scaling):
            raise ModelError(
                f"{INITIAL}: A0 and B0 of {name} are of rank {len(a_RI)} and scaling {self.scalings[name]:g}, "
                f"and its adapter is of rank {rank} and scaling {scaling:g}: the two files are not of one adapter"
            )
        return a_RI, b_OR

    @torch.no_grad()
    def take_out_(self, name: str, base: nn.Module) -> None:
        """Replace a dense layer's weight by its residual, unless that was done when the weight arrived.

        Raises:
            ModelError: The layer is stored in 4 bits, and its weight before that is gone.
        """
        if name in self.factors:
            return
        if name not in self.scalings:
            raise ModelError(f"{INITIAL} has no A0 and B0 of {name}, and the adapter is on it")
        if isinstance(base, NF4Linear):
            raise refusal_of_stored(self.start, name)
        weight = base.get_parameter("weight")
        weight.copy_(self.residual(name, weight.float()))


def taken_out(arrival: Arrival, initial: Initial | None) -> Arrival:
    """An arrival that subtracts s B0 A0 from each weight, before its rows are shared out and stored as NF4."""
    return arrival if initial is None else replace(arrival, residual=initial.residual)


def refusal_of_stored(start: str, name: str) -> ModelError:
    """The error for a base whose weights are stored in 4 bits already."""
    return ModelError(
        f"start {start} needs the weight of {name} before quantization, and it is stored as NF4\n"
        "  name the unquantized base that it was made from, or set adapter.start: kaiming"
    )


def save_initial(directory: Path, start: str, layers: dict[str, tuple[Pair, float]]) -> None:
    """Write initial.safetensors: A0 and B0 by module name, with the start and each s in its metadata."""
    tensors = {}
    for name, ((a_RI, b_OR), _) in sorted(layers.items()):
        tensors[f"{name}.lora_A.weight"] = a_RI.detach().cpu().contiguous().clone()
        tensors[f"{name}.lora_B.weight"] = b_OR.detach().cpu().contiguous().clone()
    stated = {"start": start, "scalings": {name: scaling for name, (_, scaling) in sorted(layers.items())}}
    path = directory / INITIAL
    staging = path.with_name(f".tmp-{path.name}")
    with naming(path):
        save_file(tensors, staging, metadata={"dorakit": json.dumps(stated)})  # one entry, or their order would vary
    give_rights_of_new(staging)
    staging.replace(path)


def read_initial(directory: Path) -> Initial:
    """Read initial.safetensors, to subtract s B0 A0 from a base again.

    Raises:
        ModelError: It is missing, damaged, or lacks a factor.
    """
    path = directory / INITIAL
    if not path.is_file():
        raise ModelError(
            f"{path} is not there, and the adapter beside it fits only the base that its start left\n"
            "  put it back from where the adapter was trained"
        )
    check_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            stated = json.loads((file.metadata() or {})["dorakit"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        scalings = {str(name): float(value) for name, value in stated["scalings"].items()}
        start = str(stated["start"])
    except (SafetensorError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error!r}\n  put it back from where the adapter was trained") from None
    wanted = {f"{name}.lora_{side}.weight" for name in scalings for side in "AB"}
    if odd := sorted(wanted ^ tensors.keys()):
        raise ModelError(f"{path} is damaged: its tensors do not match its metadata:\n  {listed(odd)}")
    if strange := [key for key, tensor in tensors.items() if tensor.dim() != 2 or not tensor.isfinite().all()]:
        raise ModelError(f"{path} is damaged: {strange[0]} is no matrix of finite numbers")

    def pair_of(name: str, weight_OI: Tensor) -> Pair:
        return tensors[f"{name}.lora_A.weight"].float(), tensors[f"{name}.lora_B.weight"].float()

    return Initial(start, scalings, pair_of)
