"""`dorakit doctor`: what is broken on purpose is found, and named with what mends it."""

import json
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from dorakit import memory
from dorakit.cli.app import app
from dorakit.doctor import hardware, libraries, places
from dorakit.model.nf4 import NF4Linear


def examined(*arguments):
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments], catch_exceptions=False)
    report = json.loads(result.stdout)
    return result.exit_code, report["ok"], {f["about"]: f for f in report["findings"]}


def test_a_machine_that_runs_these_tests_can_train():
    """Dies of a check that calls a good machine broken, and of one that is no longer called."""
    code, ok, findings = examined()
    assert (code, ok) == (0, True), findings
    assert {"python", "versions", "torch", "bitsandbytes", "memory", "disk", "cache", "offline"} <= findings.keys()
    assert "NF4 round trip" in findings["bitsandbytes"]["says"]


def test_kernels_that_unpack_wrongly_fail(monkeypatch):
    """Dies of a round trip whose result nobody looks at: here the two weights of each byte are exchanged."""
    right = NF4Linear.dequantize
    monkeypatch.setattr(NF4Linear, "dequantize", lambda self: right(self).view(-1, 2).flip(1).reshape(64, 64))
    code, ok, findings = examined()
    assert (code, ok, findings["bitsandbytes"]["level"]) == (3, False, "fail")
    assert "pip install" in findings["bitsandbytes"]["mend"]


def test_a_library_that_breaks_is_a_finding(monkeypatch):
    """Dies of a check whose error ends the examination: what comes after it must still be said."""
    monkeypatch.setattr(hardware, "_cards", lambda: 1 / 0)
    code, _, findings = examined()
    assert code == 3 and findings["torch"]["level"] == "fail" and "ZeroDivisionError" in findings["torch"]["says"]
    assert findings["bitsandbytes"]["level"] == "ok"


@pytest.mark.parametrize(
    ("package", "version", "level", "says"),
    [
        ("transformers", "4.57.1", "fail", "dorakit needs <6,>=5.23.0, 4.57.1 is installed"),
        ("tokenizers", "0.1", "warn", "transformers needs"),
    ],
)
def test_versions_that_do_not_go_together(monkeypatch, package, version, level, says):
    """Dies of versions compared as texts, and of looking at dorakit's own requirements only."""
    right = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == package else right(name))
    found = {finding.about: finding for finding in libraries.check_versions()}
    assert found[package].level == level and says in found[package].says
    assert found[package].mend.startswith(f"pip install '{package}")


@pytest.mark.parametrize(("cuda", "level", "says"), [(None, "warn", "without CUDA"), ("13.0", "fail", "no device")])
def test_a_card_that_torch_does_not_use(monkeypatch, cuda, level, says):
    """Dies of a build of torch without CUDA that is called good beside a GPU."""
    monkeypatch.setattr(hardware, "_cards", lambda: ["NVIDIA GeForce RTX 4090, driver 550.54"])
    monkeypatch.setattr(torch, "version", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr("dorakit.model.load.pick_device", lambda: torch.device("cpu"))
    found = next(hardware.check_torch())
    assert found.level == level and says in found.says and "RTX 4090" in found.says and found.mend


def test_a_full_disk_and_offline_flags(monkeypatch):
    """Dies of limits compared the wrong way round, and of a flag that is set to 0 and taken for set."""
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 29))
    assert [finding.level for finding in places.check_disk()] == ["fail"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    found = next(places.check_offline())
    assert (found.level, found.mend) == ("warn", "unset HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert next(places.check_offline()).level == "ok"


def test_a_container_with_a_limit(monkeypatch):
    """Dies of reading the whole machine's memory where a container may use a part of it."""
    numbers = {"memory.max": 3 << 30, "memory.current": 1 << 30}
    monkeypatch.setattr(memory, "_number", lambda file: numbers[file.name])
    assert memory.host_memory()[1] == 3 << 30
    found = next(hardware.check_memory())
    assert found.level == "warn" and "3.0 GiB" in found.says
