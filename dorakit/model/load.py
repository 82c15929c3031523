"""From the text `model.base` to a frozen model and its tokenizer, on this machine's device."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dorakit.errors import ModelError, ResourceError, is_out_of_memory
from dorakit.model.attention import use_own_attention_
from dorakit.model.names import select
from dorakit.model.nf4 import NF4Format
from dorakit.model.source import Source, resolve
from dorakit.model.streaming import ConversionFailed, NF4Config

# transformers' own bars and advice would interleave with ours.
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@dataclass
class Base:
    """A frozen base model.

    `revision` is the resolved commit of a hub id; `identity` maps source files to sha256; `notes` are lines that the
    caller prints and records.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str
    identity: dict[str, str]
    notes: list[str] = field(default_factory=list)


def load_base(
    base: str,
    *,
    revision: str = "main",
    dtype: str = "auto",
    attention: str = "auto",
    nf4: NF4Format | None = None,
) -> Base:
    """Load a causal language model, frozen, on this machine's device.

    With `nf4`, linear layers are quantized as their tensors arrive, so that the dense model never exists. A directory
    that bitsandbytes' NF4 wrote is read into the same layers, with or without `nf4`.

    Args:
        base: Hub id, directory, .gguf file, `pkg:<package>/<file>` or `tiny:<architecture>`.
        revision: Branch, tag or commit; hub ids only.
        dtype: auto, bfloat16, float16 or float32.
        attention: transformers' attn_implementation, or auto: its own choice; where that is sdpa, document by
            document (model/attention.py).
        nf4: How to quantize; None leaves weights as they are.

    Raises:
        ModelError: No such model, or not one that can be trained on.
        ResourceError: The hub cannot be reached.
    """
    compute_dtype = pick_dtype(dtype)
    source = resolve(base, revision=revision, dtype=compute_dtype)
    config = _config(base, source)
    prequantized = _is_prequantized(base, config)
    form = nf4 or (NF4Format(skip_modules=tuple(_skipped(config))) if prequantized else None)
    if prequantized:
        config.quantization_config = {"quant_method": "dorakit_nf4", "skip_modules": _skipped(config)}
    arguments: dict[str, Any] = {} if form is None else {"quantization_config": NF4Config(form)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers warns that a quantization config is given twice
            model, report = AutoModelForCausalLM.from_pretrained(
                source.directory,
                config=config,
                dtype=compute_dtype,
                attn_implementation=None if attention == "auto" else attention,
                device_map={"": str(pick_device())},
                use_safetensors=True,
                output_loading_info=True,
                **arguments,
            )
    except (ValueError, KeyError, ImportError, OSError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise  # not the model's fault; the caller says what to lower
        reason = str(error).strip().splitlines()[0]
        if "attention implementation" in reason:
            reason = f"its architecture has no {attention} attention\n  set model.attention: eager"
        raise ModelError(f"{base} cannot be loaded: {reason}") from error
    except ConversionFailed as failed:
        if is_out_of_memory(failed.error) or isinstance(failed.error, (ModelError, ResourceError)):
            raise failed.error from None
        raise ModelError(f"{base} cannot be loaded: {failed.tensor}: {failed.error}") from failed.error
    if absent := sorted(report["missing_keys"]):
        raise ModelError(f"{base}: the files lack {len(absent)} of the model's tensors, the first is {absent[0]}")
    if nf4 is not None:
        present = [name for name, _ in model.named_modules()]
        select(present, [name for name in nf4.skip_modules if name != "lm_head"], setting="quantization.skip_modules")
    if attention == "auto":
        use_own_attention_(model)
    notes = []
    if unused := sorted(report["unexpected_keys"]):
        notes.append(f"{base}: {len(unused)} tensors in the files are not part of the model, the first is {unused[0]}")
    model.requires_grad_(False)
    return Base(model, load_tokenizer(base, source=source), source.revision, source.identity, notes)


def load_tokenizer(base: str, *, revision: str = "main", source: Source | None = None) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with a padding token that is never trained on.

    Raises:
        ModelError: The base has none.
    """
    source = source or resolve(base, revision=revision, dtype=pick_dtype("auto"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.directory)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"{base}: no usable tokenizer: {str(error).strip().splitlines()[0]}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{base}: the tokenizer has no end-of-text token, so a model could not learn to stop")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding carries no label and no attention, so any token will do
    return tokenizer


def pick_device() -> torch.device:
    """CUDA where there is a device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str) -> torch.dtype:
    """The dtype of a name; auto is bfloat16 where the hardware computes in it and float32 elsewhere."""
    if name != "auto":
        chosen = getattr(torch, name)
        assert isinstance(chosen, torch.dtype)
        return chosen
    if pick_device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Without these instructions a CPU emulates bfloat16, slower than float32. torch offers no public question.
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def _config(base: str, source: Source) -> Any:
    try:
        stated = json.loads((Path(source.directory) / "config.json").read_text(encoding="utf-8"))
        if "auto_map" in stated:
            raise ModelError(f"{base}: config.json names code of its own (auto_map); such code is never run")
        return AutoConfig.from_pretrained(source.directory)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"{base}: config.json cannot be used: {str(error).strip().splitlines()[0]}") from error


def _is_prequantized(base: str, config: Any) -> bool:
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return False
    stated = stated if isinstance(stated, dict) else stated.to_dict()
    method = stated.get("quant_method", "unknown")
    if method == "bitsandbytes" and stated.get("load_in_4bit") and stated.get("bnb_4bit_quant_type") == "nf4":
        return True
    raise ModelError(f"{base} is already quantized ({method}); only bitsandbytes' NF4 can be read")


def _skipped(config: Any) -> list[str]:
    stated = config.quantization_config
    stated = stated if isinstance(stated, dict) else stated.to_dict()
    return list(stated.get("llm_int8_skip_modules") or stated.get("skip_modules") or ["lm_head"])
