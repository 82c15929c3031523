"""A plain LoRA that does what a DoRA does, for servers that know no DoRA: vLLM and llama.cpp refuse one.

Written is the true change of each weight, (m / n) (W + s B A) - W, cut to a low rank. The change has full rank as soon as
m has moved, so the rank is measured: the smallest at which the model answers as the live adapter does, by the
divergence of the two over the rows of a merge's receipt. One layer's dense change exists at a time.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedModel

import dorakit
from dorakit.adapters.attach import adapter_layers, whole_modules
from dorakit.adapters.dora import DoRALinear
from dorakit.adapters.lora import LoRALinear
from dorakit.adapters.peft_config import read_config
from dorakit.adapters.peft_format import WEIGHTS, base_storage, check_saved, save_adapter
from dorakit.data.chat import install_template_
from dorakit.errors import GateError, UsageError
from dorakit.evaluation.progress import progress, say
from dorakit.export.low_rank import Factors, low_rank_factors
from dorakit.export.nf4_tensors import spread
from dorakit.export.receipt import (
    MAX_ROWS,
    Sample,
    adapter_sha256,
    compare_logits,
    logits_bytes,
    sample_rows,
    store_logits,
)
from dorakit.export.shards import check_output, check_space, locked
from dorakit.files import whole_directory, write_json
from dorakit.memory import return_freed_memory
from dorakit.model.nf4 import NF4Format, stored_format
from dorakit.place import Place, find_target
from dorakit.run import Run
from dorakit.target import open_target
from dorakit.training.interruptions import out_of_memory_said

if TYPE_CHECKING:
    from dorakit.target import Target

RECEIPT = "export.json"
# The ranks that vLLM's --max-lora-rank can be set to, up to where a LoRA is small beside a weight.
RANKS = (8, 16, 32, 64, 128, 256)


@out_of_memory_said("the model must fit in memory once, and its factors of the largest rank; --max-rank takes less")
def export_plain_lora(
    run: Run | Path | str,
    *,
    output: Path,
    onto: Literal["trained", "original"],
    max_kl: float,
    max_rank: int,
    quiet: bool,
) -> dict[str, Any]:
    """Write a PEFT directory of a LoRA without magnitude, rslora or patterns: r = lora_alpha, so the scale is 1.

    A LoRA is written at its own rank, as long as that is within `max_rank`; nothing of it is lost.

    Args:
        run: A finished run, or a PEFT adapter directory.
        output: Where to. An earlier result is replaced.
        onto: The base that the server loads: what the adapter was trained on (NF4), or the original weights.
        max_kl: Largest KL(live || plain), in nats a position, over supervised positions and over all.
        max_rank: One of RANKS.
        quiet: Print nothing.

    Returns:
        What export.json beside the adapter holds.

    Raises:
        UsageError: There is no adapter, it trains more than LoRA matrices, or the output is something else's.
        GateError: No rank within `max_rank` answers as the adapter does; nothing is left.
    """
    if max_rank not in RANKS:
        raise UsageError(f"--max-rank {max_rank}: expected one of {', '.join(map(str, RANKS))}")
    place = _adapter_place(str(run.path if isinstance(run, Run) else run))
    output = Path(os.path.expanduser(output))
    check_output(output, receipt=RECEIPT, forbidden=[place.path, place.run.path if place.run else None])
    onto, notes = _base_of_server(place, onto)
    for line in notes:
        say(line, quiet=quiet)
    with locked(place.run, output), whole_directory(output) as staging, _scratch(output) as scratch:
        if onto == "original":
            trained = _open(place, "trained", notes, quiet)
            store_logits(trained.model, sample_rows(trained.recipe, trained.tokenizer)[0], _made(scratch / "trained"))
            del trained
            gc.collect()
        live = _open(place, onto, notes, quiet)
        samples, rows = sample_rows(live.recipe, live.tokenizer)
        check_space(output, logits_bytes(live.model, samples) + _adapter_bytes(live.model, max_rank))
        store_logits(live.model, samples, _made(scratch / "live"))
        ranks = _ranks_to_try(live.model, max_rank)
        factors = _factors(live.model, ranks, quiet=quiet)
        tried = _search(live.model, factors, ranks, samples, scratch, max_kl=max_kl, quiet=quiet)
        _check_gate(tried, max_kl, place)
        _write(live, staging)
        content = _content(live, factors, tried, onto=onto, max_kl=max_kl, max_rank=max_rank)
        content["compared_on"], content["rows"], content["max_rows"] = rows, len(samples), MAX_ROWS
        if (scratch / "trained").is_dir():
            content["versus_trained_model"] = compare_logits(live.model, samples, scratch / "trained")
            divergence = content["versus_trained_model"]["all"]["kl"]
            notes.append(f"KL(model as trained || plain LoRA on the original weights) is {divergence:.2e}")
            say(notes[-1], quiet=quiet)
        content["bytes"] = (staging / WEIGHTS).stat().st_size
        content["sha256"] = {WEIGHTS: adapter_sha256(staging)}
        content["notes"] = notes
        write_json(staging / RECEIPT, content)
    return content


def _adapter_place(text: str) -> Place:
    """The run or adapter directory that a text names."""
    place = find_target(text)
    if place.is_absent:
        raise UsageError(f"no adapter to export: no such run or directory: {text}")
    if place.kind == "model":
        raise UsageError(f"no adapter to export: {text} is a whole model, not a run or an adapter directory")
    if place.run is not None:
        if place.run.recipe.method is None:
            raise UsageError(
                f"no adapter to export: {text} was trained in mode full, {place.run.model} is the whole model"
            )
        place.run.result  # noqa: B018  raises where training has not finished
    return place


def _base_of_server(
    place: Place, onto: Literal["trained", "original"]
) -> tuple[Literal["trained", "original"], list[str]]:
    """Where `onto` makes a difference, and what to say of it, as a merge does."""
    if place.kind == "run" and place.run is not None:
        is_nf4 = place.run.recipe.is_quantized
    else:
        assert place.path is not None
        is_nf4 = isinstance(base_storage(place.path), NF4Format)
    if onto == "trained":
        return onto, ["the adapter was trained on NF4 weights: serve it on a base stored so"] if is_nf4 else []
    if is_nf4:
        return onto, ["onto the original weights: the adapter was trained on NF4 ones, so this is another model"]
    return "trained", ["the adapter was trained on the weights as they are: --onto original changes nothing"]


def _open(place: Place, onto: Literal["trained", "original"], notes: list[str], quiet: bool) -> Target:
    target = open_target(place.text, onto=onto, as_stored=True)
    if onto == "original" and stored_format(target.model) is not None:
        raise UsageError(
            f"--onto original: {target.base} is stored as NF4, its original weights are not there\n  take --onto trained"
        )
    if whole := [name for name, _ in whole_modules(target.model)]:
        raise UsageError(
            f"{place.text} holds modules trained whole ({', '.join(whole[:5])}), which a server of plain LoRA does not take\n"
            f"  `dorakit merge` writes them into a model of its own"
        )
    for line in target.notes:
        if line not in notes:
            notes.append(line)
            say(line, quiet=quiet)
    return target


def _ranks_to_try(model: PreTrainedModel, max_rank: int) -> list[int]:
    """Ascending; none above the first that leaves nothing out."""
    layers = [layer for _, layer in adapter_layers(model)]
    own = max(layer.rank for layer in layers)
    if own <= max_rank and not any(isinstance(layer, DoRALinear) for layer in layers):
        return [own]
    whole = max(min(layer.in_features, layer.out_features) for layer in layers)
    return [rank for n, rank in enumerate(RANKS) if rank <= max_rank and (n == 0 or RANKS[n - 1] < whole)]


def _factors(model: PreTrainedModel, ranks: list[int], *, quiet: bool) -> dict[str, Factors]:
    """The factors of each adapted layer's change, largest rank, by name."""
    layers = list(adapter_layers(model))
    found = {}
    with progress("factoring layers", len(layers), quiet=quiet) as tell:
        for number, (name, layer) in enumerate(layers, start=1):
            found[name] = low_rank_factors(layer.delta_weight(), ranks)
            return_freed_memory(4 * layer.in_features * layer.out_features)
            tell(number)
    return found


def _search(
    model: PreTrainedModel,
    factors: dict[str, Factors],
    ranks: list[int],
    samples: list[Sample],
    scratch: Path,
    *,
    max_kl: float,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Compare rank after rank with the live logits, up to the first within the limit, which stays attached."""
    tried: list[dict[str, Any]] = []
    for rank in ranks:
        _attach_plain_(model, factors, rank)
        found = compare_logits(model, samples, scratch / "live")
        mean = sum(layer.errors[rank] for layer in factors.values()) / len(factors)
        tried.append({"rank": rank, "relative_error": mean, **found})
        say(
            f"rank {rank}: KL(live || plain) {found['all']['kl']:.2e}, top-1 agreement "
            f"{found['all']['top1_agreement']:.2%}, mean relative error of a layer {mean:.4f}",
            quiet=quiet,
        )
        if _is_within(tried[-1], max_kl):
            break
    return tried


@torch.no_grad()
def _attach_plain_(model: PreTrainedModel, factors: dict[str, Factors], rank: int) -> None:
    """Put the first `rank` directions in the place of each adapter; a smaller matrix has fewer, the others are zero."""
    for name, layer in list(adapter_layers(model)):
        plain = LoRALinear(layer.base, rank=rank, alpha=rank)
        held = min(rank, len(factors[name].A))
        plain.lora_A.zero_()[:held] = factors[name].A[:rank]
        plain.lora_B.zero_()[:, :held] = factors[name].B[:, :rank]
        model.set_submodule(name, plain.eval().requires_grad_(False))


def _is_within(found: dict[str, Any], max_kl: float) -> bool:
    # Written so that a NaN fails.
    return all(found[part]["kl"] is None or found[part]["kl"] <= max_kl for part in ("supervised", "all"))


def _check_gate(tried: list[dict[str, Any]], max_kl: float, place: Place) -> None:
    if _is_within(last := tried[-1], max_kl):
        return
    part = "supervised" if not (last["supervised"]["kl"] or 0.0) <= max_kl else "all"
    reached = ", ".join(f"{found['rank']}: {found[part]['kl']:.3g}" for found in tried)
    raise GateError(
        f"no plain LoRA up to rank {last['rank']} is the trained model: KL(live || plain) over {part} positions is "
        f"{last[part]['kl']:.3g}, above the limit {max_kl:g}\n"
        f"  by rank: {reached}; nothing was written\n"
        f"  `dorakit merge {place.text}` folds the adapter in without loss; a larger --max-rank or --max-kl lets a LoRA through"
    )


def _write(live: Target, staging: Path) -> None:
    assert live.adapter is not None
    stated = read_config(live.adapter)
    base, revision = stated.get("base_model_name_or_path") or live.base, stated.get("revision")
    save_adapter(live.model, staging, base_name_or_path=base, revision=revision)
    check_saved(live.model, staging)
    if live.recipe is not None and live.recipe.data.chat_template:
        install_template_(live.tokenizer, live.recipe.data)
        live.tokenizer.save_pretrained(staging)


def _content(
    live: Target, factors: dict[str, Factors], tried: list[dict[str, Any]], *, onto: str, max_kl: float, max_rank: int
) -> dict[str, Any]:
    assert live.adapter is not None
    rank = tried[-1]["rank"]
    return {
        "dorakit": dorakit.__version__,
        "to": "lora",
        "base": live.base,
        "adapter_sha256": adapter_sha256(live.adapter),
        "mode": live.recipe.adapter.mode if live.recipe else None,
        "onto": onto,
        "rank": rank,
        "max_rank": max_rank,
        "max_kl": max_kl,
        "tried": tried,
        "relative_error": spread({name: layer.errors[rank] for name, layer in factors.items()}),
    }


def _adapter_bytes(model: PreTrainedModel, rank: int) -> int:
    return sum(4 * rank * (layer.in_features + layer.out_features) for _, layer in adapter_layers(model))


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A directory for logits, on the disk of the result and gone afterwards."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".tmp-export-") as directory:
        yield Path(directory)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
