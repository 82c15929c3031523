"""dorakit: fine-tune language models from YAML recipes, with LoRA, DoRA, QLoRA and QDoRA as equals.

The whole public API is `__all__`. Names resolve on first use (PEP 562), so importing dorakit never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dorakit.adapters.attach import attach_ as attach_
    from dorakit.adapters.attach import merge_ as merge_
    from dorakit.adapters.peft_format import load_adapter as load_adapter
    from dorakit.adapters.peft_format import save_adapter as save_adapter
    from dorakit.errors import DorakitError as DorakitError
    from dorakit.evaluation.task import evaluate as evaluate
    from dorakit.export.merge import merge as merge
    from dorakit.export.quantize import quantize as quantize
    from dorakit.model.linear import dense_weight as dense_weight
    from dorakit.recipe.schema import Recipe as Recipe
    from dorakit.run import Run as Run
    from dorakit.training.start import train as train

__version__ = "0.1.0"

_HOME = {
    "Recipe": "dorakit.recipe.schema",
    "Run": "dorakit.run",
    "train": "dorakit.training.start",
    "evaluate": "dorakit.evaluation.task",
    "merge": "dorakit.export.merge",
    "quantize": "dorakit.export.quantize",
    "attach_": "dorakit.adapters.attach",
    "merge_": "dorakit.adapters.attach",
    "dense_weight": "dorakit.model.linear",
    "save_adapter": "dorakit.adapters.peft_format",
    "load_adapter": "dorakit.adapters.peft_format",
    "DorakitError": "dorakit.errors",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dorakit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
