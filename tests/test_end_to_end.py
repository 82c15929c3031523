"""All five modes through the command line: train, stop, resume, eval, merge, quantize. One mode as real processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dorakit.cli import app
from dorakit.training import optim

ROOT = Path(__file__).parent.parent


@pytest.fixture
def dorakit(monkeypatch, capfd):
    """Run a command line in this process; returns what it printed on stdout and stderr."""

    def run(*arguments: object, expect: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["dorakit", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
            sys.exit(0)
        printed = capfd.readouterr()
        assert (ended.value.code or 0) == expect, printed.err
        assert "Traceback" not in printed.err
        return printed.out, printed.err

    return run


@pytest.mark.parametrize("mode", ["full", "lora", "dora", "qlora", "qdora"])
def test_the_whole_way(tmp_path, monkeypatch, dorakit, mode):
    """Each command on what the one before left; the merged directory loads in transformers and measures like the run."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        step = optim.Updater.step
        patch.setattr(
            optim.Updater, "step", lambda self, rate: (step(self, rate), os.kill(os.getpid(), signal.SIGTERM))
        )
        _, errors = dorakit("train", ROOT / f"recipes/smoke/{mode}.yaml", "--set", f"output_dir={run}", expect=143)
    assert f"dorakit train --resume {run}" in errors and "stopped after step 1 of 4" in errors
    facts = json.loads(dorakit("train", "--resume", run, "--json", "--quiet")[0])
    assert (facts["state"], facts["steps"]) == ("finished", 4)

    def measure(target: Path, *more: str) -> dict:
        return json.loads(dorakit("eval", target, "--json", "--quiet", *more)[0])

    before, after = measure(run, "--base"), measure(run)
    assert after["loss"] < before["loss"]
    assert list((run / "eval").glob("*.json"))
    if mode == "full":
        assert "nothing to merge" in dorakit("merge", run, expect=2)[1]
        whole = run / "model"
    else:
        dorakit("merge", run, "--quiet")
        receipt = json.loads((run / "merged" / "merge.json").read_text())["receipt"]
        assert receipt["supervised"]["kl"] < 1e-4 and receipt["all"]["kl"] < 1e-4
        whole = run / "merged"
    merged = measure(whole)
    assert merged["loss"] == pytest.approx(after["loss"], rel=1e-2)
    model = AutoModelForCausalLM.from_pretrained(whole)
    assert torch.isfinite(model(torch.arange(3, 20)[None]).logits).all()

    dorakit("quantize", run, "--quiet")
    facts = json.loads((run / "quantized" / "quantize.json").read_text())
    assert facts["bytes_after"] < facts["bytes_before"]
    assert measure(run / "quantized")["loss"] == pytest.approx(merged["loss"], rel=5e-2)


def test_as_a_process(tmp_path):
    """The console entry itself: exit code, one JSON object on stdout, plain lines on stderr."""
    command = [sys.executable, "-m", "dorakit", "train", "recipes/smoke/qdora.yaml", "--json"]
    result = subprocess.run(
        [*command, "--set", f"output_dir={tmp_path}/run"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert json.loads(result.stdout)["result"] == f"{tmp_path}/run/adapter"
    assert "step 4/4  loss" in result.stderr and "\x1b" not in result.stderr
