"""`dorakit eval` and `dorakit generate`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import typer

from dorakit.errors import UsageError
from dorakit.terminal import json_line, printable

if TYPE_CHECKING:
    from dorakit.recipe.schema import Recipe

TARGET = typer.Argument(
    help="A run, a PEFT adapter directory, a model directory (merged, quantized), a hub id, pkg:... or tiny:...",
)
RECIPE = typer.Option(None, "--recipe", help="Recipe that names the rows and the metric, where TARGET is no run.")
SET = typer.Option(None, "--set", help="Override a value of the recipe: section.key=value. May be repeated.")
BASE_MODEL = typer.Option(None, "--base-model", help="Base of an adapter directory, instead of the one it names.")
JSON = typer.Option(False, "--json", help="One JSON object on stdout, messages on stderr.")
# Of what a run was trained with, these only say how it is computed.
_CHANGEABLE = ("model.dtype", "model.attention")
QUIET = typer.Option(False, "--quiet", "-q", help="No progress, no notes.")


def evaluate(
    target: str = TARGET,
    base: bool = typer.Option(False, "--base", help="Measure the frozen base: the adapter is switched off."),
    data: str | None = typer.Option(
        None, "--data", help="File or data set of test rows, in the form of the training rows."
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
    as_json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Measure loss, perplexity and accuracy of a run or a model on test rows."""
    gates = [*_gates(minimum, "--min"), *_gates(maximum, "--max")]
    from dorakit.evaluation.task import check_gates, evaluate

    check_gates(gates, None)
    result = evaluate(
        target,
        base=base,
        data=data,
        limit=limit,
        recipe=asked_recipe(target, recipe, set_),
        batch_size=batch_size,
        base_model=base_model,
        output=output,
        quiet=quiet,
    )
    if as_json:
        typer.echo(json_line(result))
    else:
        _show(result)
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


def _show(result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = f"{result['target']} · {result['variant']} · {result['data']}"
    table = Table(title=Text(printable(title)), box=box.SIMPLE_HEAD)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row("rows", f"{result['rows']}")
    table.add_row("supervised tokens", f"{result['tokens']}")
    if result["loss"] is not None:
        table.add_row("loss", f"{result['loss']:.4f}")
        table.add_row("perplexity", f"{result['perplexity']:.4g}")
    if result["accuracy"] is not None:
        table.add_row(
            f"accuracy ({result['metric']})", f"{result['accuracy']:.1%} ± {result['accuracy_standard_error']:.1%}"
        )
        table.add_row("answers with nothing to judge", f"{result['unparsed']}")
        table.add_row("answers cut off", f"{result['unfinished']}")
    console = Console(highlight=False)
    console.print(table)
    for sample in result["samples"]:
        mark = "right" if sample["correct"] else "wrong"
        # As Text, in which neither [brackets] nor :colons: mean anything.
        console.print(Text(printable(f"...{sample['prompt_tail'].strip()}"), style="dim"))
        console.print(Text(printable(f"  expected: {sample['answer']}")))
        console.print(Text(printable(f"  got ({mark}): {sample['generated']}\n")))
    if result["output"]:
        console.print(Text(printable(f"written: {result['output']}")), soft_wrap=True)


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
