"""Which trained parameters an optimizer treats alike: the list that the optimizer, `plan` and the check for room share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dorakit.adapters.layer import MAGNITUDE
from dorakit.parallel.sharding import reshard_
from dorakit.recipe.schema import MagnitudeSection, OptimizerSection

# bitsandbytes hands its kernels the number of elements as a signed 32-bit integer. A multiple of its blocks of 256.
LARGEST_PIECE = 1 << 30
_SMALLEST_8BIT = 4096  # bitsandbytes' own limit, in elements: below it states stay float32


@dataclass(frozen=True)
class GroupSpec:
    """Parameters with one learning rate and one weight decay.

    Attributes:
        name: The key of their states in checkpoints.
        members: (name in the model, parameter), in model order.
        rate_ratio: Their learning rate as a multiple of the recipe's.
        weight_decay: Decoupled.
    """

    name: str
    members: tuple[tuple[str, nn.Parameter], ...]
    rate_ratio: float
    weight_decay: float

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The members without their names."""
        return [parameter for _, parameter in self.members]

    @property
    def piece_sizes(self) -> list[int]:
        """Elements of each flat buffer that the optimizer gets."""
        size = sum(parameter.numel() for parameter in self.parameters)
        return [min(LARGEST_PIECE, size - start) for start in range(0, size, LARGEST_PIECE)]


def group_specs(model: nn.Module, settings: OptimizerSection, magnitude: MagnitudeSection) -> list[GroupSpec]:
    """The groups of a model's trained parameters that are not empty.

    Magnitudes have their own rate and decay; other vectors (norms, biases, VeRA's) have no decay.
    """
    reshard_(model)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]

    def those(kind: str) -> tuple[tuple[str, nn.Parameter], ...]:
        return tuple((name, parameter) for name, parameter in trained if _kind(name, parameter) == kind)

    specs = [
        GroupSpec("matrices", those("matrices"), 1.0, settings.weight_decay),
        GroupSpec("magnitudes", those("magnitudes"), magnitude.learning_rate_ratio, magnitude.weight_decay),
        GroupSpec("vectors", those("vectors"), 1.0, 0.0),
    ]
    return [spec for spec in specs if spec.members]


def _kind(name: str, parameter: nn.Parameter) -> str:
    if parameter.dim() >= 2:
        return "matrices"
    return "magnitudes" if name.endswith(MAGNITUDE) else "vectors"


def state_bytes(optimizer: str, sizes: list[int]) -> int:
    """Bytes of an optimizer's states for pieces of these sizes, without making them."""
    averages = 0 if optimizer == "sgd" else 1 if optimizer == "lion_8bit" else 2
    if optimizer == "adamw":
        return sum(8 * size + 4 for size in sizes)  # and the number of steps
    if not optimizer.endswith("8bit"):
        return sum(4 * averages * size for size in sizes)
    # Small pieces stay float32; the others have a byte, a float32 absmax for each 256, and a table of 256.
    return sum(averages * (4 * size if size < _SMALLEST_8BIT else size + 4 * -(-size // 256) + 1024) for size in sizes)
