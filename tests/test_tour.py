"""docs/tour.md, run as it stands there, in an empty directory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOUR = (ROOT / "docs/tour.md").read_text(encoding="utf-8")
KEYS = ["customer", "item", "quantity", "price", "city"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tour(tmp_path):
    """Dies if a command of the page fails, if llama.cpp does not answer from the file as trained, or if the LoRA is not of the
    form that vLLM takes. Planted bug caught: the GGUF file holds the base's weights (llama.cpp then answers in prose).
    """
    rows = (ROOT / "recipes/data/orders.train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "orders.jsonl").write_text("".join(rows[:160]), encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    programs = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", TOUR, re.DOTALL | re.MULTILINE)
    said = []
    for kind, text in blocks:
        done = subprocess.run([*programs[kind], text], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        said.append(done.stdout)
        print(done.stdout)
    (answer,) = [out for (kind, _), out in zip(blocks, said, strict=True) if kind == "python"]
    assert list(json.loads(answer.strip().splitlines()[-1])) == KEYS
    lora = tmp_path / "runs/orders-dora/lora"
    config = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["use_dora"] is False and config["lora_alpha"] == config["r"] and config["modules_to_save"] is None
    receipt = json.loads((lora / "export.json").read_text(encoding="utf-8"))
    assert receipt["rank"] == config["r"]
    assert (tmp_path / "both.html").stat().st_size > 10_000
