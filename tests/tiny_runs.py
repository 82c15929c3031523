"""Runs of a tiny model that tests evaluate, merge and quantize: three strong steps, so that the adapter matters."""

import json
from pathlib import Path

import torch

from dorakit import Recipe, Run, train

IDS = torch.arange(48).reshape(2, 24) * 7 % 250 + 3
_RECIPE = """\
version: 1
output_dir: {output}
model: {{base: "{base}", dtype: float32}}
adapter: {{mode: {mode}{adapter}}}
data:
  root: {root}
  train: [{{path: train.jsonl, format: completion}}]
  validation: {{rows: 6}}
  max_seq_len: 64
training: {{max_steps: 3, batch_size: 4, micro_batch_size: 4, eval_every: 0, save_every: 0, seed: 1, sample_rows: 0}}
optimizer: {{name: adamw, learning_rate: 3e-2, schedule: constant, warmup_ratio: 0.0}}
evaluation: {{path: test.jsonl, metric: exact_match, max_new_tokens: 6, batch_size: 3}}
merge: {{dtype: float32}}
"""


def write_rows(path: Path, count: int, start: int = 0) -> None:
    """Rows whose prompts have different lengths."""
    rows = [
        {"prompt": f"{'a' * (i % 5)} {i} plus {i + 2} =", "completion": f" {2 * i + 2}"}
        for i in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tiny_recipe(directory: Path, mode: str, overrides: tuple[str, ...] = (), *, base: str = "tiny:llama") -> Recipe:
    """A recipe with its data, under `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "train.jsonl", 24)
    write_rows(directory / "test.jsonl", 7, start=40)
    file = directory / f"{mode}.yaml"
    adapter = "" if mode == "full" else ", rank: 4, alpha: 16"
    text = _RECIPE.format(output=directory / f"run-{mode}", base=base, mode=mode, root=directory, adapter=adapter)
    file.write_text(text, encoding="utf-8")
    return Recipe.from_yaml(str(file), list(overrides))


def tiny_run(directory: Path, mode: str, overrides: tuple[str, ...] = (), *, base: str = "tiny:llama") -> Run:
    """A finished run."""
    return train(tiny_recipe(directory, mode, overrides, base=base), quiet=True)


def forget_digests(directory: Path) -> Path:
    """Leave an adapter or a model as versions wrote it that listed no files, so that a test may edit it."""
    receipt = directory / "dorakit.json"
    content = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({key: value for key, value in content.items() if key != "files"}))
    return directory


class Runs:
    """Finished runs, one per mode, trained when first asked for.."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.runs: dict[str, Run] = {}

    def __call__(self, mode: str) -> Run:
        if mode not in self.runs:
            self.runs[mode] = tiny_run(self.directory / mode, mode)
        return self.runs[mode]
