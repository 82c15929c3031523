"""The names under which all trackers get the figures of metrics.jsonl: those that other toolkits use too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GIB = 2**30
# By the name in metrics.jsonl: the name in trackers, and what the figure is divided by.
_NAMES: dict[str, tuple[str, int]] = {
    "train/loss": ("train/loss", 1),
    "train/learning_rate": ("train/lr", 1),
    "train/grad_norm": ("train/grad_norm", 1),
    "train/tokens": ("train/tokens", 1),
    "train/tokens_per_s": ("train/tokens_per_s", 1),
    "train/memory_bytes": ("train/mem_gib", _GIB),
    "validation/loss": ("eval/loss", 1),
}


def figures_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one entry of metrics.jsonl by their names in trackers; what has none there is left out."""
    found = {}
    for key, (name, divisor) in _NAMES.items():
        if isinstance(value := entry.get(key), (int, float)):
            found[name] = value / divisor
    return found
