"""A program that calls dorakit finds itself as it was: random states, switches of torch, the libraries' voice, signals."""

import importlib
import logging
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from made_harness_task import write_harness_task
from tiny_runs import tiny_recipe

from dorakit import evaluate, merge, quantize, train
from dorakit.errors import DorakitError
from dorakit.model.load import load_base
from dorakit.plan.estimate import estimate

VOICE = transformers.utils.logging


def states():
    """What a call could leave changed, as values that compare."""
    hub = importlib.import_module("huggingface_hub.utils.tqdm")
    settings = torch.utils.deterministic
    return {
        "random": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()],
        "deterministic": torch.get_deterministic_debug_mode(),
        "filled": settings.fill_uninitialized_memory,
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "verbosity": VOICE.get_verbosity(),
        "bars": (VOICE.is_progress_bar_enabled(), dict(hub.progress_bar_states)),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU)],
    }


@pytest.fixture
def own_states(monkeypatch):
    """States that nobody has by chance; each is another one than dorakit works with."""
    before = states()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = True
    VOICE.set_verbosity(logging.INFO)
    VOICE.enable_progress_bar()
    importlib.import_module("huggingface_hub.utils.tqdm").disable_progress_bars("somebody.else")
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    yield states()
    signal.signal(signal.SIGTERM, handler)
    torch.set_deterministic_debug_mode(before["deterministic"])
    torch.utils.deterministic.fill_uninitialized_memory = before["filled"]
    VOICE.set_verbosity(before["verbosity"])


def assert_as(before):
    after = states()
    assert [name for name in before if after[name] != before[name]] == []


CALLS = {
    "train": lambda run, directory: train(tiny_recipe(directory, "dora"), quiet=True),
    "train in full": lambda run, directory: train(tiny_recipe(directory, "full"), quiet=True),
    "evaluate": lambda run, directory: evaluate(run, quiet=True),
    "evaluate by the harness": lambda run, directory: evaluate(
        run, task="lm-eval:made_choice", data=str(write_harness_task(directory / "tasks")), quiet=True
    ),
    "merge": lambda run, directory: merge(run, quiet=True),
    "quantize": lambda run, directory: quantize(run, quiet=True),
    "plan": lambda run, directory: estimate(run.recipe, gpu="24GB"),
    "load": lambda run, directory: load_base("tiny:llama", dtype="float32"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_gives_everything_back(call, run_of, tmp_path, own_states):
    """Planted bugs caught: transformers silenced at an import; the seed of a step left behind, which makes the caller's
    next draws the same after every training; `warn_only` lost; the harness's seeds left behind.
    """
    run = run_of("qlora")
    torch.manual_seed(3)  # a training that is begun above could leave the seed that one here leaves
    before = states()
    CALLS[call](run, tmp_path)
    assert_as(before)


def test_a_call_that_fails_does_too(own_states, tmp_path):
    """Dies if only the way without an error restores them."""
    recipe = tiny_recipe(tmp_path, "dora", ("model.added_tokens=[x]", "optimizer.learning_rate=1e30"))
    with pytest.raises(DorakitError):
        train(recipe, quiet=True)
    assert_as(own_states)


def test_the_callers_draws_go_on_as_without_the_call(own_states, tmp_path):
    """Dies if a training seeds the program around it."""
    expected = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    random.setstate(own_states["random"])
    np.random.seed(2)
    torch.manual_seed(3)
    train(tiny_recipe(tmp_path, "lora"), quiet=True)
    assert [random.random(), float(np.random.rand()), float(torch.rand(()))] == expected


def test_an_import_changes_nothing():
    """Dies if a module silences transformers for the whole program. In a process anew, where nothing is imported yet."""
    code = (
        "import transformers as t\nv = t.utils.logging\nbefore = v.get_verbosity(), v.is_progress_bar_enabled()\n"
        "import dorakit, dorakit.model.load, dorakit.cli.app\n[getattr(dorakit, name) for name in dorakit.__all__]\n"
        "print(before, (v.get_verbosity(), v.is_progress_bar_enabled()))"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS")
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{(logging.WARNING, True)} {(logging.WARNING, True)}"
