"""Adapted layers by name. A new one is a file beside lora.py and a line here."""

from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.lora import LoRALinear

UPDATES: dict[str, type[AdapterLinear]] = {"lora": LoRALinear}
