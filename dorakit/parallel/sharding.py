"""A frozen base shared out over the ranks: torch's FSDP2, one group per decoder layer, the rows of each weight on dimension 0.

NF4 weights and their absmax are plain uint8 parameters, so FSDP gathers their bytes as they stand and each rank
dequantizes what it needs. What is trained stays whole on every rank: adapters are small, and their gradients are summed once per
step as in ddp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from dorakit.model.layers import decoder_layers
from dorakit.model.load import pick_device
from dorakit.model.nf4 import NF4Linear


def shard_(model: PreTrainedModel, ranks: int, *, cpu_offload: bool = False) -> list[str]:
    """Shard the frozen parameters of a model with its adapters attached, in place; returns lines to print and record.

    NF4 layers that keep only their rank's rows (model/streaming.py: shared_out) are taken over as they are.

    Args:
        model: Loaded and adapted alike on every rank.
        ranks: Size of the group.
        cpu_offload: Keep the shards in the host's memory and bring them to the device for each use.

    Raises:
        ModelError: The architecture's layers are not of transformers' common kind.
    """
    layers = decoder_layers(model, to_be="sharded", otherwise="parallel.strategy: ddp")
    whole = [name for name, module in model.named_modules() if isinstance(module, NF4Linear) and module.has_all_rows]
    shares = {module: _take_share(module) for module in model.modules() if _is_share(module)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(pick_device())
    mesh = init_device_mesh(pick_device().type, (ranks,))
    settings: dict[str, Any] = {"mesh": mesh, "ignored_params": {p for p in model.parameters() if p.requires_grad}}
    if cpu_offload:
        settings["offload_policy"] = CPUOffloadPolicy()
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = ends[1] is not None and ends[0].weight is ends[1].weight
    notes = []
    if tied:  # one parameter cannot be in two groups
        settings["ignored_params"].add(ends[0].weight)
        notes.append("the embedding is the output head too, and is whole on every rank")
    for module in [*layers, *([] if tied else [end for end in ends if end is not None])]:
        fully_shard(module, **settings)
    fully_shard(model.base_model, **settings)
    for layer, (weight, absmax) in shares.items():
        for name, share in (("weight", weight), ("absmax", absmax)):
            place = getattr(layer, name)
            local = DTensor.from_local(
                share, mesh, [Shard(0)], run_check=False, shape=place.shape, stride=place.stride()
            )
            setattr(layer, name, nn.Parameter(local, requires_grad=False))
    own, total = sharded_bytes(model)
    notes.append(f"fsdp: this rank holds {own:,} of the {total:,} bytes of the frozen base")
    if whole:
        notes.append(
            f"{len(whole)} NF4 layers have rows that are no whole blocks and are whole on every rank, the first is {whole[0]}"
        )
    return notes


def sharded_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the frozen parameters that this rank holds, and of all ranks together."""
    own = total = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            own += local.nbytes
            total += parameter.numel() * parameter.element_size()
    return own, total


def _is_share(module: nn.Module) -> bool:
    return isinstance(module, NF4Linear) and not module.has_all_rows


def _take_share(layer: NF4Linear) -> tuple[Tensor, Tensor]:
    """This rank's rows of weight and absmax; in their places stand the whole ones, on no device, for FSDP to count."""
    weight, absmax = layer.weight.data, layer.absmax
    del layer.absmax
    for name, share in (("weight", weight), ("absmax", absmax)):
        shape = (layer.out_features, *share.shape[1:])
        placeholder = torch.empty(shape, dtype=share.dtype, device="meta")
        layer.register_parameter(name, nn.Parameter(placeholder, requires_grad=False))
    return weight, absmax
