"""How an update is stored: the names of its tensors, and its entries of adapter_config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from dorakit.adapters.layer import AdapterLinear

# peft_type of what PEFT has no name for, so that it refuses the file instead of loading another adapter.
OWN_TYPE = "DORAKIT"


class OnDisk:
    """The part of an adapted layer's class that the file format reads.

    Attributes:
        update_name: Its name in the table of methods.
        peft_type: What PEFT calls it, or OWN_TYPE.
        peft_values: Entry of adapter_config.json that is read -> its kind, in the words of peft_config.py.
        on_disk: Own parameter -> its key in PEFT's format, the magnitude left out.
        rank_dim: Own parameter -> the dimension of it that is the rank.
        shared_keys: Whole keys on disk of tensors that are saved once for all layers.
    """

    update_name: ClassVar[str]
    peft_type: ClassVar[str]
    peft_values: ClassVar[dict[str, str]]
    on_disk: ClassVar[dict[str, str]]
    rank_dim: ClassVar[dict[str, int]]
    shared_keys: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def disk_key(cls, own: str) -> str:
        """The key of an own parameter in PEFT's format, after the module's name."""
        return cls.on_disk.get(own, own)

    @classmethod
    def is_described_by(cls, config: dict[str, Any]) -> bool:
        """Whether adapter_config.json, written by PEFT, is of this update."""
        return config.get("peft_type") == cls.peft_type

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The entries of adapter_config.json that are this update's own, as keyword arguments of `attach_`."""
        raise NotImplementedError

    @classmethod
    def to_peft(cls, layers: dict[str, AdapterLinear], rank: int) -> dict[str, Any]:
        """The entries of adapter_config.json that are this update's own; `rank` is what it says of most layers."""
        raise NotImplementedError

    @classmethod
    def shared_tensors(cls, layers: dict[str, AdapterLinear]) -> dict[str, Tensor]:
        """The tensors of `shared_keys`."""
        return {}
