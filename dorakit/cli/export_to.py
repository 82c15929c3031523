"""`dorakit export`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dorakit.cli import completion, options
from dorakit.cli.export import show_moved
from dorakit.cli.options import Dtype, Onto
from dorakit.errors import UsageError
from dorakit.terminal import json_line, printable, typed

if TYPE_CHECKING:
    from dorakit.export.outputs import Exported


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
_READ_BY = {
    "--type": ("gguf",),
    "--onto": ("merged", "gguf", "lora"),
    "--dtype": ("merged", "gguf"),
    "--max-lost": ("lora",),
    "--max-rank": ("lora",),
}
_MAX_RANK = 256


def export(
    target: Annotated[
        str,
        typer.Argument(
            help="A finished run, or a PEFT adapter directory (with --output).", autocompletion=completion.runs
        ),
    ],
    to: Annotated[
        To,
        typer.Option(
            "--to",
            help="peft: the adapter; merged: a plain model directory; gguf: one file for llama.cpp and Ollama; lora: a plain "
            "LoRA of any adapter, for servers that know no DoRA.",
        ),
    ],
    output: Annotated[Path | None, options.output("of a run RUN/peft, RUN/merged, RUN/gguf or RUN/lora")] = None,
    type_: Annotated[
        GGUFType | None, typer.Option("--type", help="With gguf: type of the matrices.", show_default="f16")
    ] = None,
    onto: Annotated[Onto | None, options.onto("that of RUN/merged, or the recipe's")] = None,
    dtype: Annotated[Dtype | None, options.dtype("that of RUN/merged, or the recipe's")] = None,
    max_lost: Annotated[
        float | None,
        typer.Option(
            "--max-lost",
            min=0.0,
            max=1.0,
            help="With lora: largest share of what was learned that the rank may leave out.",
            show_default="0.0005",
        ),
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option("--max-rank", min=1, help="With lora: largest rank.", show_default=str(_MAX_RANK)),
    ] = None,
    base_model: options.BaseModel = None,
    accept_changes: options.AcceptChange = None,
    as_json: options.Json = False,
    quiet: options.QuietPath = False,
) -> None:
    """Write a run or an adapter in a form that servers load, with a model card, and print the commands that serve it.

    Examples:
        dorakit export runs/latest --to gguf --type q8_0

        dorakit export runs/latest --to merged

        dorakit export ./adapter --to gguf --output ./served
    """
    given = {"--type": type_, "--onto": onto, "--dtype": dtype, "--max-lost": max_lost, "--max-rank": max_rank}
    for option, value in given.items():
        if value is not None and to.value not in _READ_BY[option]:
            raise UsageError(f"{option} is read with --to {' or '.join(_READ_BY[option])}, not with --to {to.value}")
    made = _export(
        to,
        target,
        given,
        {"output": output, "base_model": base_model, "accept_changes": accept_changes or [], "quiet": quiet},
    )
    directory, content = made.directory, made.content
    upload = f"hf upload USER/NAME {typed(directory)}"
    if as_json:
        typer.echo(json_line({"output": str(directory), **content, "serve": made.serve, "upload": upload}))
        return
    file = content.get("file")
    if quiet:
        typer.echo(printable(str(directory / file if file else directory)))
        return
    typer.echo(printable(f"exported: {directory / file if file else directory}"))
    if file:
        typer.echo(f"size: {content['bytes'] / 1e6:.1f} MB, {content['type']}")
        show_moved(content["compared"], content["type"])
    typer.echo(printable(f"card: {directory / 'README.md'}; to publish it: {upload}"))
    for line in made.serve:
        typer.echo(printable(f"serve it: {line}"))
    if made.instead:
        typer.echo(
            printable(f"no server loads this adapter on its base; for one they load: {' or '.join(made.instead)}")
        )


def _export(to: To, target: str, given: dict[str, Any], common: dict[str, Any]) -> Exported:
    """Hand the options to the export that reads them."""
    from dorakit.export import outputs
    from dorakit.export.to_gguf import export_gguf
    from dorakit.export.to_merged import export_merged

    named = {option: getattr(value, "value", value) for option, value in given.items()}
    if to is To.peft:
        return outputs.export_peft(target, **common)
    if to is To.lora:
        max_rank = _MAX_RANK if named["--max-rank"] is None else named["--max-rank"]
        return outputs.export_lora(
            target, onto=named["--onto"], max_lost=named["--max-lost"], max_rank=max_rank, **common
        )
    merge = {"onto": named["--onto"], "dtype": named["--dtype"]}
    if to is To.merged:
        return export_merged(target, **merge, **common)
    return export_gguf(target, outtype=named["--type"] or "f16", **merge, **common)
