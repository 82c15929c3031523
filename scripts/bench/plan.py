"""What `dorakit plan` says beside what a training step holds: the table of docs/plan.md.

OMP_NUM_THREADS=1 python scripts/bench/plan.py [--modes lora dora] [--tokens 128 512]     (needs use_smollm2; five minutes)

A process for each mode: base, adapters, optimizer and one step on rows of the full length, every token supervised. Activations
are the storages that autograd saves, each once, without parameters. `resident` is the peak of the process within the step, its
libraries and the pages of the base's mapped file included; beside it the planned peak with its reserve.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from dorakit import Recipe
from dorakit.build import build_model
from dorakit.data.batches import Batch
from dorakit.model.load import pick_dtype
from dorakit.plan.device import this_machine
from dorakit.plan.ledger import ledger, micro_batch
from dorakit.plan.skeleton import find_config
from dorakit.training.groups import group_specs
from dorakit.training.objectives.supervised import SupervisedLoss
from dorakit.training.optim import Updater
from dorakit.training.trained import trained_tensors

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
FIGURES = ("base", "trained", "optimizer", "activations")


def supervised(ids: torch.Tensor, positions: torch.Tensor) -> Batch:
    """Rows whose every token is supervised."""
    return Batch({"input_ids": ids, "position_ids": positions}, ids, ids.numel(), ())


class Training:
    """A recipe's model and optimizer, for steps on rows of any length."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.model = build_model(recipe).model
        self.loss = SupervisedLoss(self.model, pick_dtype(recipe.model.dtype)).train()
        self.updater = Updater(group_specs(self.model, recipe.optimizer, recipe.adapter.magnitude), recipe.optimizer)
        if recipe.training.gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})

    def step(self, tokens: int) -> dict[str, int]:
        """Take a step; the bytes of what is frozen, trained, kept by the optimizer, and saved for backward."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        kept: dict[int, torch.UntypedStorage] = {}  # alive, or an address would be given out twice

        def see(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage
            return tensor

        rows, _ = micro_batch(self.recipe)
        vocabulary = min(40_000, self.model.config.get_text_config().vocab_size)
        ids = torch.arange(rows * tokens).reshape(rows, tokens) * 7 % (vocabulary - 3) + 3
        self.updater.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            total = self.loss(supervised(ids, torch.arange(tokens).repeat(rows, 1)))
        saved = sum(storage.nbytes() for storage in kept.values())
        kept.clear()
        (total / ids.numel()).backward()
        self.updater.clip(1.0)
        self.updater.step(1e-3)
        return {
            "base": sum(tensor.nbytes for tensor in tensors if not tensor.requires_grad),
            "trained": sum(tensor.nbytes for tensor in trained_tensors(self.model).values()),
            "gradients": sum(gradient.nbytes for gradient in self.updater.gradients),
            "optimizer": sum(tensor.nbytes for tensor in self.updater.state()[0].values()),
            "activations": saved,
        }


def planned(recipe: Recipe) -> dict[str, int]:
    """The same figures from the plan, and its peak."""
    entry = ledger(recipe, find_config(recipe), dtype=pick_dtype(recipe.model.dtype), on_card=False)
    return {
        "base": entry.base,
        "trained": entry.trained,
        "optimizer": entry.optimizer,
        "activations": entry.activations + entry.logits,
        "peak": entry.peak,
    }


def one_mode(mode: str, lengths: list[int]) -> None:
    """A line of JSON for each length."""
    own = [f"adapter.mode={mode}", "training.micro_batch_size=2"]
    training = Training(Recipe.from_yaml(str(RECIPE), own))
    for tokens in lengths:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
        found = training.step(tokens)
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        plan = planned(Recipe.from_yaml(str(RECIPE), [*own, f"data.max_seq_len={tokens}"]))
        print(json.dumps({"mode": mode, "tokens": tokens, "found": found, "resident": peak, "plan": plan}), flush=True)


def main() -> None:
    """Measure each mode in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", nargs="+", default=["full", "lora", "dora", "qlora", "qdora"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--one", action="store_true", help="measure the one mode here, and print JSON")
    asked = parser.parse_args()
    if asked.one:
        one_mode(asked.modes[0], asked.tokens)
        return
    reserve = this_machine().reserve
    print("MB, planned / measured")
    print(f"| mode | tokens | {' | '.join(FIGURES)} | peak with reserve / resident |")
    print("| --- | ---: |" + " ---: |" * (len(FIGURES) + 1))
    for mode in asked.modes:
        command = [sys.executable, __file__, "--one", "--modes", mode, "--tokens", *map(str, asked.tokens)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for line in map(json.loads, done.stdout.splitlines()):
            plan, found = line["plan"], line["found"]
            cells = [compared(plan[name], found[name]) for name in FIGURES]
            cells.append(compared(plan["peak"] + reserve, line["resident"]))
            print(f"| {line['mode']} | 2 x {line['tokens']} | {' | '.join(cells)} |", flush=True)


def compared(plan: int, found: int) -> str:
    """Both in MB, and by how much the plan is off."""
    return f"{plan / 1e6:,.1f} / {found / 1e6:,.1f} ({plan / found - 1:+.1%})" if found else f"{plan} / {found}"


if __name__ == "__main__":
    main()
