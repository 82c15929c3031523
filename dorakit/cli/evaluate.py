"""`dorakit eval` and `dorakit generate`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import typer

from dorakit.cli import completion
from dorakit.errors import UsageError
from dorakit.parallel.environment import this_process
from dorakit.parallel.launch import launch_and_exit
from dorakit.terminal import json_line, printable

if TYPE_CHECKING:
    from dorakit.recipe.schema import Recipe

TARGET = typer.Argument(
    help="A run, a PEFT adapter directory, a model directory (merged, quantized), a hub id, pkg:... or tiny:...",
    autocompletion=completion.runs,
)
RECIPE = typer.Option(
    None,
    "--recipe",
    help="Recipe that names the rows and the metric, where TARGET is no run.",
    autocompletion=completion.recipes,
)
SET = typer.Option(
    None,
    "--set",
    help="Override a value of the recipe: section.key=value. May be repeated.",
    autocompletion=completion.settings,
)
BASE_MODEL = typer.Option(None, "--base-model", help="Base of an adapter directory, instead of the one it names.")
NPROC = typer.Option(
    None, "--nproc", min=1, help="Share the rows out over so many processes on this host, one per GPU."
)
JSON = typer.Option(False, "--json", help="One JSON object on stdout, messages on stderr.")
# Of what a run was trained with, these only say how it is computed.
_CHANGEABLE = ("model.dtype", "model.attention")
QUIET = typer.Option(False, "--quiet", "-q", help="No progress, no notes.")


def evaluate(
    target: str = TARGET,
    task: str | None = typer.Option(
        None,
        "--task",
        help="Accuracy on tasks by their published protocol, separated by commas: commonsense (all of the next eight), "
        "boolq, piqa, social_i_qa, hellaswag, winogrande, ARC-Easy, ARC-Challenge, openbookqa, AddSub, gsm8k, orca-math, "
        "or lm-eval:NAME for lm-evaluation-harness. No recipe is needed.",
    ),
    scoring: str | None = typer.Option(
        None,
        "--scoring",
        help="Of tasks with options: beam (the paper's, and the default: 4 beams, 32 tokens) or logprob (the likeliest "
        "option; many times faster).",
    ),
    base: bool = typer.Option(False, "--base", help="Measure the frozen base: the adapter is switched off."),
    data: str | None = typer.Option(
        None,
        "--data",
        help="File or data set of test rows, in the form of the training rows. With --task: the directory with "
        "TASK/test.json or TASK.test.json, or a hub data set.",
    ),
    recipe: str | None = RECIPE,
    set_: list[str] | None = SET,
    base_model: str | None = BASE_MODEL,
    limit: int | None = typer.Option(None, "--limit", min=1, help="At most this many rows."),
    batch_size: int | None = typer.Option(None, "--batch-size", min=1, help="Rows per generation batch."),
    output: str | None = typer.Option(None, "--output", help="Write the result here instead of into RUN/eval/."),
    minimum: list[str] | None = typer.Option(
        None, "--min", help="Gate: METRIC=VALUE, exit 5 where the metric is lower. May be repeated."
    ),
    maximum: list[str] | None = typer.Option(
        None, "--max", help="Gate: METRIC=VALUE, exit 5 where the metric is higher. May be repeated."
    ),
    nproc: int | None = NPROC,
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Measure loss, perplexity and accuracy of a run or a model on test rows, or accuracy on tasks."""
    gates = [*_gates(minimum, "--min"), *_gates(maximum, "--max")]
    if task is not None:
        _check_task(task, data, scoring, limit, set_, processes=nproc or this_process().size)
    from dorakit.evaluation.gates import check_gates

    check_gates(gates, None)
    if nproc is not None:
        launch_and_exit(nproc)
    from dorakit.evaluation.task import evaluate

    result = evaluate(
        target,
        task=task,
        scoring=scoring,
        base=base,
        data=data,
        limit=limit,
        recipe=asked_recipe(target, recipe, set_),
        batch_size=batch_size,
        base_model=base_model,
        output=output,
        quiet=quiet,
    )
    if not this_process().is_first:
        return
    if as_json:
        typer.echo(json_line(result))
    else:
        from dorakit.cli.tables import show_rows, show_tasks

        (show_rows if task is None else show_tasks)(result)
    check_gates(gates, result)


def generate(
    target: str = TARGET,
    prompt: list[str] = typer.Option(..., "--prompt", "-p", help="What to answer. May be repeated."),
    compare: bool = typer.Option(False, "--compare", help="Show the base's answer beside the adapter's."),
    max_new_tokens: int = typer.Option(128, "--max-new-tokens", min=1, help="Tokens to generate at most."),
    system: str | None = typer.Option(None, "--system", help="System message put before the prompt."),
    raw: bool = typer.Option(False, "--raw", help="Give the prompt as it is, without the chat template."),
    base_model: str | None = BASE_MODEL,
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Answer prompts, greedily; with --compare the base and the adapter side by side."""
    from dorakit.evaluation.generation import answer_prompts

    answers = answer_prompts(
        target,
        prompt,
        compare=compare,
        max_new_tokens=max_new_tokens,
        system=system,
        raw=raw,
        base_model=base_model,
        quiet=quiet,
    )
    if as_json:
        typer.echo(json_line({"target": target, "answers": answers}))
        return
    _show_answers(answers, compare=compare)


def asked_recipe(target: str, path: str | None, overrides: list[str] | None) -> Recipe | None:
    """Load the recipe that `--recipe` and `--set` ask for; None leaves the run's own.

    Raises:
        UsageError: `--set` without a recipe to change, or of something that a run was trained with.
    """
    from dorakit.recipe.schema import Recipe

    if path is None and not overrides:
        return None
    from dorakit.place import run_around

    run = run_around(target)
    for override in overrides or [] if run else []:
        key = override.partition("=")[0].strip()
        if key.partition(".")[0] in ("model", "adapter", "quantization") and key not in _CHANGEABLE:
            raise UsageError(
                f"--set {override}: {target} was trained with its {key}, which cannot be changed afterwards\n"
                "  it belongs to `dorakit train`; of the model, dtype and attention can be set here"
            )
    if path is not None:
        return Recipe.from_yaml(path, overrides or [])
    if run is None:
        raise UsageError(
            f"--set needs a recipe to change, and {target} belongs to no run\n  name one with --recipe FILE"
        )
    return run.recipe_with(overrides or [])


def _check_task(
    task: str,
    data: str | None,
    scoring: str | None,
    limit: int | None,
    overrides: list[str] | None,
    *,
    processes: int,
) -> None:
    """What can be known of tasks without torch: their names, and rows that lie here."""
    from dorakit.evaluation.tasks.rows import read_tasks
    from dorakit.evaluation.tasks.table import HARNESS, check_processes

    check_processes(task, processes)
    for override in overrides or []:
        if override.partition(".")[0].strip() in ("evaluation", "data"):
            raise UsageError(f"--set {override}: --task says itself what is asked and how it is judged")
    if not task.startswith(HARNESS):  # which imports torch
        read_tasks(task, data, scoring=scoring, limit=limit, hub=False)


def _gates(texts: list[str] | None, flag: str) -> list[tuple[str, str, float]]:
    """Parse METRIC=VALUE; gives (flag, metric, value)."""
    gates = []
    for text in texts or []:
        metric, equals, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not metric or math.isnan(value):
            raise UsageError(f"{flag} {text}: expected METRIC=VALUE, as in {flag} accuracy=0.8")
        gates.append((flag, metric.strip(), value))
    return gates


def _show_answers(answers: list[dict[str, Any]], *, compare: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for answer in answers:
        if not compare:
            if len(answers) > 1:
                console.print(Text(printable(f"> {answer['prompt']}"), style="dim"))
            console.print(Text(printable(answer["text"])), soft_wrap=True)
            continue
        table = Table(title=Text(printable(answer["prompt"])), title_justify="left", expand=True, show_lines=True)
        table.add_column("base", ratio=1)
        table.add_column("adapter", ratio=1)
        table.add_row(Text(printable(answer["base_text"])), Text(printable(answer["text"])))
        console.print(table)
