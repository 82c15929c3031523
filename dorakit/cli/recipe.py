"""`dorakit validate` and `dorakit schema`; neither imports torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dorakit.cli import completion, options
from dorakit.cli.failures import failure, problem_dict
from dorakit.errors import DataError, Problem, RecipeError, UsageError, shown
from dorakit.terminal import json_line, printable, typed
from dorakit.words import counted

if TYPE_CHECKING:
    from dorakit.data.first_look import Look
    from dorakit.recipe.schema import Recipe, SourceSection


def validate(
    recipes: Annotated[
        list[str],
        typer.Argument(
            help="Recipe files, or directories: every .yaml file below them.", autocompletion=completion.recipes
        ),
    ],
    set_: options.Set = None,
    twin: options.Twin = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each value, where it came from and what reads it.")
    ] = False,
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print problems only.")] = False,
) -> None:
    """Check recipes: every problem at once, with its place. Exit code 2 if there is one.

    Reads the headers of a local base and the first rows of local files. Fetches nothing from the hub.

    Examples:
        dorakit validate recipes/quickstart.yaml --explain

        dorakit validate --twin recipes
    """
    from dorakit.data.first_look import look
    from dorakit.recipe.loader import load_recipe

    reports: list[dict[str, Any]] = []
    failed: list[RecipeError] = []
    is_elsewhere = False
    for path in _recipe_files(recipes):
        try:
            recipe = load_recipe(path, set_ or [], twin=twin)
            seen = look(recipe)
            _judge_first(recipe, seen)
            if seen.problems:
                is_elsewhere |= bool(seen.absent)
                raise RecipeError(seen.problems)
        except RecipeError as error:
            failed.append(error)
            reports.append({"path": path, "ok": False, "problems": [problem_dict(p) for p in error.problems]})
            print(printable(str(error)), file=sys.stderr)
            continue
        reports.append(_report(path, recipe, seen, explain))
        if as_json or quiet:
            continue
        typer.echo(shown(f"ok  {path}  {_summary(recipe)}"))
        for note in [*recipe.origin.notes, *seen.notes]:
            typer.echo(shown(f"    {note}"))
        if explain:
            _print_table(recipe)
    if as_json:
        all_problems = RecipeError([problem for error in failed for problem in error.problems])
        typer.echo(json_line({"ok": not failed, "recipes": reports, **(failure(all_problems) if failed else {})}))
    if failed:
        count = sum(len(error.problems) for error in failed)
        if not as_json and not quiet:
            print(f"{counted(count, 'problem')} in {counted(len(failed), 'recipe')}", file=sys.stderr)
            if is_elsewhere:
                print("files that are not on this machine: --twin checks a recipe without them", file=sys.stderr)
        raise typer.Exit(RecipeError.exit_code)


def _judge_first(recipe: Recipe, seen: Look) -> None:
    from dorakit.evaluation.taught import check_first_rows
    from dorakit.recipe.where import problem_at

    try:
        seen.notes += check_first_rows(recipe, seen)
    except DataError as error:
        message, *hint = str(error).splitlines()
        seen.problems.append(problem_at(recipe, "evaluation.metric", message, " ".join(line.strip() for line in hint)))


def schema(
    output: Annotated[Path | None, options.output("stdout")] = None,
) -> None:
    """Print the JSON schema of recipes, for editors and checks.

    Examples:
        dorakit schema --output recipe.schema.json
    """
    from dorakit.recipe.loader import json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from None


def import_(
    file: Annotated[str, typer.Argument(help="YAML of axolotl, LLaMA-Factory, torchtune, TRL or unsloth.")],
    output: Annotated[Path | None, options.output("FILE-dorakit.yaml")] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Toolkit that the file is for: axolotl, llamafactory, torchtune, trl or unsloth.",
            show_default="the one that its keys point to",
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.QuietPath = False,
) -> None:
    """Turn another toolkit's configuration into a recipe; what is not carried over is listed with the reason.

    Examples:
        dorakit import axolotl.yaml

        dorakit import sft.yaml --from trl --output my.yaml
    """
    from dorakit.files import write_whole
    from dorakit.recipe.importing.imported import import_recipe, one_line
    from dorakit.recipe.loader import load_recipe

    target = output if output is not None else Path(f"{Path(file).stem}-dorakit.yaml")
    if target.exists():
        raise UsageError(f"{target} exists: give another --output, or remove it")
    imported = import_recipe(file, toolkit=from_, directory=target.parent)
    write_whole(target, imported.text)
    problems: list[Problem] = []
    sources: list[SourceSection] = []
    try:
        sources = load_recipe(str(target), []).data.train
    except RecipeError as error:
        problems = list(error.problems)
    content = {
        "output": str(target),
        "toolkit": imported.toolkit,
        "carried": imported.carried,
        "left": [{"key": item.key, "value": item.value, "reason": item.reason} for item in imported.left],
        "asked_for_nothing": imported.empty,
        "problems": [problem_dict(problem) for problem in problems],
    }
    if not as_json:
        done = f"{imported.toolkit}: {file} -> {target}, {counted(len(imported.carried), 'setting')}"
        typer.echo(printable(str(target) if quiet else done))
        for source in [] if quiet else sources:
            columns = f", columns {', '.join(f'{name}: {column}' for name, column in source.columns.items())}"
            typer.echo(printable(f"  rows: {source.path}, format {source.format}{columns if source.columns else ''}"))
        for item in imported.left:
            typer.echo(printable(f"  not carried over: {one_line(item)}"), err=quiet)
        if imported.empty and not quiet:
            typer.echo(printable(f"  asked for nothing: {', '.join(imported.empty)}"))
    if problems:
        failed = RecipeError(problems)
        failed.result = content
        raise failed
    if as_json:
        typer.echo(json_line(content))
    elif not quiet:
        typer.echo(printable(f"next:  dorakit validate {typed(target)} --explain\n       dorakit data {typed(target)}"))


def _recipe_files(arguments: list[str]) -> list[str]:
    files: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if not path.is_dir():
            files.append(argument)
            continue
        below = sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml") and p.is_file())
        if not below:
            raise UsageError(f"no .yaml files below {argument}")
        files += map(str, below)
    return files


def _summary(recipe: Recipe) -> str:
    adapter = "" if recipe.trains_whole else f" rank {recipe.adapter.rank}"
    sources = ", ".join(source.path for source in recipe.data.train)
    return f"{recipe.adapter.mode}{adapter} on {recipe.model.base}, {sources}"


def _report(path: str, recipe: Recipe, seen: Look, explained: bool) -> dict[str, Any]:
    from dorakit.recipe.loader import explain

    report = {
        "path": path,
        "ok": True,
        "mode": recipe.adapter.mode,
        "base": recipe.model.base,
        "notes": [*recipe.origin.notes, *seen.notes],
        "absent": seen.absent,
    }
    if explained:
        names = ("key", "value", "source", "read_by")
        report["values"] = [dict(zip(names, row, strict=True)) for row in explain(recipe)]
    return report


def _print_table(recipe: Recipe) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dorakit.recipe.loader import explain

    rows = [tuple(map(printable, row)) for row in explain(recipe)]
    if not sys.stdout.isatty():
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("key", "value", "source", "read by"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style="dim" if row[2] == "default" else "") for cell in row))
    Console().print(table)
