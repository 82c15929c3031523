"""The network: used only where something of the hub is named, and offline not even there."""

import logging
import os
import socket
import subprocess
import sys
import threading

import datasets
import huggingface_hub
import pytest
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from dorakit import evaluate, merge, quantize, train
from dorakit.cli.app import app
from dorakit.data.sources import read_rows
from dorakit.errors import ResourceError
from dorakit.evaluation.generation import answer_prompts
from dorakit.model import hub
from dorakit.model.source import resolve
from dorakit.plan.estimate import estimate
from dorakit.recipe.schema import SourceSection

# A package that fetches native code, and a processor for which bitsandbytes asks it to.
_KERNELS = """
def get_kernel(*arguments, **options):
    open("asked", "a").close()
    raise RuntimeError("no network")
"""
_IMPORTED = """
import sys
from importlib.abc import MetaPathFinder

class Processor(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "bitsandbytes.backends.cpu.ops":
            sys.modules["bitsandbytes.functional"].has_avx512bf16 = lambda: True

sys.meta_path.insert(0, Processor())
import {}
import kernels  # is there again
"""


@pytest.mark.parametrize(("module", "asks"), [("bitsandbytes", True), ("dorakit.training.optim", False)])
def test_bitsandbytes_fetches_no_kernel(tmp_path, module, asks):
    """Its import does where the package `kernels` is installed, which a machine may have for something else."""
    (tmp_path / "kernels.py").write_text(_KERNELS)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code = [sys.executable, "-c", _IMPORTED.format(module)]
    subprocess.run(code, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    assert (tmp_path / "asked").exists() == asks


@pytest.fixture
def calls(monkeypatch):
    """Every attempt to reach another machine; each fails as if there were no network."""
    made = []

    def refuse(*arguments, **_):
        made.append(arguments[-1] if len(arguments) > 1 else arguments)
        raise OSError(101, "Network is unreachable")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return made


@pytest.fixture
def online(monkeypatch):
    """As if nobody had said offline; the tests run with HF_HUB_OFFLINE."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_nothing_is_fetched_for_what_is_here(calls, online, tmp_path):
    """From the recipe to the merged and quantized model, without a name of the hub in it."""
    run = train(tiny_recipe(tmp_path, "dora"), quiet=True)
    evaluate(run, quiet=True)
    answer_prompts(str(run.path), ["one?"], max_new_tokens=2, quiet=True)
    merged = merge(run, quiet=True)
    quantize(merged, output=tmp_path / "quantized", recipe=run.recipe, quiet=True)
    assert calls == []


def test_a_name_of_the_hub_is_asked_for_unless_offline(calls, online, monkeypatch):
    with pytest.raises(ResourceError, match="owner/model is not in the hub cache and the hub cannot be reached: "):
        resolve("owner/model")
    assert calls
    calls.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ResourceError, match=r"owner/model is not in the hub cache .*: HF_HUB_OFFLINE is set, or --offline"
    ):
        resolve("owner/model")
    with pytest.raises(ResourceError, match=r"owner/rows .*HF_HUB_OFFLINE is set(.|\n)*unset HF_HUB_OFFLINE"):
        read_rows(SourceSection(path="owner/rows", format="text"), "/")
    assert calls == []


def test_the_option_sets_what_the_libraries_read(monkeypatch):
    """Before they are imported; `test_the_command_line_starts_without_torch` holds that none is."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    assert CliRunner().invoke(app, ["schema"]).exit_code == 0
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"]) == ("0", "0")
    assert CliRunner().invoke(app, ["--offline", "schema"]).exit_code == 0
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"]) == ("1", "1")


@pytest.mark.parametrize("what", ["base", "config", "rows"])
@pytest.mark.parametrize("network", ["refuses", "is silent"])
def test_a_hub_that_is_not_there_is_tried_once(calls, online, monkeypatch, tmp_path, capfd, what, network):
    """Planted bugs caught: the hub client's own retries, half a minute of them; a wait for a silent hub without a line
    that says so; a line of the hub client for each of its tries, before the one message that says what to do.
    """
    recipe = tiny_recipe(tmp_path, "dora")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": "owner/model"})})
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # as it was when datasets was imported
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: calls.append("a retry"))
    monkeypatch.setattr(hub, "_SILENT", 0.05)
    monkeypatch.setattr(hub, "_LONGEST", 0.4)
    if network == "is silent":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: threading.Event().wait(5))
        monkeypatch.setattr(socket, "create_connection", lambda *_, **__: threading.Event().wait(5))
    lines: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    try:
        with pytest.raises(ResourceError, match=r"huggingface\.co: (no answer in|.*unreachable)"):
            if what == "base":
                resolve("owner/model")
            elif what == "config":
                estimate(recipe, gpu="24GB")
            else:
                read_rows(SourceSection(path="owner/rows", format="text"), str(tmp_path))
        level = logger.level
        logger.warning("as before")
    finally:
        logger.removeHandler(handler)
    assert lines == ["as before"] and level != logging.ERROR
    assert "a retry" not in calls and not huggingface_hub.constants.HF_HUB_OFFLINE
    assert ("waiting for huggingface.co, which is asked for" in capfd.readouterr().err) == (network == "is silent")
