"""Train 20 steps of a tiny model and print `step loss grad_norm` a line. `python tests/golden/make.py` rewrites all files.

A commit that rewrites them says why the numbers move.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
MODES = ("full", "lora", "dora", "qlora", "qdora")


def losses(mode: str) -> list[str]:
    from dorakit import Recipe, train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        recipe = Recipe.from_yaml(
            str(HERE.parent.parent / "recipes" / "smoke" / f"{mode}.yaml"),
            [f"output_dir={place}/run", "training.max_steps=20", "training.epochs=3", "training.eval_every=0",
             "training.save_every=0", "model.dtype=float32", "optimizer.learning_rate=1e-2", f"data.root={HERE}",
             "data.train=[{path: rows.jsonl, format: completion}]"],
        )  # fmt: skip
        entries = [json.loads(line) for line in train(recipe, quiet=True).metrics_file.read_text().splitlines()]
    return [f"{e['step']} {e['train/loss']:.6f} {e['train/grad_norm']:.6f}" for e in entries if "train/loss" in e]


if __name__ == "__main__":
    for mode in sys.argv[1:] or MODES:
        (HERE / f"{mode}.txt").write_text("\n".join(losses(mode)) + "\n")
