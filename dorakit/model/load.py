"""From the text `model.base` to a frozen model and its tokenizer, on this machine's device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.distributed.fsdp import FSDPModule
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dorakit.errors import DorakitError, ModelError, PeerLost, ResourceError, is_out_of_memory, listed
from dorakit.model.arrival import AS_STORED, Arrival
from dorakit.model.attention import use_own_attention_
from dorakit.model.configs import read_object
from dorakit.model.names import select
from dorakit.model.nf4 import NF4Format
from dorakit.model.prequantized import is_nf4, skipped_modules
from dorakit.model.quiet import quiet_libraries
from dorakit.model.source import Source, local_directory, resolve
from dorakit.model.streaming import METHOD, ConversionFailed, NF4Config
from dorakit.model.tasks import CAUSAL_LM
from dorakit.words import did_you_mean

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tekken.json", "*.model")


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


@dataclass(frozen=True)
class BaseFiles:
    """A base whose files are here and checked, with its tokenizer, before its weights are read.

    `dtype` is the one to compute in; `notes` are as in Base.
    """

    name: str
    source: Source
    config: Any
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    notes: list[str]


def load_base(
    base: str, *, revision: str = "main", dtype: str = "auto", attention: str = "auto", arrival: Arrival = AS_STORED
) -> Base:
    """Load a causal language model, frozen, on this machine's device: `find_base`, then `load_weights`."""
    return load_weights(find_base(base, revision=revision, dtype=dtype), attention=attention, arrival=arrival)


@quiet_libraries()
def find_base(base: str, *, revision: str = "main", dtype: str = "auto") -> BaseFiles:
    """Find, fetch or convert a base and read everything of it but the weights.

    Args:
        base: Hub id, directory, .gguf file, `pkg:<package>/<file>` or `tiny:<architecture>`.
        revision: Branch, tag or commit; hub ids only.
        dtype: auto, bfloat16, float16 or float32.

    Raises:
        ModelError: No such model, or not one that can be trained on.
        ResourceError: The hub cannot be reached.
    """
    compute_dtype = pick_dtype(dtype)
    source = resolve(base, revision=revision, dtype=compute_dtype)
    config = _config(base, source)
    tokenizer, notes = _tokenizer(base, source)
    return BaseFiles(base, source, config, tokenizer, compute_dtype, notes)


@quiet_libraries()
def load_weights(found: BaseFiles, *, attention: str = "auto", arrival: Arrival = AS_STORED) -> Base:
    """Load a base that was found, frozen, on this machine's device.

    Where `arrival` asks for NF4, linear layers are quantized as their tensors arrive, so that the dense model never exists.
    A directory that bitsandbytes' NF4 wrote is read into the same layers, whether it asks or not. With a share, float32 is
    left to be made of a rank's rows: the model comes in the dtype of its files.

    Args:
        found: The base; its tokenizer becomes the model's.
        attention: transformers' attn_implementation, or auto: its own choice; where that is sdpa, document by
            document (model/attention.py).
        arrival: What the weights go through.

    Raises:
        ModelError: Not a model that can be trained on.
        ResourceError: There is no room for packed weights.
    """
    base, source, config, nf4 = found.name, found.source, found.config, arrival.nf4
    if is_nf4(stated := read_object(source.directory / "config.json")):
        arrival = replace(arrival, nf4=NF4Format(skip_modules=tuple(skipped_modules(stated))))
        config.quantization_config = {"quant_method": METHOD, "arrival": arrival}
    arguments: dict[str, Any] = {} if arrival.nf4 is None else {"quantization_config": NF4Config(arrival)}
    # What float32 would copy stays in its files, until a rank has only its rows.
    stays = arrival.share is not None and arrival.nf4 is None and found.dtype == torch.float32
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers warns that a quantization config is given twice
            model, report = CAUSAL_LM.auto.from_pretrained(
                source.directory,
                config=config,
                dtype="auto" if stays else found.dtype,
                attn_implementation=None if attention == "auto" else attention,
                device_map={"": str(pick_device()) if arrival.share is None else "cpu"},
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are told of below, by name
                output_loading_info=True,
                **arguments,
            )
    except Exception as error:  # a config that fits its weights may still say anything
        if is_out_of_memory(error) or isinstance(error, DorakitError):
            raise  # not the model's fault; the caller says what to lower
        raise ModelError(f"{base} cannot be loaded: {_reason(error, config, attention)}") from error
    except ConversionFailed as failed:
        if isinstance(failed.error, ModelError):
            raise ModelError(f"{base}: {failed.error}") from None
        if is_out_of_memory(failed.error) or isinstance(failed.error, (ResourceError, PeerLost)):
            raise failed.error from None
        raise ModelError(f"{base} cannot be loaded: {failed.tensor}: {failed.error}") from failed.error
    _check_complete(base, report)
    _check_finite(base, model)
    if nf4 is not None:
        present = [name for name, _ in model.named_modules()]
        select(present, [name for name in nf4.skip_modules if name != "lm_head"], setting="quantization.skip_modules")
    if attention == "auto":
        use_own_attention_(model)
    if unused := sorted(report["unexpected_keys"]):
        found.notes.append(
            f"{base}: {len(unused)} tensors in the files are not part of the model, the first is {unused[0]}"
        )
    model.requires_grad_(False)
    return Base(model, found.tokenizer, source.revision, source.identity, found.notes)


@quiet_libraries()
def load_tokenizer(base: str, *, revision: str = "main") -> PreTrainedTokenizerBase:
    """The base's tokenizer, with a padding token that is never trained on.

    Raises:
        ModelError: The base has none.
    """
    return _tokenizer(base, resolve(base, revision=revision, dtype=pick_dtype("auto")))[0]


@quiet_libraries()
def saved_tokenizer(directory: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was saved in a directory with an adapter; None where none was.

    Raises:
        ModelError: It cannot be used.
    """
    if not (directory / "tokenizer_config.json").is_file():
        return None
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # what a stranger's tokenizer.json may hold raises all kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{directory}: the tokenizer cannot be used: {reason}") from None
    return found


@quiet_libraries()
def local_tokenizer(base: str, *, revision: str = "main") -> PreTrainedTokenizerBase | None:
    """The base's tokenizer, without a download and without reading the weights; None where it takes a download.

    Raises:
        ModelError: There is no such model here, or it has no tokenizer.
    """
    with local_directory(base, revision=revision) as directory:
        return None if directory is None else _tokenizer(base, Source(directory, "", {}))[0]


def pad_(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give a tokenizer that pads with nothing the end-of-text token for it; the line that says so."""
    if tokenizer.pad_token_id is not None:
        return []
    tokenizer.pad_token = tokenizer.eos_token  # padding carries no label and no attention, so any token will do
    return [f"the tokenizer has no padding token: {tokenizer.eos_token} is used, which is not trained where it pads"]


def _tokenizer(base: str, source: Source) -> tuple[PreTrainedTokenizerBase, list[str]]:
    if not any(path for pattern in _TOKENIZERS for path in source.directory.glob(pattern)):
        raise ModelError(
            f"{base}: no tokenizer: {source.directory} has none of {', '.join(_TOKENIZERS)}\n"
            "  put the model's own there: what it was trained with is the only one that fits"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.directory, trust_remote_code=False)
    except Exception as error:  # what a stranger's tokenizer.json may hold raises all kinds, bare Exception among them
        raise ModelError(f"{base}: no usable tokenizer: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{base}: the tokenizer has no end-of-text token, so a model could not learn to stop\n"
            "  more: docs/faq.md#it-never-stops"
        )
    return tokenizer, pad_(tokenizer)


def pick_device() -> torch.device:
    """CUDA where there is a device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs: not where its parameters are while FSDP keeps those in the host's memory."""
    return pick_device() if isinstance(model.base_model, FSDPModule) else model.device


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
    path = source.directory / "config.json"
    kind = read_object(path).get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        meant = did_you_mean(str(kind), CONFIG_MAPPING.keys())
        raise ModelError(
            f"{path}: model_type is {kind!r}, which transformers {transformers.__version__} does not know\n"
            f"  {meant}{' ' if meant else ''}a newer transformers may know it"
        )
    try:
        return AutoConfig.from_pretrained(source.directory, trust_remote_code=False)
    except Exception as error:  # sizes that are texts, say: what they break differs from family to family
        raise ModelError(f"{path} cannot be used: {_first_line(error)}") from error


def _reason(error: Exception, config: Any, attention: str) -> str:
    """What transformers says, in a line and in our terms where we know better."""
    reason = _first_line(error)
    if "attention implementation" in reason:
        return f"its architecture has no {attention} attention\n  set model.attention: eager"
    if "Unrecognized configuration class" in reason:
        return (
            f"its architecture, {config.model_type} in config.json, is no causal language model\n"
            "  known to work: llama, mistral, qwen2, qwen3, gemma2, phi3"
        )
    return reason


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or "no reason given").splitlines()[0]
    return line if isinstance(error, (ValueError, OSError, RuntimeError)) else f"{type(error).__name__}: {line}"


def _check_complete(base: str, report: dict[str, Any]) -> None:
    problems = [
        f"{name} has shape {tuple(shape)}, expected {tuple(expected)}"
        for name, shape, expected in sorted(report["mismatched_keys"])
    ]
    problems += [f"{name} is not there" for name in sorted(report["missing_keys"])]
    if problems:
        raise ModelError(
            f"{base}: config.json and the weights do not fit, {len(problems)} tensors:\n  {listed(problems)}"
        )


def _check_finite(base: str, model: PreTrainedModel) -> None:
    """Refuse weights that are not numbers. A sum that is one costs a pass through memory and nothing else.

    NF4 layers look at theirs when they are filled.
    """
    for name, parameter in model.named_parameters():
        # A sum in float16 overflows early, hence the second look.
        if parameter.is_floating_point() and not parameter.sum().isfinite() and not parameter.isfinite().all():
            raise ModelError(f"{base}: {name} holds NaN or infinite values; nothing can be computed with such weights")
