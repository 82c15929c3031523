"""The hooks around an optimizer step. Each does nothing unless a subclass overrides it."""

from __future__ import annotations

from torch import nn

from dorakit.methods import RULES
from dorakit.recipe.schema import OptimizerSection
from dorakit.training.groups import GroupSpec


class Rule:
    """A rule with no effect, which others derive from."""

    def __init__(self, model: nn.Module, settings: OptimizerSection):
        """`model` has its adapters attached."""

    def groups(self, specs: list[GroupSpec]) -> list[GroupSpec]:
        """Split or change the parameter groups."""
        return specs

    def on_gradients(self) -> None:
        """Rewrite the gradients in place: they are summed over micro-batches and ranks, and not clipped."""


def rule_of(model: nn.Module, settings: OptimizerSection) -> Rule:
    """The recipe's rule."""
    rule: Rule = Rule(model, settings) if settings.rule is None else RULES[settings.rule].load()(model, settings)
    return rule
