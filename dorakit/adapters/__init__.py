"""Adapter methods. A new one is a file beside lora.py and a line here."""

from dorakit.adapters.dora import DoRALinear
from dorakit.adapters.lora import LoRALinear

METHODS: dict[str, type[LoRALinear]] = {"lora": LoRALinear, "dora": DoRALinear}
