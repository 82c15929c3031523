"""`dorakit export` to a PEFT adapter directory and to a plain model directory, and what all exports have in common."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dorakit
from dorakit.build import build_tokenizer
from dorakit.data.chat import install_template_
from dorakit.errors import UsageError
from dorakit.evaluation.progress import say
from dorakit.export.card import Card, is_hub_id, shareable_base, write_card
from dorakit.export.merge import merge
from dorakit.export.merge_plan import RECEIPT as MERGE_RECEIPT
from dorakit.export.receipt import adapter_sha256, read_receipt
from dorakit.export.serving import adapter_lines, gguf_adapter_lines, merged_lines
from dorakit.export.shards import check_output, check_space, locked
from dorakit.files import whole_directory, write_json
from dorakit.model.source import gguf_file
from dorakit.place import find_target
from dorakit.run import Run
from dorakit.terminal import typed

RECEIPT = "export.json"
Onto = Literal["trained", "original"]


@dataclass(frozen=True)
class Exported:
    """What an export made: its directory, the content of export.json, and the commands that serve it."""

    directory: Path
    content: dict[str, Any]
    serve: list[str]


def run_to_export(target: Run | Path | str) -> Run:
    """The finished run that a target is, or lies in.

    Raises:
        UsageError: It is no run.
        RunError: Training has not finished.
    """
    place = find_target(str(target.path if isinstance(target, Run) else target))
    if place.is_absent:
        raise UsageError(f"nothing to export: no such run or directory: {place.text}")
    if place.run is None:
        raise UsageError(f"nothing to export: {place.text} is no run\n  `dorakit merge` takes an adapter directory")
    place.run.result  # noqa: B018  raises where training has not finished
    return place.run


def place_for(run: Run, own: Path, output: Path | str | None) -> Path:
    """Where an export goes: `own` in the run, or the output asked for.

    Raises:
        UsageError: Something else is there.
    """
    directory = Path(os.path.expanduser(output)) if output is not None else own
    check_output(directory, receipt=RECEIPT, forbidden=[run.path, run.adapter, run.model, run.merged])
    return directory


def export_peft(target: Run | Path | str, *, output: Path | str | None = None, quiet: bool = False) -> Exported:
    """Write a run's adapter as PEFT and the hub take it: the adapter, the tokenizer with its chat template, a card.

    Raises:
        UsageError: The run has no adapter, or the output would overwrite something else.
    """
    run = run_to_export(target)
    if run.recipe.method is None:
        raise UsageError(
            f"{run.path} was trained in mode full and has no adapter; {run.model} is the whole model\n"
            "  `dorakit export RUN --to gguf` takes it"
        )
    directory = place_for(run, run.peft, output)
    with locked(run, directory), whole_directory(directory) as staging:
        check_space(directory, sum(file.stat().st_size for file in run.adapter.iterdir()))
        tokenizer = build_tokenizer(run.recipe)
        install_template_(tokenizer, run.recipe.data)
        tokenizer.save_pretrained(staging)
        shutil.copytree(run.adapter, staging, dirs_exist_ok=True)
        config = read_receipt(staging, "adapter_config.json")
        notes = _adapter_notes(run, config)
        for line in notes:
            say(line, quiet=quiet)
        content = {**described(run, "peft"), "notes": notes}
        base = run.recipe.model.base

        def serve(place: Path) -> list[str]:
            return adapter_lines(place, run.name, base, config, is_hub_id=is_hub_id(run))

        write_card(staging, Card(run, "peft", serve(Path("."))))
        write_json(staging / RECEIPT, content)
    return Exported(directory, content, serve(directory))


def export_merged(
    target: Run | Path | str, *, output: Path | str | None = None, onto: Onto | None = None, quiet: bool = False
) -> Exported:
    """Write a run as a plain model directory with a card; a merged directory that is up to date is kept.

    Raises:
        UsageError: There is no adapter to merge, or the output would overwrite something else.
        GateError: The merged model answers differently from the live one; nothing is left.
    """
    run = run_to_export(target)
    directory = Path(os.path.expanduser(output)) if output is not None else run.merged
    if is_up_to_date(run, directory, onto):
        say(f"{directory} is up to date", quiet=quiet)
    else:
        merge(run, output=directory, onto=onto, quiet=quiet)
    receipt = read_receipt(directory, MERGE_RECEIPT)
    content = {**described(run, "merged"), **{key: receipt[key] for key in ("onto", "dtype", "bytes", "receipt")}}
    with locked(run, directory):
        write_card(directory, Card(run, "merged", merged_lines(Path("."))))
        write_json(directory / RECEIPT, content)
    return Exported(directory, content, merged_lines(directory))


def export_lora(
    target: Run | Path | str,
    *,
    output: Path | str | None = None,
    onto: Onto | None = None,
    max_lost: float | None = None,
    max_rank: int,
    quiet: bool = False,
) -> Exported:
    """Write a plain LoRA of what a run's adapter does to its base, with a card; see plain_lora.py.

    Raises:
        UsageError: The run has no adapter, or the output would overwrite something else.
        GateError: No rank allowed comes near enough to the live adapter.
    """
    from dorakit.export.plain_lora import GGUF, MAX_LOST, export_plain_lora

    run = run_to_export(target)
    directory = place_for(run, run.lora, output)
    base, onto = run.recipe.model.base, onto or run.recipe.merge.onto
    content = export_plain_lora(
        run,
        output=directory,
        onto=onto,
        max_lost=MAX_LOST if max_lost is None else max_lost,
        max_rank=max_rank,
        quiet=quiet,
    )
    config = read_receipt(directory, "adapter_config.json")

    def serve(place: Path, base_file: str) -> list[str]:
        lines = adapter_lines(place, run.name, base, config, is_hub_id=is_hub_id(run))
        return lines + (gguf_adapter_lines(place / GGUF, base_file) if (directory / GGUF).is_file() else [])

    file = gguf_file(base)
    with locked(run, directory):
        write_card(directory, Card(run, "lora", serve(Path("."), typed(file.name) if file else "BASE.gguf")))
    return Exported(directory, content, serve(directory, typed(file) if file else "BASE.gguf"))


def is_up_to_date(run: Run, merged: Path, onto: Onto | None) -> bool:
    """Whether a merged directory was made from the adapter that the run holds, as merging now would make it."""
    if not (merged / MERGE_RECEIPT).is_file() or run.recipe.method is None:
        return False
    section = run.recipe.merge
    base = (onto or section.onto) if run.recipe.is_quantized else "trained"
    receipt = read_receipt(merged, MERGE_RECEIPT)
    now = {"adapter_sha256": adapter_sha256(run.adapter), "onto": base, "dtype": section.dtype}
    return all(receipt.get(key) == value for key, value in now.items())


def described(run: Run, to: str) -> dict[str, Any]:
    """What export.json says of any export."""
    recipe = run.recipe
    return {
        "dorakit": dorakit.__version__,
        "to": to,
        "run": run.name,
        "base": shareable_base(run),
        "mode": recipe.adapter.mode,
        "adapter_sha256": None if recipe.method is None else adapter_sha256(run.adapter),
    }


def _adapter_notes(run: Run, config: dict[str, Any]) -> list[str]:
    notes = []
    if config.get("use_dora"):
        notes.append(
            "vLLM, llama.cpp and Ollama load no DoRA adapter: `dorakit export RUN --to lora`, merged or gguf serves it there"
        )
    if config.get("modules_to_save"):
        notes.append("vLLM loads no adapter with modules_to_save: --to merged serves it there")
    if not is_hub_id(run):
        notes.append(
            f"{shareable_base(run)} is no id of the hub: who loads the adapter names the base, as in README.md"
        )
    if run.recipe.is_quantized:
        notes.append("the adapter was trained on NF4 weights: load the base in 4 bits, as in README.md")
    return notes
