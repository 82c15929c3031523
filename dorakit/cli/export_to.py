"""`dorakit export`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import typer

from dorakit.cli.evaluate import JSON, QUIET
from dorakit.cli.export import Onto
from dorakit.errors import UsageError
from dorakit.terminal import json_line, printable, typed


class To(enum.StrEnum):
    """Form of an export."""

    peft = "peft"
    merged = "merged"
    gguf = "gguf"
    lora = "lora"


class GGUFType(enum.StrEnum):
    """Type of the matrices in a GGUF file."""

    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"
    q4_0 = "q4_0"


# Options that only some forms read.
_READ_BY = {"--type": ("gguf",), "--onto": ("merged", "gguf", "lora"), "--max-lost": ("lora",), "--max-rank": ("lora",)}
_MAX_RANK = 256


def export(
    run: str = typer.Argument(help="A finished run."),
    to: To = typer.Option(
        ...,
        "--to",
        help="peft: the adapter; merged: a plain model directory; gguf: one file for llama.cpp and Ollama; lora: a plain LoRA of "
        "any adapter, for servers that know no DoRA.",
    ),
    output: str | None = typer.Option(
        None, "--output", help="Directory to write; RUN/peft, RUN/merged, RUN/gguf or RUN/lora."
    ),
    type_: GGUFType | None = typer.Option(None, "--type", help="With gguf: type of the matrices; f16."),
    onto: Onto | None = typer.Option(
        None, "--onto", help="Not with peft: the base that the adapter was trained on, or the original weights."
    ),
    max_lost: float | None = typer.Option(
        None,
        "--max-lost",
        min=0.0,
        max=1.0,
        help="With lora: largest share of what was learned that the rank may leave out; 0.002.",
    ),
    max_rank: int | None = typer.Option(None, "--max-rank", min=1, help=f"With lora: largest rank; {_MAX_RANK}."),
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Write a run in a form that servers load, with a model card, and say what serves it.

    Examples:
        dorakit export runs/latest --to gguf --type q8_0

        dorakit export runs/latest --to merged
    """
    given = {"--type": type_, "--onto": onto, "--max-lost": max_lost, "--max-rank": max_rank}
    for option, value in given.items():
        if value is not None and to.value not in _READ_BY[option]:
            raise UsageError(f"{option} is read with --to {' or '.join(_READ_BY[option])}, not with --to {to.value}")
    directory, content, serve = _export(run, to, output, type_, onto, max_lost, max_rank, quiet)
    upload = f"hf upload USER/NAME {typed(directory)}"
    if as_json:
        typer.echo(json_line({"output": str(directory), **content, "serve": serve, "upload": upload}))
        return
    file = content.get("file")
    typer.echo(printable(f"exported: {directory / file if file else directory}"))
    if file:
        typer.echo(f"size: {content['bytes'] / 1e6:.1f} MB, {content['type']}")
    typer.echo(printable(f"card: {directory / 'README.md'}; to publish it: {upload}"))
    for line in serve:
        typer.echo(printable(f"serve it: {line}"))


def _export(
    run: str,
    to: To,
    output: str | None,
    type_: GGUFType | None,
    onto: Onto | None,
    max_lost: float | None,
    max_rank: int | None,
    quiet: bool,
) -> tuple[Path, dict[str, Any], list[str]]:
    """Directory, content of export.json, and what serves it."""
    if to is To.peft:
        from dorakit.export.outputs import export_peft

        made = export_peft(run, output=output, quiet=quiet)
    elif to is To.merged:
        from dorakit.export.outputs import export_merged

        made = export_merged(run, output=output, onto=onto.value if onto else None, quiet=quiet)
    elif to is To.gguf:
        from dorakit.export.to_gguf import export_gguf

        made = export_gguf(
            run, output=output, outtype=type_.value if type_ else "f16", onto=onto.value if onto else None, quiet=quiet
        )
    else:
        from dorakit.export.outputs import export_lora

        made = export_lora(
            run,
            output=output,
            onto=onto.value if onto else None,
            max_lost=max_lost,
            max_rank=_MAX_RANK if max_rank is None else max_rank,
            quiet=quiet,
        )
    return made.directory, made.content, made.serve
