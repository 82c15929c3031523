"""Results of `dorakit eval` as tables for people."""

from __future__ import annotations

from typing import Any

from dorakit.terminal import printable
from dorakit.words import counted


def show_rows(result: dict[str, Any]) -> None:
    """Loss and accuracy over a recipe's rows, with samples."""
    from rich.console import Console
    from rich.text import Text

    table = plain_table()
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row("rows", f"{result['rows']}")
    table.add_row("supervised tokens", f"{result['tokens']}")
    if result["loss"] is not None:
        table.add_row("loss", f"{result['loss']:.4f}")
        table.add_row("perplexity", f"{result['perplexity']:.4g}")
    if result["accuracy"] is not None:
        table.add_row(f"accuracy ({result['metric']})", _share(result))
        table.add_row("answers with nothing to judge", f"{result['unparsed']}")
        table.add_row("answers cut off", f"{result['unfinished']}")
    console = Console(highlight=False)
    _title(console, result, result["data"])
    console.print(table)
    for sample in result["samples"]:
        mark = "right" if sample["correct"] else "wrong"
        # As Text, in which neither [brackets] nor :colons: mean anything.
        console.print(Text(printable(f"...{sample['prompt_tail'].strip()}"), style="dim"))
        console.print(Text(printable(f"  expected: {sample['answer']}")))
        console.print(Text(printable(f"  got ({mark}): {sample['generated']}\n")))
    _written(console, result)


def show_tasks(result: dict[str, Any]) -> None:
    """A row for each task, and their mean."""
    from rich.console import Console

    table = plain_table()
    table.add_column("task")
    table.add_column("scoring")
    for name in ("rows", "accuracy", "unparsed", "seconds"):
        table.add_column(name, justify="right")
    for task in result["tasks"]:
        table.add_row(printable(task["task"]), task["scoring"], *_figures(task))
    if len(result["tasks"]) > 1:
        table.add_section()
        table.add_row("mean", "", *_figures(result))
    console = Console(highlight=False)
    _title(console, result, f"first {counted(result['limit'], 'row')}" if result["limit"] else "all rows")
    console.print(table)
    _written(console, result)


def plain_table() -> Any:
    """A table without lines but under its head."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD)


def _title(console: Any, result: dict[str, Any], about: str) -> None:
    from rich.text import Text

    console.print(Text(printable(f"{result['target']} · {result['variant']} · {about}")), soft_wrap=True)


def _figures(task: dict[str, Any]) -> tuple[str, str, str, str]:
    unparsed = task["unparsed_rate"]
    return (
        f"{task['rows']}",
        "-" if task["accuracy"] is None else _share(task),
        "-" if unparsed is None else f"{unparsed:.1%}",
        f"{task['seconds']:.1f}",
    )


def _share(result: dict[str, Any]) -> str:
    return f"{result['accuracy']:.1%} ± {result['accuracy_standard_error']:.1%}"


def _written(console: Any, result: dict[str, Any]) -> None:
    from rich.text import Text

    if result["output"]:
        console.print(Text(printable(f"written: {result['output']}")), soft_wrap=True)
