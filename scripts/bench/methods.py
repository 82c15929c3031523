"""Seconds of a training step of every method over those of LoRA, in turn within one run, on SmolLM2-135M.

    python scripts/bench/methods.py [--rounds N] [METHOD ...]

METHOD is a recipe of recipes/methods without its ending; each is measured alone and under a magnitude, at the rank that its
recipe has, on 8 rows of 112 random tokens. A step is forward, backward and the optimizer. The ratio is the median of the
rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from dorakit import Recipe
from dorakit.build import build_model
from dorakit.data.batches import Batch
from dorakit.training.groups import group_specs
from dorakit.training.objectives.supervised import SupervisedLoss
from dorakit.training.optim import Updater
from dorakit.training.rules.rule import rule_of

ROOT = Path(__file__).resolve().parents[2]
ROWS, LENGTH, WARM_UP, TIMED = 8, 112, 1, 3


class Training:
    """A model, its optimizer, and a step of both."""

    def __init__(self, name: str, mode: str):
        recipe = Recipe.from_yaml(str(ROOT / "recipes" / "methods" / f"{name}.yaml"), [f"adapter.mode={mode}"])
        self.model = build_model(recipe).model
        rule = rule_of(self.model, recipe.optimizer)
        specs = rule.groups(group_specs(self.model, recipe.optimizer, recipe.adapter.magnitude))
        self.updater = Updater(specs, recipe.optimizer, rule)
        self.objective = SupervisedLoss(self.model).train()
        ids = torch.randint(0, 40000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids, "position_ids": torch.arange(LENGTH).expand_as(ids)}
        self.batch = Batch(inputs, ids, ROWS * LENGTH, ())

    def seconds(self) -> float:
        """Of the fastest of some steps."""
        times = []
        for number in range(WARM_UP + TIMED):
            start = time.perf_counter()
            self.updater.zero_grad()
            (self.objective(self.batch) / self.batch.num_units).backward()
            self.updater.clip(1.0)
            self.updater.step(1e-4)
            if number >= WARM_UP:
                times.append(time.perf_counter() - start)
        return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    all_of_them = sorted(path.stem for path in (ROOT / "recipes" / "methods").glob("*.yaml"))
    parser.add_argument("methods", nargs="*", default=[name for name in all_of_them if name not in ("lora", "dvora")])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    plain, dora = Training("lora", "lora"), Training("lora", "dora")
    dora_ratio = statistics.median(dora.seconds() / plain.seconds() for _ in range(asked.rounds))
    print(f"dora / lora: step {dora_ratio:.3f}", flush=True)
    print("method | step / LoRA's | under a magnitude / alone")
    for name in asked.methods:
        alone, magnitude = Training(name, "lora"), Training(name, "dora")
        rounds = [(plain.seconds(), alone.seconds(), magnitude.seconds()) for _ in range(asked.rounds)]
        step = statistics.median(a / p for p, a, _ in rounds)
        both = statistics.median(m / a for _, a, m in rounds)
        print(f"{name} | {step:.3f} | {both:.3f}", flush=True)


if __name__ == "__main__":
    main()
