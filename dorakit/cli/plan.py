"""`dorakit plan`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dorakit.cli import completion, options
from dorakit.memory import gib
from dorakit.terminal import json_line, printable
from dorakit.words import counted

if TYPE_CHECKING:
    from dorakit.plan.estimate import Estimate
    from dorakit.plan.schedule import Schedule

_TIME = "time: unknown without --tokens-per-second, the tok/s that a run prints: a few steps show it (--set training.max_steps=5)"
_COUNTS = {"parameters": "parameters", "trained_parameters": "  trained"}
_BYTES = {
    "base": "frozen base",
    "quant_constants": "  quantization constants",
    "trained": "trained parameters",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "paged": "  can leave the card",
    "activations": "activations",
    "logits": "logits and loss",
    "transients": "for a moment",
    "peak": "peak",
    "checkpoint": "a checkpoint, on disk",
}


def plan(
    recipe: Annotated[str, typer.Argument(help="Recipe to plan.", autocompletion=completion.recipes)],
    gpu: options.Gpu = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The base's config.json, where the base is not here.")
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-second", help="Speed of a training like this, as its lines show it (tok/s): gives the time."
        ),
    ] = None,
    nproc: Annotated[
        list[int] | None,
        typer.Option("--nproc", min=2, help="Also by so many processes, a device each. Repeatable."),
    ] = None,
    overrides: options.Set = None,
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no table.")] = False,
) -> None:
    """Say what a training takes, mode by mode, without reading weights: memory, steps, time, and what makes it fit.

    Examples:
        dorakit plan recipes/quickstart.yaml

        dorakit plan recipes/quickstart.yaml --gpu "RTX 4090" --tokens-per-second 4000

        dorakit plan recipes/smoke/dora.yaml --gpu 24GB --nproc 2 --nproc 8
    """
    from dorakit.recipe.schema import Recipe

    parsed = Recipe.from_yaml(recipe, overrides or [])

    from dorakit.plan.estimate import estimate

    found = estimate(parsed, gpu=gpu, config=config, tokens_per_s=tokens_per_second, ranks=nproc or [])
    if as_json:
        typer.echo(json_line(found.as_dict()))
        return
    if not quiet:
        show_table(found)
        show_shares(found)
    show_summary(found)


def show_shares(estimate: Estimate) -> None:
    """A line for each number of processes and each way of dividing the work, of the recipe's own mode."""
    if estimate.shares:
        typer.echo(f"{f'{estimate.mode}, MiB a process':24}{'base':>12}{'peak':>12}{'sent a step':>14}")
    for share in estimate.shares:
        numbers = "".join(
            f"{value / 2**20:{width},.1f}" for value, width in ((share.base, 12), (share.peak, 12), (share.sent, 14))
        )
        fits = "fits" if share.peak <= estimate.device.room else "does not fit"
        typer.echo(f"{f'{share.ranks} x {share.strategy}':24}{numbers}  {fits}")


def show_table(estimate: Estimate) -> None:
    """A column for each mode, the recipe's own with a star."""
    modes = {mode: entry.as_dict() for mode, entry in estimate.ledgers.items()}
    heads = [f"{mode}{'*' if mode == estimate.mode else ' '}" for mode in modes]
    typer.echo(f"{'millions':24}" + "".join(f"{head:>12}" for head in heads))
    for key, label in _COUNTS.items():
        typer.echo(f"{label:24}" + "".join(f"{values[key] / 1e6:11,.1f} " for values in modes.values()))
    typer.echo("MiB")
    for key, label in _BYTES.items():
        if any(values[key] for values in modes.values()):
            typer.echo(f"{label:24}" + "".join(f"{values[key] / 2**20:11,.1f} " for values in modes.values()))


def show_summary(estimate: Estimate) -> None:
    """The device, which modes fit, steps, tokens, time, and what to change."""
    device, own = estimate.device, estimate.ledgers[estimate.mode]
    fitting = [mode for mode in estimate.ledgers if estimate.mode_fits(mode)]
    lines = [
        f"a forward pass: {estimate.rows} x {estimate.tokens} tokens in {estimate.dtype}",
        f"{device.name}: {gib(device.memory)}, {gib(device.room)} of them for tensors; "
        f"fits: {', '.join(fitting) or 'no mode'}",
        *_progress(estimate.schedule, estimate.seconds),
    ]
    if not estimate.fits:
        lines.append(f"{estimate.mode} does not fit: {gib(own.peak)} at its peak, {gib(device.room)} are there")
        many = len(estimate.advice) > 1
        lines.append(
            f"it fits with{' any one of' if many else ''}:" if estimate.advice else "nothing planned here makes it fit"
        )
        lines += [f"  {advice}" for advice in estimate.advice]
    typer.echo(printable("\n".join(lines)))


def _progress(schedule: Schedule, seconds: float | None) -> list[str]:
    if schedule.documents is None:
        known = "" if schedule.steps is None else f"steps: at most {schedule.steps:,}; "
        return [f"{known or 'steps, '}tokens and time are unknown: {schedule.remark}"]
    most = "at most " if schedule.is_bound else ""
    lines = [
        f"steps: {most}{schedule.steps:,}, tokens: {most}{schedule.tokens:,}, of {most}{counted(schedule.documents, 'document')}"
    ]
    if schedule.remark:
        lines.append(f"rows counted as max_seq_len tokens each: {schedule.remark}")
    lines.append(_TIME if seconds is None else f"time: {most}{timedelta(seconds=round(seconds))}")
    return lines
