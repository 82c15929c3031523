"""`dorakit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dorakit.errors import UsageError
from dorakit.terminal import json_line, printable


def train(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe to train.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Unfinished run directory to go on with.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a value: section.key=value. Repeatable.")
    ] = None,
    twin: Annotated[
        bool, typer.Option("--twin", help="Swap the base for a tiny random one, absent data for made rows.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout when done.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a recipe, or go on with an unfinished run.

    Examples:
        dorakit train recipes/quickstart.yaml

        dorakit train recipes/llama3-commonsense.yaml --set adapter.rank=16 --set adapter.alpha=32

        dorakit train --resume runs/latest
    """
    from dorakit.recipe.schema import Recipe
    from dorakit.run import Run

    if (recipe is None) == (resume is None):
        raise UsageError("give a recipe, or --resume with a run directory")
    if resume is not None:
        if overrides or twin:
            raise UsageError("a resumed run keeps its recipe: --set and --twin cannot change it")
        run = Run.open(resume.resolve())
        plan = run.recipe
    else:
        run = None
        plan = Recipe.from_yaml(str(recipe), overrides or [], twin=twin)

    from dorakit.training import loop

    finished = loop.train(plan, resume=run, quiet=quiet)
    if as_json:
        typer.echo(json_line({"run": str(finished.path), "result": str(finished.result), **finished.read("run.json")}))
    elif not quiet:
        typer.echo(printable(f"next:  dorakit eval {finished.path}"), err=True)
        if plan.method is not None:
            typer.echo(printable(f"       dorakit merge {finished.path}"), err=True)
