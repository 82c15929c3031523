"""`dorakit train`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from dorakit.cli import completion, options
from dorakit.errors import UsageError
from dorakit.terminal import json_line, printable, typed


def train(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe to train.", autocompletion=completion.recipes)] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Adapter directory or finished run to begin with: a LoRA may go on as a DoRA.",
            autocompletion=completion.runs,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Unfinished run directory to go on with, or one of its checkpoints.",
            autocompletion=completion.runs,
        ),
    ] = None,
    accept_changes: options.AcceptChange = None,
    output: Annotated[Path | None, options.output("the recipe's output_dir")] = None,
    overrides: options.Set = None,
    twin: options.Twin = False,
    nproc: options.Nproc = None,
    as_json: options.Json = False,
    quiet: options.QuietPath = False,
) -> None:
    """Train a recipe, or go on with an unfinished run.

    Examples:
        dorakit train recipes/quickstart.yaml

        dorakit train recipes/quickstart.yaml --set adapter.rank=8 --set adapter.alpha=16

        dorakit train recipes/smoke/lora.yaml --output runs/lora

        dorakit train recipes/smoke/dora.yaml --from runs/lora --output runs/lora-to-dora

        dorakit train --twin recipes/llama3-commonsense.yaml --nproc 2

        dorakit train --resume runs/latest

        dorakit train --resume runs/latest --set optimizer.learning_rate=5e-5 --accept-change optimizer.learning_rate
    """
    from dorakit.interruptions import StoppedAtOnce
    from dorakit.parallel.environment import this_process
    from dorakit.parallel.launch import launch_and_exit
    from dorakit.place import run_around
    from dorakit.recipe.schema import Recipe
    from dorakit.run import Run
    from dorakit.training import start

    if recipe is None and resume is None:
        raise UsageError("give a recipe, or --resume with a run directory")
    if resume is None and (odd := [key for key in accept_changes or [] if "/" not in key]):
        raise UsageError(
            f"--accept-change {odd[0]} is for --resume: of a new run, only files of its base or adapter could have changed"
        )
    overrides = [*(overrides or []), *_placed(output, overrides or [], is_new=resume is None)]
    run, checkpoint = None, None
    if resume is not None:
        run_around(str(resume))  # as it is typed: opened, so that no link within a run is followed out of it
        directory = resume.resolve()
        if directory.parent.name == "checkpoints" and not (directory / "run.json").is_file():
            directory, checkpoint = directory.parents[1], directory.name
        run = Run.open(directory)
        if twin:
            raise UsageError("--twin is for new runs: a resumed one keeps its base")
    if recipe is not None:
        is_twin = twin if run is None else bool(run.read("run.json").get("is_twin"))
        plan = Recipe.from_yaml(str(recipe), overrides, twin=is_twin)
    else:
        assert run is not None
        plan = run.recipe_with(overrides)
    member = this_process()
    # Where a signal stops it before there is a Run to ask. Of a group, only the first process may ask: the run may be there.
    place = run.path if run else Run.place(plan) if member.is_first and not member.attempt else None
    if nproc is not None:
        launch_and_exit(nproc)
    try:
        finished = start.train(
            plan,
            start_from=start_from,
            resume=run,
            checkpoint=checkpoint,
            accept_changes=accept_changes or [],
            quiet=quiet,
        )
    except (StoppedAtOnce, KeyboardInterrupt) as stop:
        if place is not None:
            typer.echo(printable(_left_by_a_stop(place)), err=True)
        raise stop if isinstance(stop, StoppedAtOnce) else StoppedAtOnce(signal.SIGINT) from None
    if not member.is_first:
        return
    from dorakit.report.page import write_report

    page = write_report(finished)
    if as_json:
        paths = {"run": finished.path, "result": finished.result, "report": page}
        known = {name: None if path is None else str(path) for name, path in paths.items()}
        typer.echo(json_line({**known, **finished.read("run.json")}))
    elif quiet:
        typer.echo(printable(str(finished.path)))
    else:
        if page is not None:
            typer.echo(printable(f"report: {page}"), err=True)
        typer.echo(printable(f"next:  dorakit eval {typed(finished.path)}"), err=True)
        if not plan.trains_whole:
            typer.echo(printable(f"       dorakit merge {typed(finished.path)}"), err=True)


def _placed(output: Path | None, overrides: list[str], *, is_new: bool) -> list[str]:
    """The override that `--output` stands for."""
    if output is None:
        return []
    if not is_new:
        raise UsageError(f"--output {output}: a resumed run stays where it is; leave --output out")
    if any(override.partition("=")[0].strip() == "output_dir" for override in overrides):
        raise UsageError("--output and --set output_dir name the same place; give one of them")
    return [f"output_dir={json.dumps(str(output), ensure_ascii=False)}"]


def _left_by_a_stop(place: Path) -> str:
    from dorakit.run import Run

    if not (place / "run.json").is_file():
        return "stopped before the run began: nothing is left of it"
    if Run.open(place).state == "finished":
        return f"stopped; the run is finished: {place}"
    return f"stopped at once; from the last checkpoint it goes on with: dorakit train --resume {typed(place)}"
