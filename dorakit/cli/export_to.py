"""`dorakit export`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from dorakit.cli import completion, options
from dorakit.cli.options import Onto
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
_READ_BY = {"--type": ("gguf",), "--onto": ("merged", "gguf", "lora"), "--max-kl": ("lora",), "--max-rank": ("lora",)}
_MAX_RANK = 256


def export(
    run: Annotated[str, typer.Argument(help="A finished run.", autocompletion=completion.runs)],
    to: Annotated[
        To,
        typer.Option(
            "--to",
            help="peft: the adapter; merged: a plain model directory; gguf: one file for llama.cpp and Ollama; lora: a plain "
            "LoRA of any adapter, for servers that know no DoRA.",
        ),
    ],
    output: Annotated[Path | None, options.output("RUN/peft, RUN/merged, RUN/gguf or RUN/lora")] = None,
    type_: Annotated[
        GGUFType | None, typer.Option("--type", help="With gguf: type of the matrices.", show_default="f16")
    ] = None,
    onto: options.OntoBase = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            min=0.0,
            help="With lora: largest KL to the live adapter, in nats a token.",
            show_default="0.001 in float32, 0.003 in 16 bits",
        ),
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option("--max-rank", min=1, help="With lora: largest rank.", show_default=str(_MAX_RANK)),
    ] = None,
    as_json: options.Json = False,
    quiet: options.QuietPath = False,
) -> None:
    """Write a run in a form that servers load, with a model card, and say what serves it.

    Examples:
        dorakit export runs/latest --to gguf --type q8_0

        dorakit export runs/latest --to merged
    """
    given = {"--type": type_, "--onto": onto, "--max-kl": max_kl, "--max-rank": max_rank}
    for option, value in given.items():
        if value is not None and to.value not in _READ_BY[option]:
            raise UsageError(f"{option} is read with --to {' or '.join(_READ_BY[option])}, not with --to {to.value}")
    directory, content, serve = _export(run, to, output, type_, onto, max_kl, max_rank, quiet)
    upload = f"hf upload USER/NAME {typed(directory)}"
    if as_json:
        typer.echo(json_line({"output": str(directory), **content, "serve": serve, "upload": upload}))
        return
    file = content.get("file")
    if quiet:
        typer.echo(printable(str(directory / file if file else directory)))
        return
    typer.echo(printable(f"exported: {directory / file if file else directory}"))
    if file:
        typer.echo(f"size: {content['bytes'] / 1e6:.1f} MB, {content['type']}")
    typer.echo(printable(f"card: {directory / 'README.md'}; to publish it: {upload}"))
    for line in serve:
        typer.echo(printable(f"serve it: {line}"))


def _export(
    run: str,
    to: To,
    output: Path | None,
    type_: GGUFType | None,
    onto: Onto | None,
    max_kl: float | None,
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
            max_kl=max_kl,
            max_rank=_MAX_RANK if max_rank is None else max_rank,
            quiet=quiet,
        )
    return made.directory, made.content, made.serve
