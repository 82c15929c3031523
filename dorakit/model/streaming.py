"""Streaming a checkpoint into NF4 layers: a transformers quantizer, so that transformers finds, renames and places the
tensors and each is quantized as it arrives. The whole dense model never exists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from dorakit.errors import ModelError
from dorakit.memory import return_freed_memory
from dorakit.model.arrival import Arrival
from dorakit.model.linear import layers_to_store
from dorakit.model.nf4 import NF4Linear

METHOD = "dorakit_nf4"


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


@register_quantization_config(METHOD)
class NF4Config(QuantizationConfigMixin):  # type: ignore[misc]
    """How from_pretrained is given an `Arrival`, which has an NF4Format."""

    def __init__(self, arrival: Arrival, **_: Any):
        assert arrival.nf4 is not None
        self.quant_method = METHOD
        self.arrival, self.form = arrival, arrival.nf4

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
        form = self.quantization_config.form
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
                layer = self.quantizer.quantization_config.arrival.packed(name, dense, placeholder.dtype)
            placeholder._is_hf_initialized = True  # type: ignore[assignment]
            self.quantizer.filled[owner] = layer
            return_freed_memory(dense.nbytes)
            result[name] = layer.weight
        return result


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
            self.hf_quantizer.quantization_config.arrival.take_over_(full_layer_name, layer)
        placeholder._is_hf_initialized = True  # type: ignore[assignment]
        self.hf_quantizer.filled[owner] = layer
        return {"weight": layer.weight}
