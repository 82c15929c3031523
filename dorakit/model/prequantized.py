"""What config.json says of a model that is stored quantized: bitsandbytes' NF4 is read, everything else refused by name."""

from __future__ import annotations

from typing import Any

from dorakit.errors import ModelError


def is_nf4(config: dict[str, Any]) -> bool:
    """Whether a config.json states bitsandbytes' NF4."""
    stated = config.get("quantization_config")
    return (
        isinstance(stated, dict)
        and stated.get("quant_method") == "bitsandbytes"
        and bool(stated.get("load_in_4bit"))
        and stated.get("bnb_4bit_quant_type") == "nf4"
    )


def refuse_quantized(base: str, config: dict[str, Any]) -> None:
    """Refuse what is stored quantized and not as NF4.

    Args:
        base: For the message.
        config: What config.json holds.

    Raises:
        ModelError: With the method's name.
    """
    stated = config.get("quantization_config")
    if stated is None or is_nf4(config):
        return
    method = stated.get("quant_method", "unknown") if isinstance(stated, dict) else f"quantization_config: {stated!r}"
    if method == "bitsandbytes":
        kind = "8 bit" if stated.get("load_in_8bit") else stated.get("bnb_4bit_quant_type")
        method = f"bitsandbytes, {kind}"
    raise ModelError(
        f"{base} is already quantized ({method}); only bitsandbytes' NF4 can be read\n"
        "  name the 16-bit model that it was made from"
    )


def skipped_modules(config: dict[str, Any]) -> list[str]:
    """The linear layers that an NF4 checkpoint left as they were.

    Raises:
        ModelError: What stands there is no list of names.
    """
    stated = config["quantization_config"]
    skipped = stated.get("llm_int8_skip_modules") or stated.get("skip_modules") or ["lm_head"]
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise ModelError(f"config.json: llm_int8_skip_modules is {skipped!r}, expected a list of module names")
    return skipped
