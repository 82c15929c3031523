"""A plain LoRA that does what a DoRA does, for servers that know no DoRA: vLLM and llama.cpp refuse one.

Written is the true change of each weight, (m / n) (W + s B A) - W, cut to a low rank. The change has full rank as soon as
m has moved, so the rank is measured (rank_search.py), by the share of what was learned that it leaves out over the rows of a
merge's receipt. The live model answers first; then its adapters are replaced, so one model is in memory.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dorakit
from dorakit.adapters.attach import adapter_layers, whole_modules
from dorakit.adapters.peft_config import read_config
from dorakit.adapters.peft_format import WEIGHTS, adapter_mode, check_saved, save_adapter
from dorakit.adapters.storage import base_storage
from dorakit.data.chat import install_template_
from dorakit.data.generation_config import write_generation_config
from dorakit.digests import EXPORTED, sha256, write_receipt
from dorakit.errors import UsageError
from dorakit.export.card import shareable_base
from dorakit.export.destination import check_output, check_space, sources_of, staged
from dorakit.export.gguf_adapter import write_gguf_adapter
from dorakit.export.gguf_file import FAMILIES
from dorakit.export.nf4_tensors import spread
from dorakit.export.rank_search import RANKS, factor_layers, ranks_to_try, try_ranks_
from dorakit.export.receipt import (
    MAX_ROWS,
    Sample,
    adapter_sha256,
    compare_base,
    compare_logits,
    logits_bytes,
    sample_rows,
    store_logits,
)
from dorakit.interruptions import explain_out_of_memory
from dorakit.model.nf4 import NF4Format, NF4Linear, stored_format
from dorakit.place import Place, find_target
from dorakit.progress import say
from dorakit.run import Run
from dorakit.target import open_target
from dorakit.terminal import typed

if TYPE_CHECKING:
    from dorakit.target import Target

# A rank below a DoRA's own leaves out several times as much, and answers less alike than dropping m would
# (docs/plain_lora.md).
MAX_LOST = 0.0005

GGUF = "adapter.gguf"
_Onto = Literal["trained", "original"]
_Note = Callable[[str], None]


@explain_out_of_memory(
    "the model must fit in memory once, and its factors of the largest rank: a smaller --max-rank takes less"
)
def export_plain_lora(
    run: Run | Path | str,
    *,
    output: Path,
    onto: _Onto,
    max_lost: float = MAX_LOST,
    max_rank: int,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    finish: Callable[[Path, dict[str, Any]], None] = lambda staging, content: None,
    quiet: bool,
) -> dict[str, Any]:
    """Write a PEFT directory of a LoRA without magnitude, rslora or patterns: r = lora_alpha, so the scale is 1.

    Beside it goes adapter.gguf, where llama.cpp can use it. A LoRA is written at its own rank where that is within
    `max_rank`, and nothing of it is lost.

    Args:
        run: A finished run, or a PEFT adapter directory.
        output: Where to. An earlier result is replaced.
        onto: The base that the server loads: what the adapter was trained on (NF4), or the original weights.
        max_lost: Largest share of KL(live || base) that may be left out, over supervised positions and over all; both sides
            are computed in float32.
        max_rank: One of RANKS.
        base_model: Base of an adapter directory, instead of the one that it names.
        accept_changes: Files of what is read that may have changed since they were written, each DIRECTORY/FILE.
        finish: Writes what else goes into the staging directory, and completes export.json.
        quiet: Print nothing.

    Returns:
        What export.json beside the adapter holds.

    Raises:
        UsageError: There is no adapter, it trains more than LoRA matrices, or the output is something else's.
        GateError: Every rank within `max_rank` leaves more out; nothing is left.
    """
    notes: list[str] = []

    def note(line: str) -> None:
        if line not in notes:
            notes.append(line)
            say(line, quiet=quiet)

    if max_rank not in RANKS:
        raise UsageError(f"--max-rank {max_rank}: expected one of {', '.join(map(str, RANKS))}")
    place, output = _adapter_place(str(run.path if isinstance(run, Run) else run)), Path(os.path.expanduser(output))
    check_output(output, "lora", sources_of(place, None, base_model), own=place.run.lora if place.run else None)
    onto = _base_of_server(place, onto, note)
    with staged(place.run, output) as (staging, scratch):
        if onto == "original":
            # The model that was trained answers too: the receipt says how far this other one is from it.
            trained = _open(place, "trained", base_model, accept_changes, note)
            _answer(trained, output, scratch / "trained")
            del trained
            gc.collect()
        live = _open(place, onto, base_model, accept_changes, note)
        samples, rows = _answer(live, output, scratch / "live", beside=_adapter_bytes(live, max_rank))
        learned = compare_base(live.model, samples, scratch / "live")
        ranks = ranks_to_try(live.model, max_rank)
        factors = factor_layers(live.model, ranks, quiet=quiet)
        tried = try_ranks_(
            live.model, factors, ranks, samples, scratch / "live", learned, max_lost=max_lost, quiet=quiet
        )
        content = {
            **_source(place, live),
            "onto": onto,
            "max_rank": max_rank,
            "max_lost": max_lost,
            "rank": (rank := tried[-1]["rank"]),
            "tried": tried,
            "relative_error": spread({name: layer.errors[rank] for name, layer in factors.items()}),
            "compared_on": rows,
            "rows": len(samples),
            "max_rows": MAX_ROWS,
        }
        if (scratch / "trained").is_dir():
            content["versus_trained_model"] = compare_logits(live.model, samples, scratch / "trained")
            divergence = content["versus_trained_model"]["all"]["kl"]
            note(f"KL(model as trained || plain LoRA on the original weights) is {divergence:.2e}")
        files = _write(live, staging, base_model, note)
        content["bytes"] = {file: (staging / file).stat().st_size for file in files}
        content["sha256"] = {file: sha256(staging / file) for file in files}
        content["notes"] = notes
        finish(staging, content)
        content = write_receipt(staging, EXPORTED, content)
    return content


def _adapter_place(text: str) -> Place:
    """The run or adapter directory that a text names."""
    place = find_target(text)
    place.refuse_absent("no adapter to export: ")
    if place.kind == "model":
        raise UsageError(f"no adapter to export: {text} is a whole model, not a run or an adapter directory")
    if place.run is not None:
        if place.run.recipe.trains_whole:
            raise UsageError(
                f"no adapter to export: {text} was trained in mode full, {place.run.model} is the whole model"
            )
        place.run.result  # noqa: B018  raises where training has not finished
    return place


def _base_of_server(place: Place, onto: _Onto, note: _Note) -> _Onto:
    """What `onto` comes to for this adapter, as for a merge."""
    if place.kind == "run" and place.run is not None:
        is_nf4 = place.run.recipe.stores_nf4
    else:
        assert place.path is not None
        is_nf4 = isinstance(base_storage(place.path), NF4Format)
    if onto == "trained":
        if is_nf4:
            note("the adapter was trained on NF4 weights and is exported for a base stored so: serve it on one")
        return onto
    if is_nf4:
        note("onto the original weights: the adapter was trained on NF4 ones, so this is another model")
        return onto
    note("the adapter was trained on the weights as they are: --onto original changes nothing")
    return "trained"


def _open(place: Place, onto: _Onto, base_model: str | None, accept_changes: Sequence[str], note: _Note) -> Target:
    """Load the adapter, live on the base asked for."""
    target = open_target(place.text, onto=onto, base_model=base_model, as_stored=True, accept_changes=accept_changes)
    if onto == "original" and stored_format(target.model) is not None:
        raise UsageError(
            f"--onto original: {target.base} is stored as NF4, its original weights are not there\n  take --onto trained"
        )
    if whole := [name for name, _ in whole_modules(target.model)]:
        raise UsageError(
            f"{place.text} holds modules trained whole ({', '.join(whole[:5])}), which servers of plain LoRA do not take\n"
            f"  `dorakit export {typed(place.text)} --to merged{'' if place.run else ' --output DIR'}` writes a model with them"
        )
    for line in target.notes:
        note(line)
    return target


def _answer(target: Target, output: Path, directory: Path, *, beside: int = 0) -> tuple[list[Sample], str]:
    """Store the model's logits over the rows to compare on; the rows, and where they come from.

    Besides them, the disk must hold `beside` bytes.
    """
    samples, rows = sample_rows(target.recipe, target.tokenizer)
    check_space(output, logits_bytes(target.model, samples) + beside)
    directory.mkdir()
    store_logits(target.model, samples, directory)
    return samples, rows


def _source(place: Place, live: Target) -> dict[str, Any]:
    """What export.json says of the adapter that is exported; of a run's base on this machine the last name."""
    assert live.adapter is not None
    return {
        "dorakit": dorakit.__version__,
        "to": "lora",
        "base": shareable_base(place.run) if place.run else live.base,
        "adapter_sha256": adapter_sha256(live.adapter),
        "mode": live.recipe.adapter.mode if live.recipe else adapter_mode(live.adapter),
    }


def _adapter_bytes(live: Target, rank: int) -> int:
    """Of both files at that rank."""
    return sum(2 * 4 * rank * (layer.in_features + layer.out_features) for _, layer in adapter_layers(live.model))


def _write(live: Target, staging: Path, base_model: str | None, note: _Note) -> list[str]:
    """Write what is attached for PEFT's readers and, where it can be used there, for llama.cpp; the weights' files."""
    assert live.adapter is not None
    stated = read_config(live.adapter)
    base, revision = stated.get("base_model_name_or_path") or live.base, stated.get("revision")
    if base_model is not None:
        base, revision = base_model, None
    save_adapter(live.model, staging, base_name_or_path=base, revision=revision)
    check_saved(live.model, staging)
    if live.recipe is not None and live.recipe.data.chat_template:
        install_template_(live.tokenizer, live.recipe.data)
        live.tokenizer.save_pretrained(staging)
    for line in write_generation_config(staging, live.model.generation_config, live.tokenizer):
        note(line)
    if any(isinstance(module, NF4Linear) for module in live.model.modules()):
        note(f"no {GGUF}: llama.cpp loads no NF4 base; --onto original makes one for the unquantized weights")
    elif (family := live.model.config.model_type) not in FAMILIES:
        note(f"no {GGUF}: known are {', '.join(FAMILIES)}, and this model is of type {family}")
    else:
        write_gguf_adapter(live.model, staging / GGUF)
        return [WEIGHTS, GGUF]
    return [WEIGHTS]
