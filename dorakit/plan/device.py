"""What a training is planned for: a card by name, a size of memory, or this machine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from dorakit.errors import UsageError
from dorakit.memory import host_memory

# GiB as nvidia-smi shows them, which of cards that correct errors is less than on the box.
_CARDS = {
    "RTX 2080 Ti": 11.0,
    "RTX 3060": 12.0,
    "RTX 3080": 10.0,
    "RTX 3090": 24.0,
    "RTX 4070": 12.0,
    "RTX 4080": 16.0,
    "RTX 4090": 24.0,
    "RTX 5080": 16.0,
    "RTX 5090": 31.8,
    "RTX A6000": 48.0,
    "T4": 15.0,
    "L4": 22.5,
    "L40S": 45.0,
    "A10": 22.5,
    "A100 40GB": 40.0,
    "A100 80GB": 80.0,
    "H100": 79.6,
    "H200": 140.4,
}
# Of before Ampere: there dtype auto is float32.
_WITHOUT_BFLOAT16 = ("RTX 2080 Ti", "T4")
_CUDA_CONTEXT = 1 << 29
_HOLES = 0.05  # share of a card that its allocator cannot hand out
_PROCESS = 3 << 28  # Python, torch and transformers themselves, resident: scripts/bench/plan.py
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*Gi?B?", re.IGNORECASE)
_MOST = 1024  # GiB: no card has as much
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LETTERS_LEFT_OUT = re.compile(r"\d{4}")  # 4090; of fewer digits a number may be meant as memory


@dataclass(frozen=True)
class Device:
    """Where a training would run. `memory` and `reserve` are bytes; the reserve is what no tensor can have."""

    name: str
    memory: int
    reserve: int
    is_card: bool
    has_bfloat16: bool

    @property
    def room(self) -> int:
        """Bytes for tensors."""
        return max(0, self.memory - self.reserve)


def card(asked: str) -> Device:
    """A card by its name (`RTX 4090`, or `4090`), or one of so many GiB (`24GB`), which is taken to compute in bfloat16.

    Raises:
        UsageError: Neither.
    """
    if size := _SIZE.fullmatch(asked.strip()):
        if not 0 < float(size[1]) <= _MOST:
            raise UsageError(f"--gpu {asked!r} is no card's memory\n  give at most {_MOST}GB, for example --gpu 24GB")
        return _cuda(f"a card of {size[1]} GiB", round(float(size[1]) * 2**30), has_bfloat16=True)
    name = _known(asked)
    if name is None:
        problem = "is a number without a unit" if _NUMBER.fullmatch(asked.strip()) else "is not known"
        raise UsageError(f"--gpu {asked!r} {problem}\n  give its memory, as --gpu 24GB, or one of: {', '.join(_CARDS)}")
    return _cuda(name, round(_CARDS[name] * 2**30), has_bfloat16=name not in _WITHOUT_BFLOAT16)


def _known(asked: str) -> str | None:
    """The card of a name; of a number alone, the only card with that number in its name."""
    plain = _plain(asked)
    if _LETTERS_LEFT_OUT.fullmatch(plain):
        named = [name for name in _CARDS if plain in re.findall(r"\d+", name)]
        return named[0] if len(named) == 1 else None
    return {_plain(name): name for name in _CARDS}.get(plain)


def this_machine() -> Device:
    """The device that a training takes here: its GPU, else the CPU with the memory of the machine or the container."""
    import torch

    from dorakit.model.load import pick_device, pick_dtype

    has_bfloat16 = pick_dtype("auto") == torch.bfloat16
    if pick_device().type == "cuda":
        return _cuda(torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1], has_bfloat16=has_bfloat16)
    return Device("this machine, without a GPU", host_memory()[1], _PROCESS, is_card=False, has_bfloat16=has_bfloat16)


def _cuda(name: str, memory: int, *, has_bfloat16: bool) -> Device:
    reserve = _CUDA_CONTEXT + math.ceil(_HOLES * memory)
    return Device(name, memory, reserve, is_card=True, has_bfloat16=has_bfloat16)


def _plain(name: str) -> str:
    """A card's name as people write it: "NVIDIA GeForce RTX 4090" is "rtx4090"."""
    return re.sub(r"nvidia|geforce|tesla|[\s_-]", "", name.lower())
