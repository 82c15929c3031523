"""`dorakit plan`."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from dorakit.errors import UsageError
from dorakit.terminal import json_line, printable

# GiB, as the makers state them.
_CARDS = {
    "RTX 3090": 24,
    "RTX 4090": 24,
    "RTX 5090": 32,
    "T4": 16,
    "L4": 24,
    "A10": 24,
    "A100": 80,
    "H100": 80,
    "H200": 141,
}


def plan(
    recipe: str = typer.Argument(help="Recipe to plan."),
    gpu: str | None = typer.Option(None, "--gpu", help='A card ("RTX 4090") or its memory ("24GB"): does it fit?'),
    config: Path | None = typer.Option(None, "--config", help="The base's config.json, where the base is not here."),
    set_: list[str] | None = typer.Option(None, "--set", help="Override a value: section.key=value. May be repeated."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print nothing but the answer to --gpu."),
) -> None:
    """Say what a training takes, mode by mode, from the base's config alone: no weights are read."""
    from dorakit.recipe.schema import MODES, Recipe

    room = None if gpu is None else _memory(gpu)
    own = Recipe.from_yaml(recipe, set_ or [])

    import torch

    from dorakit.model.load import pick_dtype
    from dorakit.plan.ledger import ledger
    from dorakit.plan.skeleton import find_config
    from dorakit.training.device import can_page

    found = find_config(own, config)
    auto_on_card = room is not None and own.model.dtype == "auto"
    dtype = torch.bfloat16 if auto_on_card else pick_dtype(own.model.dtype)
    pages = room is not None or can_page()
    modes = {
        mode: ledger(Recipe.from_yaml(recipe, [*(set_ or []), f"adapter.mode={mode}"]), found, dtype=dtype, pages=pages)
        for mode in MODES
    }
    rows = {mode: entry.as_dict() for mode, entry in modes.items()}
    fits = {} if room is None else {mode: entry.peak <= 0.92 * room for mode, entry in modes.items()}
    if as_json:
        typer.echo(
            json_line({"mode": own.adapter.mode, "dtype": str(dtype), "modes": rows, "room": room, "fits": fits})
        )
        return
    if not quiet:
        typer.echo(f"{'bytes':20}" + "".join(f"{mode:>16}" for mode in MODES))
        for name in rows[own.adapter.mode]:
            if name != "mode":
                typer.echo(f"{name:20}" + "".join(f"{rows[mode][name]:16,}" for mode in MODES))
    if room is not None:
        # A share stays with CUDA's context and with holes.
        typer.echo(printable(f"{gpu}: fits " + (", ".join(mode for mode in MODES if fits[mode]) or "no mode")))
        if not fits[own.adapter.mode]:
            typer.echo("smaller: --set training.micro_batch_size=1 --set training.gradient_checkpointing=true")


def _memory(gpu: str) -> int:
    """Bytes of a card, or of a size."""
    if size := re.fullmatch(r"(\d+)\s*G(i?)B", gpu.strip(), re.IGNORECASE):
        return int(size[1]) << 30
    if gpu.upper().strip() in _CARDS:
        return _CARDS[gpu.upper().strip()] << 30
    raise UsageError(f"--gpu {gpu!r} is not known; give its memory, as 24GB, or one of {', '.join(_CARDS)}")
