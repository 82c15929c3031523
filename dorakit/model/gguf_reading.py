"""A .gguf file as transformers reads it: config, tokenizer, weights dequantized whole. The caller has checked the file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)

from dorakit.errors import DorakitError, ModelError, is_out_of_memory
from dorakit.model.quiet import quiet_libraries
from dorakit.model.tasks import CAUSAL_LM


def save_dequantized(path: Path, dtype: torch.dtype, directory: Path) -> None:
    """Write a file's model, dequantized to `dtype`, and its tokenizer into a directory as transformers saves them.

    Raises:
        ModelError: transformers cannot read the file.
    """
    with _alone(path) as alone, _bar_for_terminals():
        model = CAUSAL_LM.auto.from_pretrained(**alone, quantization_config=GgufConfig(dequantize=True), dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(**alone)
    save_on_any_rank(model, directory)
    tokenizer.save_pretrained(directory)


@contextlib.contextmanager
def _bar_for_terminals() -> Iterator[None]:
    """Within the block the bar of the conversion shows on a terminal only; it does not follow transformers' own switch."""
    bar = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=None)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar


def save_on_any_rank(model: PreTrainedModel, directory: Path) -> None:
    """As `save_pretrained`, which writes on the first rank of a group alone: a rank writes for the cache of its host."""
    model.should_save_on_this_rank = lambda is_main_process: True
    model.save_pretrained(directory)


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a file.

    Raises:
        ModelError: transformers cannot read it.
    """
    with _alone(path) as alone:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**alone)
    return tokenizer


def read_config(path: Path) -> PreTrainedConfig:
    """The sizes of a file's model.

    Raises:
        ModelError: transformers cannot read them.
    """
    with _alone(path) as alone:
        return AutoConfig.from_pretrained(**alone)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[dict[str, Any]]:
    """What names a file to transformers, in a directory of its own: config and tokenizer files beside it would be read."""
    with tempfile.TemporaryDirectory() as directory, header_read_quickly(), quiet_libraries():
        (Path(directory) / "model.gguf").symlink_to(path.resolve())
        try:
            yield {
                "pretrained_model_name_or_path": directory,
                "gguf_file": "model.gguf",
                "trust_remote_code": False,
            }
        except Exception as error:  # two libraries walk a file that may say anything
            if is_out_of_memory(error) or isinstance(error, DorakitError):
                raise  # not the file's fault; the caller says what to lower
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{path}: transformers cannot read this GGUF file: {reason}") from error


@contextlib.contextmanager
def header_read_quickly() -> Iterator[None]:
    """Within the block a GGUF file's header is parsed once: transformers asks three times, for config, weights and
    tokenizer. It also builds its table of tensor names anew for every module of the model. And each of a vocabulary's
    strings is a slice of the file, which numpy makes several times slower from a memmap than from an array.
    """
    import gguf

    own = gguf.GGUFReader, gguf.get_tensor_name_map

    class PlainReader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> npt.NDArray[np.uint8]:
            return self._data

        @data.setter
        def data(self, mapped: npt.NDArray[np.uint8]) -> None:
            self._data = mapped.view(np.ndarray)

    gguf.GGUFReader, gguf.get_tensor_name_map = lru_cache(PlainReader), lru_cache(own[1])
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = own
