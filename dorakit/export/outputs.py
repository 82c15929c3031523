"""`dorakit export` to a PEFT adapter directory and a plain LoRA, and what all exports have in common."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

import dorakit
from dorakit.adapters.converted import write_on_original
from dorakit.adapters.on_disk import OWN_TYPE
from dorakit.adapters.peft_config import CONFIG, method_of, start_of, update_of
from dorakit.adapters.peft_format import WEIGHTS
from dorakit.adapters.storage import STORAGE
from dorakit.build import build_tokenizer
from dorakit.data.chat import install_template_
from dorakit.data.generation_config import read_generation_config, write_generation_config
from dorakit.digests import EXPORTED, refuse_changed, write_receipt
from dorakit.errors import Gate, GateError, UsageError
from dorakit.export.card import Card, base_in_words, card_text, shareable_base, shareable_directory
from dorakit.export.destination import CARD, check_output, check_space, sources_of, staged
from dorakit.export.gguf_file import FAMILIES
from dorakit.export.merged_directory import Onto
from dorakit.export.receipt import adapter_sha256, read_receipt
from dorakit.export.serving import adapter_lines, gguf_adapter_lines, served_name
from dorakit.export.trained import Trained, find_trained
from dorakit.files import write_json, write_whole
from dorakit.model.configs import read_object
from dorakit.model.load import load_tokenizer, saved_tokenizer
from dorakit.model.source import at_hand, gguf_file
from dorakit.place import find_target
from dorakit.progress import say
from dorakit.run import Run
from dorakit.terminal import typed


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        directory: Where it is.
        content: Of export.json.
        serve: Commands that serve it.
        instead: Commands that export what servers load, where none loads this.
    """

    directory: Path
    content: dict[str, Any]
    serve: list[str]
    instead: list[str] = field(default_factory=list)


def place_for(trained: Trained, to: str, output: Path | str | None) -> Path:
    """Directory of an export.

    Raises:
        UsageError: Something else is there, or an adapter directory has no output.
    """
    directory = trained.place(to, output)
    own = trained.place(to, None) if trained.run else None
    check_output(directory, to, sources_of(find_target(trained.text), None, trained.base_model), own=own)
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
    target: Run | Path | str,
    *,
    output: Path | str | None = None,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> Exported:
    """Write an adapter as PEFT and the hub take it: the adapter, the tokenizer with its chat template, a card.

    Args:
        target: A finished run, or a PEFT adapter directory.
        output: A directory; RUN/peft for a run. An earlier result of this command is replaced.
        base_model: Base of an adapter directory, instead of the one that it names.
        accept_changes: Files of what is read that may have changed since they were written, each DIRECTORY/FILE.
        quiet: Print nothing.

    Raises:
        UsageError: The run has no adapter, or the output would overwrite something else.
        RunError: The adapter changed since training.
    """
    trained = find_trained(target, base_model=base_model)
    refuse_full(trained, "peft")
    assert trained.adapter is not None
    directory = place_for(trained, "peft", output)
    accepted = refuse_changed({trained.adapter: {}}, accept_changes)
    begun = start_of(trained.config)
    if begun != "kaiming" and trained.storage is not None:
        raise UsageError(
            f"--to peft: {trained.adapter} began with {begun} on a base in 4 bits, and no LoRA on that base is the same model\n"
            f"  `{trained.command('lora')}` or `{trained.command('merged')}`"
        )
    files = [trained.adapter / name for name in (CONFIG, WEIGHTS, STORAGE) if (trained.adapter / name).is_file()]
    with staged(trained.run, directory) as (staging, _):
        check_space(directory, sum(file.stat().st_size for file in files))
        tokenizer = _tokenizer(trained)
        tokenizer.save_pretrained(staging)
        stated = next((found for place in _stating(trained) if (found := read_generation_config(place))), None)
        notes = write_generation_config(staging, stated, tokenizer)
        for file in files:
            shutil.copy(file, staging)
        config = trained.config
        if begun != "kaiming":
            config = write_on_original(trained.adapter, staging)
        if (staging / STORAGE).is_file():  # which listed the files of the other directory
            kept = read_receipt(staging, STORAGE)
            write_json(staging / STORAGE, {key: value for key, value in kept.items() if key != "files"})
        if base_model is not None:
            config = {**config, "base_model_name_or_path": base_model, "revision": None}
            write_json(staging / CONFIG, config)
        notes = [*accepted, *notes, *_adapter_notes(trained)]
        for line in notes:
            # Printed, a command names the place; kept and published, it does not.
            for to in ("lora", "merged", "gguf"):
                line = line.replace(unplaced_command(trained, to), trained.command(to))
            say(line, quiet=quiet)
        content = {**described(trained, "peft"), "notes": notes}
        if begun == "kaiming" and adapter_sha256(staging) != content["adapter_sha256"]:
            raise GateError(
                f"{WEIGHTS} as it was copied is not the adapter's\n"
                "  nothing was written; this is a fault of this machine's memory or disk",
                Gate("wrong_weights", 1, 0),
            )

        published = adapter_lines(Path("."), trained.name, shareable_directory(trained), config)
        write_whole(staging / CARD, card_text(Card(trained, "peft", published)))
        content = write_receipt(staging, EXPORTED, content)
    serve = adapter_lines(directory, trained.name, trained.served_base, config)
    return Exported(directory, content, serve, [] if serve else [trained.command(to) for to in ("merged", "gguf")])


def export_lora(
    target: Run | Path | str,
    *,
    output: Path | str | None = None,
    onto: Onto | None = None,
    max_lost: float | None = None,
    max_rank: int,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
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
    onto = onto or (trained.recipe.merge.onto if trained.recipe else "trained")
    file = gguf_file(trained.base)
    converted = f"{served_name(Path(trained.base).name)}.gguf"

    def serve(written: Path, place: Path, base: str | None, base_file: str) -> list[str]:
        lines = adapter_lines(place, trained.name, base, read_receipt(written, CONFIG))
        return lines + (gguf_adapter_lines(place / GGUF, base_file) if (written / GGUF).is_file() else [])

    def finish(staging: Path, content: dict[str, Any]) -> None:
        more = _base_notes(trained)
        if file is None and (staging / GGUF).is_file():
            more.append(f"{converted} is the base as llama.cpp's convert_hf_to_gguf.py writes it")
        for line in more:
            say(line, quiet=quiet)
        # The notes name the adapter by its place on this machine.
        notes = [line.replace(trained.text, trained.name) for line in content["notes"]] + more
        content.update(described(trained, "lora"), notes=notes)
        published = serve(staging, Path("."), shareable_directory(trained), typed(file.name) if file else converted)
        write_whole(staging / CARD, card_text(Card(trained, "lora", published)))

    content = export_plain_lora(
        trained.text,
        output=directory,
        onto=onto,
        max_lost=MAX_LOST if max_lost is None else max_lost,
        max_rank=max_rank,
        base_model=base_model,
        accept_changes=accept_changes,
        finish=finish,
        quiet=quiet,
    )
    lines = serve(directory, directory, trained.served_base, typed(file) if file else converted)
    return Exported(directory, content, lines, [] if lines else [trained.command(to) for to in ("merged", "gguf")])


def unplaced_command(trained: Trained, to: str) -> str:
    """The command of another form for what is kept and published, without a place on this machine."""
    return f"dorakit export {'RUN' if trained.run else 'ADAPTER'} --to {to}{'' if trained.run else ' --output DIR'}"


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
    kind = "DoRA" if config.get("use_dora") else str(update_of(config))
    if kind != "lora":
        notes.append(
            f"vLLM, llama.cpp and Ollama load no {kind} adapter: `{lora}`, `{merged}` or `{gguf}` writes what they serve"
        )
    if (begun := start_of(config)) != "kaiming":
        notes.append(
            f"{begun} changed the base in training: this is the same model as a LoRA of twice the rank on the original"
        )
    elif config["peft_type"] == OWN_TYPE:
        under = " under a magnitude" if method_of(config) == "dora" else ""
        notes.append(f"PEFT has no name for this update{under} and refuses the file; dorakit reads it")
    if config.get("modules_to_save"):
        notes.append(f"vLLM loads no adapter with modules_to_save: `{merged}` writes what it serves")
    notes += _base_notes(trained)
    if trained.storage is not None:
        notes.append("the adapter was trained on NF4 weights: load the base in 4 bits")
    return notes


def _base_notes(trained: Trained) -> list[str]:
    """A line on a base that other programs do not find by its name."""
    if trained.served_base is None:
        return [f"{base_in_words(trained)}: others load the whole model, which --to merged and --to gguf write"]
    if not trained.is_hub_base:
        return [f"the base is the directory {shareable_base(trained)}: whoever loads the adapter needs it too"]
    return []
