"""Rotary positions as a GGUF file describes them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dorakit.errors import shown
from dorakit.export.gguf_vocabulary import NotWritable

# Of yarn: what both sides know, with the values that llama.cpp takes where the file is silent.
_YARN = {"beta_fast": 32.0, "beta_slow": 1.0}
_KNOWN = {
    "default": set(),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings", *_YARN},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
}


def head_dim(config: PreTrainedConfig) -> int:
    """Columns of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def add_rope(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> tuple[npt.NDArray[np.float32] | None, list[str]]:
    """Write how positions are rotated.

    Returns:
        What each frequency is divided by, (head_dim / 2,), where the file holds that as a tensor (llama3); and notes.

    Raises:
        NotWritable: llama.cpp has no such scaling, or another one under that name.
    """
    rope: dict[str, Any] = {k: v for k, v in (config.rope_parameters or {}).items() if v is not None}
    kind, theta = str(rope.pop("rope_type", "default")), rope.pop("rope_theta", 10000.0)
    rotated = rope.pop("partial_rotary_factor", 1.0)
    extra = set(rope) - _KNOWN.get(kind, set())
    if kind not in _KNOWN or extra or rotated != 1.0:
        told = shown(f"{kind} with {', '.join(sorted(extra))}" if extra else kind)
        told = f"{rotated} of each head rotated" if rotated != 1.0 else told
        raise NotWritable(
            f"positions are scaled by {told}, which cannot be written as GGUF here; known are {', '.join(_KNOWN)}"
        )
    columns = head_dim(config)
    writer.add_rope_dimension_count(columns)
    writer.add_rope_freq_base(theta)
    if kind == "default":
        return None, []
    if kind == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
        plain = 1.0 / theta ** (np.arange(0, columns, 2, dtype=np.float64) / columns)
        return (plain / scaled.double().numpy()).astype(np.float32), []
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(
            int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        )
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast", _YARN["beta_fast"]))
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow", _YARN["beta_slow"]))
    return None, []
