"""Merging: the adapter folded into its base, a plain model directory, and the receipt.

The receipt has two parts. The weights are proved, tensor by tensor (proof.py): a merge that is wrong is refused whatever
its effect. What rounding to the file's dtype costs is measured on rows (receipt.py): it is refused only where it takes a real
part of what was learned.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

import dorakit
from dorakit.adapters.peft_config import read_config
from dorakit.adapters.peft_format import adapter_mode
from dorakit.data.chat import install_template_
from dorakit.digests import write_receipt
from dorakit.errors import Gate, GateError, ModelError
from dorakit.export.destination import check_output, check_space, sources_of, staged
from dorakit.export.merge_plan import RECEIPT, MergePlan, plan_merge
from dorakit.export.peft_reading import PeftReading
from dorakit.export.proof import WeightProof
from dorakit.export.receipt import (
    MAX_ROWS,
    Sample,
    adapter_sha256,
    compare_base,
    compare_logits,
    logits_bytes,
    sample_rows,
    share,
    store_logits,
    with_share_lost,
    worst_part,
)
from dorakit.export.shards import write_description, write_shards
from dorakit.export.tensors import plain_model
from dorakit.interruptions import explain_out_of_memory
from dorakit.model.load import load_base, pick_dtype
from dorakit.run import Run
from dorakit.training.device import as_found

if TYPE_CHECKING:
    from dorakit.target import Target


@as_found()
@explain_out_of_memory("the model must fit in memory once; --no-receipt needs the least")
def merge(
    run: Run | Path | str,
    *,
    output: Path | str | None = None,
    onto: Literal["trained", "original"] | None = None,
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None,
    receipt: bool = True,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Fold an adapter into its base and write a model directory that transformers loads, with its merge.json.

    Each weight is merged in float32, checked against its layer's forward pass, and rounded once. The directory is then
    loaded back and held against the live adapter before it takes its place.

    Args:
        run: A run, or a PEFT adapter directory.
        output: Where to; RUN/merged for a run. An earlier result of this command is replaced.
        onto: The base that the adapter was trained on (NF4 is dequantized), or the original weights; None for the
            recipe's.
        dtype: Of the weights; None for the recipe's. auto is bfloat16, or float32 where rounding to bfloat16 would take
            more of what was learned than merge.max_lost.
        receipt: False proves the weights but measures nothing on rows, and says so in merge.json.
        base_model: Base of an adapter directory, instead of the one that it names.
        accept_changes: Files of what is read that may have changed since they were written, each DIRECTORY/FILE.
        quiet: Print nothing.

    Returns:
        The directory written.

    Raises:
        UsageError: There is no adapter to merge, or the output would overwrite something else.
        RunError: The adapter changed since training.
        GateError: The merged weights are wrong, or rounding takes too much of what was learned; nothing is left.
    """
    plan = plan_merge(run, output, onto, dtype, base_model, accept_changes, quiet)
    own = plan.place.run.merged if plan.place.run else None
    check_output(plan.output, "merged", sources_of(plan.place, plan.recipe, base_model), own=own)
    return carry_out(plan, receipt=receipt)


def carry_out(plan: MergePlan, *, receipt: bool = True) -> Path:
    """Merge as planned, into an output that the caller has checked; the rest is as for `merge`."""
    with staged(plan.place.run, plan.output) as (staging, scratch):
        if receipt and plan.onto == "original":
            # The model that was trained answers too: the receipt says how far the other one is from it.
            target = plan.open("trained", scratch)
            samples, _ = sample_rows(plan.recipe, target.tokenizer)
            check_space(plan.output, logits_bytes(target.model, samples))
            store_logits(target.model, samples, _made(scratch / "trained"), label=plan.label("model as trained"))
            del target
            gc.collect()
        live: _Live | None = None
        refused: list[dict[str, Any]] = []
        for written in plan.dtypes:
            target = plan.open(plan.onto, scratch)
            samples, rows = sample_rows(plan.recipe, target.tokenizer) if receipt and live is None else ([], "")
            content = _write(plan, target, staging, written, beside=logits_bytes(target.model, samples))
            if samples:
                place = _made(scratch / "live")
                plan.say(f"comparing live model, base and merged model in float32, over {rows}")
                store_logits(target.model, samples, place, label=plan.label("live model"))
                learned = compare_base(target.model, samples, place, label=plan.label("base"))
                live = _Live(samples, rows, learned)
            del target
            gc.collect()
            content["receipt"] = "none"
            if live is None:
                break
            content["receipt"] = _receipt(plan, staging, written, live, scratch)
            _, lost = worst_part(content["receipt"])
            if lost is None or lost <= plan.max_lost:
                break
            refused.append(content["receipt"])
            _empty(staging)
        if refused:
            _judge(plan, refused)
        content["notes"] = plan.notes
        write_receipt(staging, RECEIPT, content)
    return plan.output


@dataclass(frozen=True)
class _Live:
    """The live model's answers, on disk: over which rows, and how far they are from its base's (`compare_base`)."""

    samples: list[Sample]
    compared_on: str
    learned: dict[str, Any] | None


def _write(plan: MergePlan, target: Target, staging: Path, dtype: str, *, beside: int) -> dict[str, Any]:
    """Write the merged model into the staging directory; returns merge.json without its receipt.

    The disk must hold `beside` bytes besides it.

    Raises:
        GateError: A weight that was computed, or that lies on the disk, is wrong.
    """
    plain = plain_model(target.model)
    weights = sum(tensor.shape.numel() for tensor in plain.tensors) * pick_dtype(dtype).itemsize
    check_space(plan.output, weights + beside)
    plan.say(f"merging {len(plain.tensors)} tensors in float32, writing {dtype}")
    assert target.adapter is not None
    # PEFT's formula is written out for LoRA and DoRA; of other updates the oracle tests hold the logits.
    is_foreign = plan.place.run is None and read_config(target.adapter)["peft_type"] == "LORA"
    reading = PeftReading(target.adapter, target.model) if is_foreign else None
    proof = WeightProof(target.model, reading)
    with torch.no_grad():
        size = write_shards(staging, proof.rounded(plain.tensors, pick_dtype(dtype)))
    if plan.recipe is not None:
        install_template_(target.tokenizer, plan.recipe.data)
    for line in write_description(
        staging, target.model, target.tokenizer, dtype=pick_dtype(dtype), is_tied=plain.is_tied
    ):
        if line not in plan.notes:
            plan.note(line)
    return {
        "dorakit": dorakit.__version__,
        "base": target.base,
        "adapter_sha256": adapter_sha256(target.adapter),
        "mode": plan.recipe.adapter.mode if plan.recipe else adapter_mode(target.adapter),
        "onto": plan.onto if plan.knows_base else "original",
        "dtype": dtype,
        "tied_embeddings": plain.is_tied,
        "bytes": size,
        "proved_tensors": proof.check_files(staging),
        "as_peft_reads_it": None if reading is None else reading.num_checked,
    }


def _receipt(plan: MergePlan, staging: Path, dtype: str, live: _Live, scratch: Path) -> dict[str, Any]:
    """Load the staged directory back and compare it.

    Raises:
        ModelError: Files and model do not match tensor for tensor.
    """
    attention = plan.recipe.model.attention if plan.recipe else "auto"
    merged = load_base(str(staging), dtype=dtype, attention=attention)
    if merged.notes:
        raise ModelError("the merged directory does not load back as it was written: " + "; ".join(merged.notes))
    merged.model.eval()
    found = with_share_lost(
        compare_logits(merged.model, live.samples, scratch / "live", label=plan.label("merged model")), live.learned
    )
    if (scratch / "trained").is_dir():
        found["versus_trained_model"] = compare_logits(merged.model, live.samples, scratch / "trained")
        divergence = found["versus_trained_model"]["all"]["kl"]
        plan.note(f"KL(model as trained || merged onto the original weights) is {divergence:.2e}")
    return {
        "rows": len(live.samples),
        "max_rows": MAX_ROWS,
        "compared_on": live.compared_on,
        "computed_in": "float32",
        "max_lost": plan.max_lost,
        **found,
    }


def _judge(plan: MergePlan, refused: list[dict[str, Any]]) -> None:
    """Say what receipts above the limit mean; only under dtype auto may the float32 model that followed one be kept.

    Raises:
        GateError: float32, which rounds nothing away, is above the limit too; or a 16-bit dtype was asked for.
    """
    part, lost = worst_part(receipt := refused[-1])
    found, taken = receipt[part], f"{share(lost or 0.0)} of what was learned"
    figures = (
        f"KL(live || merged) is {found['kl']:.3g} nats a token and KL(live || base) {found['learned_kl']:.3g}, over {part} "
        f"positions of {receipt['compared_on']}"
    )
    gate = Gate("lost", lost or 0.0, plan.max_lost, "merge.max_lost")
    if len(refused) == len(plan.dtypes):
        raise GateError(
            f"the merged model is not the trained one: {taken} is lost in float32 (limit merge.max_lost {plan.max_lost:g})\n"
            f"  {figures}; nothing was written",
            gate,
        )
    if plan.dtype != "auto":
        raise GateError(
            f"rounding to {plan.dtype} takes {taken}, above the limit merge.max_lost {plan.max_lost:g}\n"
            f"  {figures}\n"
            f"  the weights are right; what the adapter changed is small beside the spacing of {plan.dtype}\n"
            "  `--dtype float32` was tried and is within the limit; nothing was written",
            gate,
        )
    plan.note(
        f"merge.dtype: auto: rounding to {plan.dtypes[0]} takes {taken} (limit {share(plan.max_lost)}): float32 is written, "
        "twice as large"
    )


def _empty(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
