"""LoRA+ (arXiv:2402.12354): B learns at `ratio` times the rate of A, in every group of matrices that holds some of both.

A magnitude keeps its own ratio (adapter.magnitude.learning_rate_ratio), modules trained whole keep the recipe's rate, and
weight decay stays as it is for all of them. PEFT's `create_loraplus_optimizer` differs in these three: it gives vectors B's
rate, embeddings a rate of their own, and no weight decay unless asked.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from dorakit.recipe.schema import OptimizerSection
from dorakit.training.groups import GroupSpec
from dorakit.training.rules.rule import Rule


class LoRAPlus(Rule):
    """Splits the groups that hold both an A and a B."""

    def __init__(self, model: nn.Module, settings: OptimizerSection):
        self._ratio = settings.lora_plus.ratio

    def groups(self, specs: list[GroupSpec]) -> list[GroupSpec]:
        """B's parameters in a group `<name>-B` of their own, behind the rest of theirs."""
        split: list[GroupSpec] = []
        for spec in specs:
            is_b = [name.endswith("lora_B") for name, _ in spec.members]
            parts = {
                key: tuple(member for member, b in zip(spec.members, is_b, strict=True) if b == (key == "B"))
                for key in ("A", "B")
            }
            split.append(replace(spec, members=parts["A"]))
            split.append(
                replace(spec, name=f"{spec.name}-B", members=parts["B"], rate_ratio=spec.rate_ratio * self._ratio)
            )
        return [spec for spec in split if spec.members]
