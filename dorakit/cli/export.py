"""`dorakit merge` and `dorakit quantize`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from dorakit.cli import completion, options
from dorakit.cli.evaluate import asked_recipe
from dorakit.place import run_around
from dorakit.terminal import json_line, printable, typed
from dorakit.words import counted


class Format(enum.StrEnum):
    """Format of quantized weights."""

    nf4 = "nf4"


def merge(
    target: Annotated[str, typer.Argument(help="A run, or a PEFT adapter directory.", autocompletion=completion.runs)],
    output: Annotated[Path | None, options.output("of a run RUN/merged")] = None,
    onto: Annotated[options.Onto | None, options.onto("the recipe's")] = None,
    dtype: Annotated[options.Dtype | None, options.dtype("the recipe's")] = None,
    receipt: Annotated[
        bool,
        typer.Option("--receipt/--no-receipt", help="Load the result back and compare it with the live adapter."),
    ] = True,
    base_model: options.BaseModel = None,
    accept_changes: options.AcceptChange = None,
    as_json: options.Json = False,
    quiet: options.QuietPath = False,
) -> None:
    """Fold the adapter into its base: a plain model directory whose weights are proved, with a receipt of what rounding costs.

    Examples:
        dorakit merge runs/latest

        dorakit merge peft-adapter --base-model meta-llama/Meta-Llama-3-8B --output merged --dtype float16
    """
    from dorakit.export.merge import merge
    from dorakit.export.receipt import read_receipt

    directory = merge(
        target,
        output=output,
        onto=onto.value if onto else None,
        dtype=dtype.value if dtype else None,
        receipt=receipt,
        base_model=base_model,
        accept_changes=accept_changes or [],
        quiet=quiet,
    )
    content = read_receipt(directory, "merge.json")
    if as_json:
        typer.echo(json_line({"output": str(directory), **content}))
        return
    if quiet:
        typer.echo(printable(str(directory)))
        return
    typer.echo(printable(f"merged: {directory}"))
    _show_receipt(content["receipt"])


def quantize(
    target: Annotated[
        str,
        typer.Argument(
            help="A run (merged first), or a model directory, hub id, pkg:... or tiny:...",
            autocompletion=completion.runs,
        ),
    ],
    format_: Annotated[Format, typer.Option("--format", help="Format of the weights.")] = Format.nf4,
    output: Annotated[Path | None, options.output("of a run RUN/quantized")] = None,
    keep_row_norms: Annotated[
        bool,
        typer.Option(
            "--keep-row-norms", help="Scale each quantized row back to its norm: after DoRA, the learnt magnitude."
        ),
    ] = False,
    recipe: options.Recipe = None,
    set_: options.Set = None,
    base_model: options.BaseModel = None,
    accept_changes: options.AcceptChange = None,
    as_json: options.Json = False,
    quiet: options.QuietPath = False,
) -> None:
    """Write a 4-bit model directory that transformers loads as a bitsandbytes checkpoint.

    Examples:
        dorakit quantize runs/latest

        dorakit quantize meta-llama/Meta-Llama-3-8B --output llama3-nf4
    """
    from dorakit.export.quantize import quantize
    from dorakit.export.receipt import read_receipt

    directory = quantize(
        target,
        format=format_.value,
        output=output,
        keep_row_norms=keep_row_norms,
        recipe=asked_recipe(target, recipe, set_),
        base_model=base_model,
        accept_changes=accept_changes or [],
        quiet=quiet,
    )
    content = read_receipt(directory, "quantize.json")
    if as_json:
        typer.echo(json_line({"output": str(directory), **content}))
        return
    if quiet:
        typer.echo(printable(str(directory)))
        return
    typer.echo(printable(f"quantized: {directory}"))
    before, after = content["bytes_before"], content["bytes_after"]
    typer.echo(f"size: {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB ({after / before:.0%})")
    errors = content["relative_error"]
    worst = printable(errors["worst"])
    typer.echo(f"relative error per layer: mean {errors['mean']:.4f}, largest {errors['max']:.4f} ({worst})")
    norms = content["row_norm_error"]
    scaled = ", scaled back" if norms["kept"] else ""
    typer.echo(f"relative error of row norms{scaled}: mean {norms['mean']:.4f}, largest {norms['max']:.4f}")
    perplexity = content["perplexity"]
    if perplexity["before"] is None:
        typer.echo(printable(f"perplexity: not measured, {perplexity['reason']}"))
    else:
        typer.echo(
            f"perplexity: {perplexity['before']:.4g} -> {perplexity['after']:.4g} "
            f"({counted(perplexity['tokens'], 'token')} of {printable(perplexity['data'])})"
        )
    show_moved(content["compared"], "NF4")
    run = run_around(target)
    if run is not None and not run.recipe.trains_whole:
        place = typed(run.path)
        typer.echo(
            printable(
                f"  8 bits move them less: dorakit export {place} --to gguf --type q8_0; 16 hardly: dorakit merge {place}"
            )
        )


def show_moved(compared: Any, form: str) -> None:
    """Print how far a quantized or rounded form moves the answers, held against how far training did."""
    from dorakit.export.receipt import share

    part = "supervised" if compared["supervised"]["positions"] else "all"
    found, whole = compared[part], compared["all"]
    moved = f"KL(before || after) {found['kl']:.2e} nats a token"
    if found["lost"] is None:
        typer.echo(f"{form} moves the answers: {moved}")
        return
    typer.echo(
        f"{form} moves the answers {share(found['lost'])} as far as training did: {moved}, KL(before || base) "
        f"{found['learned_kl']:.2e}"
    )
    if part == "supervised" and whole["lost"] is not None:
        typer.echo(f"  with the prompts {share(whole['lost'])}: of those training may have learned nothing")


def _show_receipt(receipt: Any) -> None:
    from dorakit.export.receipt import share, worst_part

    if receipt == "none":
        typer.echo("receipt: every weight proved; no rows compared")
        return
    part, lost = worst_part(receipt)
    found = receipt[part]
    learned = "the adapter changes nothing that could be measured"
    if lost is not None:
        learned = (
            f"{share(lost)} of what was learned is lost to rounding (limit {share(receipt['max_lost'])}): "
            f"KL(live || base) {found['learned_kl']:.2e}"
        )
    where = "the answers" if part == "supervised" else "prompts and answers"
    typer.echo(
        f"receipt: every weight proved; {learned}, KL(live || merged) {found['kl']:.2e}, top-1 agreement "
        f"{found['top1_agreement']:.2%} over {where}: {counted(found['positions'], 'position')} of "
        f"{printable(receipt['compared_on'])}"
    )
