"""`dorakit eval` and `dorakit generate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dorakit.cli import options
from dorakit.errors import GateError, UsageError
from dorakit.parallel.environment import this_process
from dorakit.parallel.launch import launch_and_exit
from dorakit.terminal import json_line, printable

if TYPE_CHECKING:
    from dorakit.recipe.schema import Recipe

# Of what a run was trained with, these only say how it is computed.
_CHANGEABLE = ("model.dtype", "model.attention")


def evaluate(
    target: options.Target,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Accuracy on tasks by their published protocol, separated by commas: commonsense (all of the next eight), "
            "boolq, piqa, social_i_qa, hellaswag, winogrande, ARC-Easy, ARC-Challenge, openbookqa, AddSub, gsm8k, orca-math, "
            "or lm-eval:NAME for lm-evaluation-harness. No recipe is needed.",
        ),
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(
            "--scoring",
            help="Of tasks with options: beam (the paper's: 4 beams, 32 tokens) or logprob (the likeliest option; many times "
            "faster).",
            show_default="beam",
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Measure the frozen base: the adapter is switched off.")] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="File or data set of test rows, in the form of the training rows. With --task: the directory with "
            "TASK/test.json or TASK.test.json, or a hub data set.",
        ),
    ] = None,
    recipe: options.Recipe = None,
    set_: options.Set = None,
    base_model: options.BaseModel = None,
    accept_changes: options.AcceptChange = None,
    limit: options.Limit = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Rows per generation batch.", show_default="the recipe's")
    ] = None,
    output: Annotated[Path | None, options.output("of a run RUN/eval/NAME.json")] = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", help="Gate: METRIC=VALUE, exit 5 where the metric is lower. Repeatable."),
    ] = None,
    maximum: Annotated[
        list[str] | None,
        typer.Option("--max", help="Gate: METRIC=VALUE, exit 5 where the metric is higher. Repeatable."),
    ] = None,
    nproc: options.Nproc = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure loss, perplexity and accuracy of a run or a model on test rows, or accuracy on tasks.

    Examples:
        dorakit eval runs/latest

        dorakit eval runs/latest --data test.jsonl --limit 200 --min accuracy=0.8

        dorakit eval runs/latest/merged --recipe recipes/quickstart.yaml --output merged.json

        dorakit eval meta-llama/Meta-Llama-3-8B --task boolq,piqa --data dataset
    """
    gates = [*_gates(minimum, "--min"), *_gates(maximum, "--max")]
    if task is not None:
        _check_task(task, data, scoring, limit, set_, processes=nproc or this_process().size)
    from dorakit.evaluation.gates import check_gates

    asked = asked_recipe(target, recipe, set_)
    check_gates(gates, None, metric=_metric(target, asked) if gates and task is None else None)
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
        recipe=asked,
        batch_size=batch_size,
        base_model=base_model,
        accept_changes=accept_changes or [],
        output=output,
        quiet=quiet,
    )
    if not this_process().is_first:
        return
    if not as_json:
        from dorakit.cli.tables import show_rows, show_tasks

        (show_rows if task is None else show_tasks)(result)
    try:
        check_gates(gates, result)
    except GateError as missed:
        missed.result = result
        raise
    if as_json:
        typer.echo(json_line(result))


def generate(
    target: options.Target,
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Prompt to answer. Repeatable.")],
    compare: options.Compare = False,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = None,
    system: options.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Give the prompt as it is, without the chat template.")] = False,
    base_model: options.BaseModel = None,
    accept_changes: options.AcceptChange = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer prompts; with --compare the base and the adapter side by side.

    Examples:
        dorakit generate runs/latest --prompt "4 red chairs for Ada in Oslo" --compare

        dorakit generate runs/latest/merged -p "Write a haiku." --max-new-tokens 40 --temperature 0.7
    """
    sampling = options.sampling(max_new_tokens, temperature, seed)
    from dorakit.evaluation.generation import answer_prompts

    answers = answer_prompts(
        target,
        prompt,
        compare=compare,
        max_new_tokens=max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
        system=system,
        raw=raw,
        base_model=base_model,
        accept_changes=accept_changes or [],
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


def _metric(target: str, asked: Recipe | None) -> str | None:
    """The evaluation.metric of the recipe that measures the target; None where no recipe is known."""
    from dorakit.place import run_around

    run = run_around(target)
    known = asked or (run.recipe if run else None)
    return known.evaluation.metric if known else None


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
