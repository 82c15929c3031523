"""The benchmark runs, at toy size and without the peers that only its own environment has. Its figures mean nothing here."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "scripts" / "bench" / "bench.py"


def test_at_toy_size(tmp_path):
    """Dies if a contender counts other tokens than its peer does."""
    only = ["dorakit dora 1024 tokens", "PEFT loop dora", "dorakit likelihood", "profile dora", "profile lora"]
    command = [sys.executable, BENCH, "--ours", sys.executable, "--peers", sys.executable, "--output", tmp_path]
    done = subprocess.run(
        [*map(str, command), "--toy", "--rounds", "1", "--steps", "2", "--scaling", "--only", *only],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["contenders"]
    assert set(found) == set(only)
    assert found["dorakit dora 1024 tokens"][0]["tokens"] == found["PEFT loop dora"][0]["tokens"]
    assert all(contender[0]["peak_bytes"] > 1e8 for contender in found.values())
    assert [point["tokens"] for point in results["scaling"]["documents"]] == [1024, 2048]
    # What DoRA does more is element by element and low-rank; the base's products are LoRA's.
    lora, dora = (found[f"profile {mode}"][0]["profile"] for mode in ("lora", "dora"))
    assert lora.keys() == dora.keys() >= {"low-rank products", "products with the base and the head", "attention"}
    table = (tmp_path / "results.md").read_text()
    assert "| dorakit dora 1024 tokens |" in table and "| 2048 |" in table and "| low-rank products |" in table
