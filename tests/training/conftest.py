from pathlib import Path

import pytest

from dorakit.recipe.schema import Recipe

ROWS = [
    "One row to read.",
    "A second row, which is a good deal longer than the first one was.",
    "Third.",
    "The fourth row tells of rows before it, and of rows that come after it.",
]


@pytest.fixture
def make_recipe(tmp_path: Path):
    """A function that writes a small recipe for tiny:llama and loads it with overrides."""
    lines = [f'{{"prompt": "Say {i}: ", "completion": "{ROWS[i % 4]} {i * i}"}}' for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    path = tmp_path / "small.yaml"
    path.write_text(
        """
version: 1
model: {base: tiny:llama, architecture: llama, dtype: float32}
adapter: {mode: dora, rank: 4, alpha: 8}
data:
  train: [{path: rows.jsonl, format: completion}]
  validation: {rows: 8}
  max_seq_len: 256
training: {epochs: 1, max_steps: 6, batch_size: 8, micro_batch_size: 4, log_every: 1, eval_every: 0, save_every: 0,
  sample_rows: 0}
optimizer: {name: adamw, learning_rate: 1e-2, schedule: cosine, warmup_steps: 1}
"""
    )

    def make(*overrides: str) -> Recipe:
        return Recipe.from_yaml(str(path), [f"output_dir={tmp_path}/runs/{{name}}", *overrides])

    return make
