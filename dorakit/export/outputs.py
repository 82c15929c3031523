"""`dorakit export` to a PEFT adapter directory, a plain model directory and a plain LoRA, and what all exports have in common."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

import dorakit
from dorakit.adapters.peft_config import CONFIG
from dorakit.adapters.peft_format import STORAGE, WEIGHTS
from dorakit.build import build_tokenizer
from dorakit.data.chat import install_template_
from dorakit.data.generation_config import read_generation_config, write_generation_config
from dorakit.errors import Gate, GateError, UsageError
from dorakit.evaluation.progress import say
from dorakit.export.card import Card, shareable_base, write_card
from dorakit.export.gguf_file import FAMILIES
from dorakit.export.merge import merge
from dorakit.export.merge_plan import RECEIPT as MERGE_RECEIPT
from dorakit.export.merged_directory import Dtype, Onto, fits, merged_of, taken_notes
from dorakit.export.receipt import adapter_sha256, read_receipt
from dorakit.export.serving import adapter_lines, gguf_adapter_lines, merged_lines, merged_use
from dorakit.export.shards import check_output, check_space, locked
from dorakit.export.trained import Trained, find_trained
from dorakit.files import whole_directory, write_json
from dorakit.model.configs import read_object
from dorakit.model.load import load_tokenizer, saved_tokenizer
from dorakit.model.source import at_hand, gguf_file
from dorakit.run import Run
from dorakit.terminal import typed

RECEIPT = "export.json"


@dataclass(frozen=True)
class Exported:
    """What an export made: its directory, the content of export.json, and the commands that serve it."""

    directory: Path
    content: dict[str, Any]
    serve: list[str]


def place_for(trained: Trained, to: str, output: Path | str | None) -> Path:
    """Directory of an export.

    Raises:
        UsageError: Something else is there, or an adapter directory has no output.
    """
    directory = trained.place(to, output)
    run = trained.run
    read = [trained.path, trained.adapter, *([run.model, run.merged] if run else [])]
    check_output(directory, receipt=RECEIPT, forbidden=read)
    return directory


def refuse_full(trained: Trained, to: str) -> None:
    """Refuse a run that has no adapter.

    Raises:
        UsageError: With what is left to do.
    """
    if trained.adapter is None and trained.run is not None:
        family = read_object(trained.run.model / "config.json").get("model_type")
        way = f"\n  `{trained.command('gguf')}` writes it for llama.cpp and Ollama" if family in FAMILIES else ""
        raise UsageError(
            f"--to {to}: {trained.run.path} was trained in mode full and has no adapter; {trained.run.model} is the whole "
            f"model, which transformers and vLLM load as it is{way}"
        )


def export_peft(
    target: Run | Path | str, *, output: Path | str | None = None, base_model: str | None = None, quiet: bool = False
) -> Exported:
    """Write an adapter as PEFT and the hub take it: the adapter, the tokenizer with its chat template, a card.

    Args:
        target: A finished run, or a PEFT adapter directory.
        output: A directory; RUN/peft for a run. An earlier result of this command is replaced.
        base_model: Base of an adapter directory, instead of the one that it names.
        quiet: Print nothing.

    Raises:
        UsageError: The run has no adapter, or the output would overwrite something else.
    """
    trained = find_trained(target, base_model=base_model)
    refuse_full(trained, "peft")
    assert trained.adapter is not None
    directory = place_for(trained, "peft", output)
    files = [trained.adapter / name for name in (CONFIG, WEIGHTS, STORAGE) if (trained.adapter / name).is_file()]
    with locked(trained.run, directory), whole_directory(directory) as staging:
        check_space(directory, sum(file.stat().st_size for file in files))
        tokenizer = _tokenizer(trained)
        tokenizer.save_pretrained(staging)
        stated = next((found for place in _stating(trained) if (found := read_generation_config(place))), None)
        notes = write_generation_config(staging, stated, tokenizer)
        for file in files:
            shutil.copy(file, staging)
        config = trained.config
        if base_model is not None:
            config = {**config, "base_model_name_or_path": base_model, "revision": None}
            write_json(staging / CONFIG, config)
        notes += _adapter_notes(trained)
        for line in notes:
            # Printed, a command names the place; kept and published, it does not.
            for to in ("lora", "merged", "gguf"):
                line = line.replace(unplaced_command(trained, to), trained.command(to))
            say(line, quiet=quiet)
        content = {**described(trained, "peft"), "notes": notes}
        if adapter_sha256(staging) != content["adapter_sha256"]:
            raise GateError(
                f"{WEIGHTS} as it was copied is not the adapter's\n"
                "  nothing was written; this is a fault of this machine's memory or disk",
                Gate("wrong_weights", 1, 0),
            )

        def serve(place: Path) -> list[str]:
            return adapter_lines(place, trained.name, trained.base, config, is_hub_id=trained.is_hub_base)

        write_card(staging, Card(trained, "peft", serve(Path("."))))
        write_json(staging / RECEIPT, content)
    return Exported(directory, content, serve(directory))


def export_merged(
    target: Run | Path | str,
    *,
    output: Path | str | None = None,
    onto: Onto | None = None,
    dtype: Dtype | None = None,
    base_model: str | None = None,
    quiet: bool = False,
) -> Exported:
    """Write a run or an adapter as a plain model directory with a card; RUN/merged is taken where it fits.

    Args:
        target: A finished run, or a PEFT adapter directory.
        output: A directory; RUN/merged for a run. An earlier merge there is kept where it fits, else replaced.
        onto: As for `merge`; None takes what RUN/merged was merged onto.
        dtype: Of the weights; None takes that of RUN/merged, or the recipe's.
        base_model: Base of an adapter directory, instead of the one that it names.
        quiet: Print nothing.

    Raises:
        UsageError: There is no adapter to merge, or the output would overwrite something else.
        GateError: The merged model answers differently from the live one; nothing is left.
    """
    trained = find_trained(target, base_model=base_model)
    refuse_full(trained, "merged")
    directory = trained.place("merged", output)
    notes: list[str] = []
    found = next((place for place in (directory, merged_of(trained)) if fits(trained, place, onto, dtype)), None)
    if found is None:
        merge(trained.text, output=directory, onto=onto, dtype=dtype, base_model=base_model, quiet=quiet)
    else:
        notes = taken_notes(found)
        for line in notes:
            say(line, quiet=quiet)
    if found is not None and found != directory:
        check_output(directory, receipt=MERGE_RECEIPT, forbidden=[trained.path, trained.adapter])
        with whole_directory(directory) as staging:
            check_space(directory, sum(file.stat().st_size for file in found.iterdir()))
            shutil.copytree(found, staging, dirs_exist_ok=True)
    receipt = read_receipt(directory, MERGE_RECEIPT)
    kept = {key: receipt[key] for key in ("onto", "dtype", "bytes", "receipt")}
    content = {**described(trained, "merged"), **kept, "notes": notes}
    config = read_object(directory / "config.json")
    architecture = next(iter(config.get("architectures") or [""]))
    gguf = unplaced_command(trained, "gguf") if config.get("model_type") in FAMILIES else None
    use = merged_use(is_raw=is_raw(trained, directory), as_gguf=gguf)
    with locked(trained.run, directory):
        write_card(directory, Card(trained, "merged", merged_lines(Path("."), trained.name, architecture), use))
        write_json(directory / RECEIPT, content)
    return Exported(directory, content, merged_lines(directory, trained.name, architecture))


def export_lora(
    target: Run | Path | str,
    *,
    output: Path | str | None = None,
    onto: Onto | None = None,
    max_lost: float | None = None,
    max_rank: int,
    base_model: str | None = None,
    quiet: bool = False,
) -> Exported:
    """Write a plain LoRA of what an adapter does to its base, with a card; see plain_lora.py.

    Raises:
        UsageError: The run has no adapter, or the output would overwrite something else.
        GateError: No rank allowed comes near enough to the live adapter.
    """
    from dorakit.export.plain_lora import GGUF, MAX_LOST, export_plain_lora

    trained = find_trained(target, base_model=base_model)
    refuse_full(trained, "lora")
    directory = place_for(trained, "lora", output)
    base, onto = trained.base, onto or (trained.recipe.merge.onto if trained.recipe else "trained")
    content = export_plain_lora(
        trained.text,
        output=directory,
        onto=onto,
        max_lost=MAX_LOST if max_lost is None else max_lost,
        max_rank=max_rank,
        base_model=base_model,
        quiet=quiet,
    )
    config = read_receipt(directory, CONFIG)

    def serve(place: Path, base_file: str) -> list[str]:
        lines = adapter_lines(place, trained.name, base, config, is_hub_id=trained.is_hub_base)
        return lines + (gguf_adapter_lines(place / GGUF, base_file) if (directory / GGUF).is_file() else [])

    file = gguf_file(base)
    # Its notes name the adapter by its place on this machine.
    notes = [line.replace(trained.text, trained.name) for line in content["notes"]]
    content = {**content, **described(trained, "lora"), "notes": notes}
    with locked(trained.run, directory):
        write_json(directory / RECEIPT, content)
        write_card(directory, Card(trained, "lora", serve(Path("."), typed(file.name) if file else "BASE.gguf")))
    return Exported(directory, content, serve(directory, typed(file) if file else "BASE.gguf"))


def unplaced_command(trained: Trained, to: str) -> str:
    """The command of another form for what is kept and published, without a place on this machine."""
    return f"dorakit export {'RUN' if trained.run else 'ADAPTER'} --to {to}{'' if trained.run else ' --output DIR'}"


def is_raw(trained: Trained, directory: Path) -> bool:
    """Whether prompts go in as they are: no row of the run's was a conversation; of an adapter, there is no template."""
    if trained.recipe is not None:
        return all(data.format != "chat" and data.prompt != "chat" for data in trained.recipe.data.train)
    if (directory / "chat_template.jinja").is_file():
        return False
    settings = directory / "tokenizer_config.json"
    return not (settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))


def described(trained: Trained, to: str) -> dict[str, Any]:
    """What export.json says of any export."""
    return {
        "dorakit": dorakit.__version__,
        "to": to,
        "run": trained.name if trained.run else None,
        **({} if trained.run else {"adapter": trained.name}),
        "base": shareable_base(trained),
        "mode": trained.mode,
        "adapter_sha256": None if trained.adapter is None else adapter_sha256(trained.adapter),
    }


def _tokenizer(trained: Trained) -> PreTrainedTokenizerBase:
    """The one of the run; of an adapter directory its own, or the base's."""
    if trained.recipe is not None:
        tokenizer = build_tokenizer(trained.recipe)
        install_template_(tokenizer, trained.recipe.data)
        return tokenizer
    return saved_tokenizer(trained.path) or load_tokenizer(trained.base, revision=trained.revision or "main")


def _stating(trained: Trained) -> Iterator[Path]:
    """Where an adapter's generation_config.json may lie: beside it, else with its base."""
    assert trained.adapter is not None
    yield trained.adapter
    if (base := at_hand(trained.base, revision=trained.revision or "main")) is not None:
        yield base


def _adapter_notes(trained: Trained) -> list[str]:
    config, notes = trained.config, []
    lora, merged, gguf = (unplaced_command(trained, to) for to in ("lora", "merged", "gguf"))
    if config.get("use_dora"):
        notes.append(
            f"vLLM, llama.cpp and Ollama load no DoRA adapter: `{lora}`, `{merged}` or `{gguf}` writes what they serve"
        )
    if config.get("modules_to_save"):
        notes.append(f"vLLM loads no adapter with modules_to_save: `{merged}` writes what it serves")
    if not trained.is_hub_base:
        notes.append(
            f"{shareable_base(trained)} is no id of the hub: who loads the adapter names the base, as in README.md"
        )
    if trained.storage is not None:
        notes.append("the adapter was trained on NF4 weights: load the base in 4 bits, as in README.md")
    return notes
