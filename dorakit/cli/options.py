"""Options that several commands share: one declaration each, so that a name means the same wherever it is offered.

A default that depends on the recipe or the run is given as `show_default`, which help prints as `[default: (...)]`.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dorakit.cli import completion
from dorakit.errors import UsageError

if TYPE_CHECKING:
    from dorakit.evaluation.sampling import Sampling


class Onto(enum.StrEnum):
    """Base to merge into."""

    trained = "trained"
    original = "original"


class Dtype(enum.StrEnum):
    """Dtype of merged weights."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def output(default: str) -> Any:
    """`--output` of a command that writes to `default` where none is given."""
    return typer.Option("--output", "-o", help="Write the result here.", show_default=default)


def onto(default: str) -> Any:
    """`--onto` of a command that merges."""
    return typer.Option(
        "--onto",
        help="Base to merge into: the weights that the adapter was trained on, or the original ones.",
        show_default=default,
    )


def dtype(default: str) -> Any:
    """`--dtype` of a command that merges."""
    return typer.Option("--dtype", help="Dtype of the merged weights.", show_default=default)


def sampling(max_new_tokens: int, temperature: float, seed: int | None) -> Sampling:
    """The three options that say how an answer is chosen, as one.

    Raises:
        UsageError: A temperature that is no number, or a seed for draws that do not take place.
    """
    from dorakit.evaluation.sampling import Sampling

    if not math.isfinite(temperature):
        raise UsageError(f"--temperature {temperature}: expected a number from 0")
    if seed is not None and temperature == 0:
        raise UsageError("--seed: at temperature 0 nothing is drawn\n  set --temperature, or leave --seed out")
    return Sampling(max_new_tokens, temperature, 42 if seed is None else seed)


Target = Annotated[
    str,
    typer.Argument(
        help="A run, a PEFT adapter directory, a model directory (merged, quantized), a hub id, pkg:... or tiny:...",
        autocompletion=completion.runs,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Recipe that names the rows and the metric, where TARGET is no run.",
        autocompletion=completion.recipes,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a value of the recipe: section.key=value. Repeatable.",
        autocompletion=completion.settings,
    ),
]
Twin = Annotated[
    bool, typer.Option("--twin", help="Swap the base for a tiny random one, absent data for made-up rows.")
]
Nproc = Annotated[
    int | None, typer.Option("--nproc", min=1, help="Run in so many processes on this host, one per GPU.")
]
AcceptChange = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-change",
        help="Go on though this changed: a key of the recipe, data, base or template, or a file of a result. Repeatable.",
    ),
]
BaseModel = Annotated[
    str | None, typer.Option("--base-model", help="Base of an adapter directory, instead of the one it names.")
]
Gpu = Annotated[
    str | None,
    typer.Option("--gpu", help='A card ("RTX 4090") or its memory ("24GB").', show_default="this machine"),
]
Compare = Annotated[bool, typer.Option("--compare", help="Show the base's answer beside the adapter's.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[
    float,
    typer.Option("--temperature", min=0.0, help="0 is greedy; higher draws more freely, from all tokens."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Seed of the draws, at a temperature above 0.", show_default="42")
]
System = Annotated[str | None, typer.Option("--system", help="System message before the first prompt.")]
Limit = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most this many rows.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, messages on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
QuietPath = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the path of the result on stdout and nothing else.")
]
