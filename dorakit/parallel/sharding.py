"""A model shared out over the ranks: torch's FSDP2, one group per decoder layer, the rows of each weight on dimension 0.

NF4 weights and their absmax are plain uint8 parameters, so FSDP gathers their bytes as they stand and each rank
dequantizes what it needs. Beside a frozen base what is trained stays whole on every rank: adapters are small, and their gradients
are summed once per step as in ddp. A model that is trained whole is sharded whole, with its gradients and the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from dorakit.errors import ModelError
from dorakit.model.layers import decoder_layers
from dorakit.model.load import pick_device
from dorakit.model.nf4 import NF4Linear


def shard_(
    model: PreTrainedModel, ranks: int, *, float32: bool, trained_too: bool = False, cpu_offload: bool = False
) -> list[str]:
    """Shard the frozen parameters of a model with its adapters attached, in place; returns lines to print and record.

    NF4 layers that keep only their rank's rows (model/arrival.py) are taken over as they are.

    Args:
        model: Loaded and adapted alike on every rank.
        float32: Make the parameters float32 once each rank has only its rows.
        trained_too: Shard what is trained as well. The gradients of the shards are sums over the ranks.
        ranks: Size of the group.
        cpu_offload: Keep the shards in the host's memory and bring them to the device for each use.

    Raises:
        ModelError: The architecture's layers are not of transformers' common kind.
    """
    layers = decoder_layers(model, to_be="sharded", otherwise="parallel.strategy: ddp")
    whole = [name for name, module in model.named_modules() if isinstance(module, NF4Linear) and module.has_all_rows]
    shares = {module: _take_share(module) for module in model.modules() if _is_share(module)}
    replicated = set() if trained_too else {p for p in model.parameters() if p.requires_grad}
    mesh = init_device_mesh(pick_device().type, (ranks,))
    settings: dict[str, Any] = {"mesh": mesh, "ignored_params": replicated}
    notes = []
    offloads = cpu_offload and pick_device().type == "cuda"
    if offloads:
        settings["offload_policy"] = CPUOffloadPolicy()
    elif cpu_offload:
        notes.append("asked: parallel.cpu_offload, using: none (no CUDA device: everything is in the host's memory)")
    # One group: where they are tied, a parameter cannot be in two, and a head that is a group of its own would be gathered for
    # each piece of the loss, of which ranks have different numbers.
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    for group in [*([layer] for layer in layers), ends]:
        fully_shard(group, **settings)
    fully_shard(model.base_model, **settings)
    _check_all_sharded(model, trained_too=trained_too)
    if float32:
        model.float()
    if trained_too:
        for module in model.modules():
            if isinstance(module, FSDPModule):  # which else gives the mean
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
    for layer, (weight, absmax) in shares.items():
        for name, share in (("weight", weight), ("absmax", absmax)):
            # from_local would bring a share to the mesh's device that is to stay in the host's memory.
            place: Any = torch.empty_like(getattr(layer, name), device="cpu" if offloads else pick_device())
            place.to_local().copy_(share)
            setattr(layer, name, nn.Parameter(place, requires_grad=False))
    own, total = sharded_bytes(model)
    what = "parameters" if trained_too else "frozen base"
    notes.append(f"fsdp: this rank holds {own:,} of the {total:,} bytes of the {what}")
    if whole:
        notes.append(
            f"{len(whole)} NF4 layers have rows that are no whole blocks and are whole on every rank, the first is {whole[0]}"
        )
    return notes


def sharded_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the parameters that this rank holds, and of all ranks together; what is trained and on every rank is left out."""
    own = total = 0
    for parameter in model.parameters():
        if isinstance(parameter, DTensor) or not parameter.requires_grad:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            own += local.nbytes
            total += parameter.numel() * parameter.element_size()
    return own, total


def reshard_(model: nn.Module) -> None:
    """Let go of what a forward pass without gradient gathered and would keep for the next one; without FSDP, nothing."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors, on the CPU and whole where they are shared out; to be called on every rank alike.

    A rank that does not `keep` them gives its rows and returns nothing: one whole tensor at a time is in its memory.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole.cpu()
    return found


def rows_of_first(whole: Tensor, like: DTensor) -> Tensor:
    """Of the first rank's `whole` the rows that this rank has of `like`; to be called on every rank alike.

    On the others `whole` may be on the meta device: only its shape and dtype count.
    """
    if whole.is_meta:
        whole = torch.empty(whole.shape, dtype=whole.dtype)
    rows: Tensor = distribute_tensor(whole, like.device_mesh, like.placements).to_local()
    return rows


def _check_all_sharded(model: PreTrainedModel, *, trained_too: bool) -> None:
    """Refuse what is trained and in no group; what is frozen and in none is brought to the device, where FSDP put the others."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            continue
        if parameter.requires_grad and trained_too:
            raise ModelError(
                f"{type(model).__name__} has {name} outside of its decoder, embedding and head, and it cannot be sharded\n"
                "  set parallel.strategy: ddp"
            )
        parameter.data = parameter.data.to(pick_device())
    for buffer in model.buffers():
        buffer.data = buffer.data.to(pick_device())


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
