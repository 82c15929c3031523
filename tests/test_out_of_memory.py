"""Out of memory is exit 4 with advice, wherever it happens."""

import json
import subprocess
import sys

import pytest
import torch
from tiny_runs import tiny_recipe

from dorakit import evaluate, merge, quantize, train
from dorakit.errors import ModelError, ResourceError
from dorakit.evaluation.generation import answer_prompts
from dorakit.model.arrival import Arrival
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format, NF4Linear

CPU = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


ONEDNN = "could not create a primitive"
# The command line in a process that may have so many bytes of address space more than it has once its libraries are there.
LIMITED = """
import resource, sys
from pathlib import Path
more = int(sys.argv.pop(1))
if more >= 0:
    import dorakit.training.loop, dorakit.training.prepare, dorakit.model.load
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
else:
    size = 0
resource.setrlimit(resource.RLIMIT_AS, (size + abs(more),) * 2)
from dorakit.cli.app import main
main()
"""


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), RuntimeError(ONEDNN), MemoryError()],
)
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
        load_base("tiny:llama", arrival=Arrival(NF4Format()))


@pytest.mark.parametrize("place", ["transformers.AutoModelForCausalLM.from_pretrained", "torch.nn.Linear.forward"])
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


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (-(350 << 20), "failed to map segment"),  # too little to load torch's library
        (600 << 20, "allocate memory"),  # too little for the logits of a micro-batch
    ],
)
def test_under_a_limit_of_address_space(tmp_path, more, reason):
    """As under `ulimit -v`, in a real process. Planted bug caught: what the loader of libraries says is called a bug."""
    recipe = tiny_recipe(tmp_path, "lora", ())
    row = json.dumps({"prompt": "a", "completion": " word" * 800})
    (tmp_path / "train.jsonl").write_text("".join(f"{row}\n" for _ in range(260)), encoding="utf-8")
    settings = ["data.max_seq_len=4096", "training.batch_size=256", "training.micro_batch_size=256"]
    command = ["train", recipe.origin.path, "--json", "-q", *(word for text in settings for word in ("--set", text))]
    ended = subprocess.run([sys.executable, "-c", LIMITED, str(more), *command], capture_output=True, text=True)
    assert ended.returncode == 4, ended.stderr
    error = json.loads(ended.stdout)["error"]
    assert error["kind"] == "resource" and "out of memory" in error["message"] and reason in error["message"]
    assert "this is a bug" not in ended.stderr and error["hint"]
