"""Out of memory is exit 4 with advice, wherever it happens."""

import pytest
import torch
from tiny_runs import tiny_recipe

from dorakit import evaluate, merge, quantize, train
from dorakit.errors import ModelError, ResourceError
from dorakit.evaluation.generation import answer_prompts
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format, NF4Linear

CPU = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), MemoryError()])
def test_while_a_base_is_quantized(monkeypatch, tmp_path, error):
    """Planted bug caught: transformers keeps the error to itself and the tensors are called missing."""

    def full(*_):
        raise error

    monkeypatch.setattr(NF4Linear, "from_dense", full)
    with pytest.raises(ResourceError, match=r"out of memory.*\n.*micro_batch_size=1") as caught:
        train(tiny_recipe(tmp_path, "qlora"), quiet=True)
    assert caught.value.exit_code == 4


def test_another_error_while_a_base_is_quantized(monkeypatch):
    """Planted bug caught: only transformers' own report of it is told, which does not name it."""

    def wrong(*_):
        raise ValueError("no such block")

    monkeypatch.setattr(NF4Linear, "from_dense", wrong)
    with pytest.raises(ModelError, match=r"tiny:llama cannot be loaded: model\.layers\..*: no such block"):
        load_base("tiny:llama", nf4=NF4Format())


@pytest.mark.parametrize(
    "place", ["dorakit.model.load.AutoModelForCausalLM.from_pretrained", "torch.nn.Linear.forward"]
)
@pytest.mark.parametrize("command", [evaluate, merge, quantize, lambda run: answer_prompts(str(run.path), ["a"])])
def test_in_a_command(monkeypatch, run_of, command, place):
    """While loading and while computing. Planted bugs caught: only training maps it; only CUDA's text is known."""
    run = run_of("lora")

    def full(*_, **__):
        raise RuntimeError(CPU)

    monkeypatch.setattr(place, full)
    with pytest.raises(ResourceError, match="out of memory") as caught:
        command(run)
    assert caught.value.exit_code == 4
