"""Streaming a checkpoint into NF4 layers: a transformers quantizer, so that transformers finds, renames and places the
tensors and each is quantized as it arrives. The whole dense model never exists.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from dorakit.errors import ModelError, ResourceError
from dorakit.memory import return_freed_memory
from dorakit.model.linear import layers_to_store
from dorakit.model.nf4 import NF4Format, NF4Linear
from dorakit.model.shares import Share, keep_rows_, share_of_dense

METHOD = "dorakit_nf4"

_disk: ContextVar[Path | None] = ContextVar("_disk", default=None)
_share: ContextVar[Share | None] = ContextVar("_share", default=None)


@contextlib.contextmanager
def packed_weights_on_disk(directory: Path) -> Iterator[None]:
    """Keep the weights that models loaded meanwhile on a CPU pack into NF4 in mapped files instead of in memory.

    For work that goes through a model once. The files take room on the disk of `directory` as long as the model lives, but
    lose their names as soon as they are mapped.
    """
    token = _disk.set(directory)
    try:
        yield
    finally:
        _disk.reset(token)


@contextlib.contextmanager
def shared_out(share: Share) -> Iterator[None]:
    """Let models loaded meanwhile be on the CPU, dense weights in their mapped files, and make and keep only a rank's rows of
    each NF4 weight: no rank ever holds a whole model. All ranks must load alike.
    """
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def is_shared_out() -> bool:
    """Whether `shared_out` is in force."""
    return _share.get() is not None


def _mapped(packed: Tensor, directory: Path) -> Tensor:
    try:
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            # Not a hole in a file: a full disk would then be a signal in the midst of a copy.
            os.posix_fallocate(file.fileno(), 0, packed.nbytes)
            stored = torch.from_file(file.name, shared=True, size=packed.numel(), dtype=packed.dtype)
    except OSError as error:
        raise ResourceError(
            f"{directory} cannot hold the packed weights meanwhile: {error.strerror}\n  give an --output on another disk"
        ) from error
    return stored.view(packed.shape).copy_(packed)


class ConversionFailed(BaseException):
    """A tensor that could not be taken over. Not an Exception: transformers would swallow that and leave the tensor out."""

    def __init__(self, tensor: str, error: Exception):
        super().__init__(str(error))
        self.tensor = tensor
        self.error = error


@contextlib.contextmanager
def _told(tensor: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ConversionFailed(tensor, error) from error


def _check_shape(tensor: str, shape: Sequence[int], layer: NF4Linear) -> None:
    """Refuse another shape than the model's: where a quantizer takes a tensor over, transformers compares none."""
    if tuple(shape) != (layer.out_features, layer.in_features):
        raise ModelError(
            f"{tensor} has shape {tuple(shape)}, and config.json makes it {(layer.out_features, layer.in_features)}"
        )


def _check_finite(tensor: str, values: Tensor) -> None:
    """`values` are those that a NaN or an infinity anywhere in the tensor shows in: norms of its rows, absmax of blocks."""
    if not values.isfinite().all():
        raise ModelError(f"{tensor} holds NaN or infinite values; nothing can be computed with such weights")


@register_quantization_config(METHOD)
class NF4Config(QuantizationConfigMixin):  # type: ignore[misc]
    """What from_pretrained is given. `compute_dtype` is the dtype that a pre-quantized weight dequantizes to."""

    def __init__(self, form: NF4Format | None = None, skip_modules: list[str] | None = None, **_: Any):
        self.quant_method = METHOD
        self.form = form or NF4Format(skip_modules=tuple(skip_modules or ["lm_head"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: transformers prints and stores this."""
        return {"quant_method": METHOD, "skip_modules": list(self.form.skip_modules)}


@register_quantizer(METHOD)
class NF4Quantizer(HfQuantizer):  # type: ignore[misc]
    """Replaces linear layers by NF4Linear before loading and fills them while loading.

    Reads dense checkpoints and bitsandbytes' serialized NF4 checkpoints (`pre_quantized`). While transformers loads, the
    model holds placeholders: it overwrites their non-persistent buffers at the end. The filled layers take their places
    after that.
    """

    requires_calibration = False

    def __init__(self, quantization_config: NF4Config, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.filled: dict[str, NF4Linear] = {}

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        form: NF4Format = self.quantization_config.form
        for name, dense in layers_to_store(model, form.skip_modules):
            with torch.device("meta"):
                layer = NF4Linear(
                    dense.in_features,
                    dense.out_features,
                    block_size=form.block_size,
                    dtype=dense.weight.dtype,
                    bias=None if dense.bias is None else dense.bias.detach(),
                )
            model.set_submodule(name, layer)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        for name, layer in self.filled.items():
            placeholder = model.get_submodule(name)
            assert isinstance(placeholder, NF4Linear)
            layer.bias = placeholder.bias
            model.set_submodule(name, layer)
        self.filled.clear()
        # transformers refuses to train or save a model that says it is quantized; here the base is simply frozen.
        setattr(model, "is_quantized", False)  # noqa: B010
        del model.hf_quantizer
        del model.config.quantization_config  # as if it had never been there: saving must not write it
        return model

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        """Weights of NF4 layers; biases and everything else load as they are."""
        owner = param_name.removesuffix(".weight")
        return owner != param_name and isinstance(model.get_submodule(owner), NF4Linear)

    def get_quantize_ops(self) -> ConversionOps:
        """Quantizes a dense tensor on arrival."""
        return _Quantize(self)

    serialized_names = {  # noqa: RUF012
        "weight": [
            "weight",
            "weight.nested_absmax",
            "weight.nested_quant_map",
            "weight.quant_map",
            "weight.absmax",
            "weight.quant_state.bitsandbytes__nf4",
        ]
    }

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        """Collects the tensors that bitsandbytes wrote for one weight."""
        return {"deserialize": _Deserialize}

    def is_serializable(self) -> bool:
        """Saving goes through export/quantize.py."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Adapters train on it."""
        return True


class _Quantize(ConversionOps):  # type: ignore[misc]
    def __init__(self, quantizer: NF4Quantizer):
        self.quantizer = quantizer

    def convert(self, input_dict: dict[str, Any], model: nn.Module | None = None, **_: Any) -> dict[str, nn.Parameter]:
        assert model is not None
        result = {}
        for name, value in input_dict.items():
            owner = name.rpartition(".")[0]
            placeholder = model.get_submodule(owner)
            assert isinstance(placeholder, NF4Linear)
            dense: Tensor = value[0] if isinstance(value, list) else value
            with _told(name):
                _check_shape(name, dense.shape, placeholder)
                layer = self._quantized(dense, placeholder.dtype)
                _check_finite(name, layer.original_row_norm)
                if (directory := _disk.get()) is not None and layer.weight.device.type == "cpu":
                    layer.weight.data = _mapped(layer.weight, directory)
            placeholder._is_hf_initialized = True  # type: ignore[assignment]
            self.quantizer.filled[owner] = layer
            return_freed_memory(dense.nbytes)
            result[name] = layer.weight
        return result

    def _quantized(self, dense: Tensor, dtype: torch.dtype) -> NF4Linear:
        form: NF4Format = self.quantizer.quantization_config.form
        if (share := _share.get()) is None:
            return NF4Linear.from_dense(dense.to(dtype), None, form)
        return share_of_dense(dense, form, share, dtype)


class _Deserialize(ConversionOps):  # type: ignore[misc]
    def __init__(self, quantizer: NF4Quantizer):
        # Under this name transformers looks for it, and then leaves the dtypes of the tensors to `convert`.
        self.hf_quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> _Deserialize:
        # transformers copies a converter per weight; the layers must all reach the one quantizer.
        return _Deserialize(self.hf_quantizer)

    def convert(
        self,
        input_dict: dict[str, Any],
        model: nn.Module | None = None,
        full_layer_name: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        assert model is not None and full_layer_name is not None
        tensors = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        owner = full_layer_name.rpartition(".")[0]
        placeholder = model.get_submodule(owner)
        if not isinstance(placeholder, NF4Linear):  # a weight that was never quantized
            (weight,) = tensors.values()
            return {"weight": weight.to(model.get_parameter(full_layer_name).dtype)}
        with _told(full_layer_name):
            layer = NF4Linear.from_quantized(tensors.pop("weight"), tensors)
            _check_shape(full_layer_name, (layer.out_features, layer.in_features), placeholder)
            _check_finite(full_layer_name, layer.nested_absmax if layer.is_double_quantized else layer.absmax)
            if (share := _share.get()) is not None:
                keep_rows_(layer, share)
        placeholder._is_hf_initialized = True  # type: ignore[assignment]
        self.hf_quantizer.filled[owner] = layer
        return {"weight": layer.weight}
