"""Merging: the adapter folded into its base, a plain model directory, and the receipt that it is the same model."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

import dorakit
from dorakit.adapters.peft_format import base_storage
from dorakit.data.chat import install_template_
from dorakit.errors import GateError, ModelError, UsageError
from dorakit.evaluation.progress import say
from dorakit.export.receipt import (
    MAX_ROWS,
    Sample,
    adapter_sha256,
    compare_logits,
    logits_bytes,
    sample_rows,
    store_logits,
)
from dorakit.export.shards import check_output, check_space, locked, write_description, write_shards
from dorakit.export.tensors import plain_model
from dorakit.files import whole_directory, write_json
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format, stored_format
from dorakit.model.streaming import packed_weights_on_disk
from dorakit.place import Place, find_target
from dorakit.recipe.schema import MergeSection
from dorakit.run import Run
from dorakit.target import open_target
from dorakit.training.device import as_found
from dorakit.training.interruptions import out_of_memory_said

if TYPE_CHECKING:
    from dorakit.recipe.schema import Recipe
    from dorakit.target import Target

RECEIPT = "merge.json"


@dataclass
class _Plan:
    """What one merge does, with every default filled in."""

    place: Place
    recipe: Recipe | None
    output: Path
    onto: Literal["trained", "original"]
    wants_original: bool
    dtype: str
    max_kl: float
    base_model: str | None
    quiet: bool
    # False where an adapter directory does not say how its base was stored: the weights as they are make do.
    knows_base: bool = True
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Print a line and keep it for the receipt."""
        self.notes.append(line)
        self.say(line)

    def say(self, line: str) -> None:
        say(line, quiet=self.quiet)

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def open(self, onto: Literal["trained", "original"], scratch: Path) -> Target:
        """Load the adapter, live on the base asked for; what is packed lies in `scratch`."""
        with packed_weights_on_disk(scratch):
            target = open_target(
                self.place.text, recipe=self.recipe, onto=onto, base_model=self.base_model, as_stored=True
            )
        if self.wants_original and stored_format(target.model) is not None:
            raise ModelError(
                f"--onto original: {target.base} is stored as NF4, its original weights are not there\n"
                "  merge onto the weights that the adapter was trained on: --onto trained"
            )
        for line in target.notes:
            if line not in self.notes:
                self.note(line)
        return target


@as_found()
@out_of_memory_said("the model must fit in memory once; --no-receipt needs the least")
def merge(
    run: Run | Path | str,
    *,
    output: Path | str | None = None,
    onto: Literal["trained", "original"] | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    receipt: bool = True,
    base_model: str | None = None,
    quiet: bool = False,
) -> Path:
    """Fold an adapter into its base and write a model directory that transformers loads, with its merge.json.

    Each weight is merged in float32 and rounded once. The directory is loaded back and held against the live adapter
    before it takes its place.

    Args:
        run: A run, or a PEFT adapter directory.
        output: Where to; RUN/merged for a run. An earlier result of this command is replaced.
        onto: The base that the adapter was trained on (NF4 is dequantized), or the original weights; None for the
            recipe's.
        dtype: Of the weights; None for the recipe's.
        receipt: False writes without comparing, and says so in merge.json.
        base_model: Base of an adapter directory, instead of the one that it names.
        quiet: Print nothing.

    Returns:
        The directory written.

    Raises:
        UsageError: There is no adapter to merge, or the output would overwrite something else.
        GateError: The merged model answers differently from the live one; nothing is left.
    """
    plan = _plan(run, output, onto, dtype, base_model, quiet)
    with locked(plan.place.run, plan.output), whole_directory(plan.output) as staging, _scratch(plan.output) as scratch:
        trained: list[Sample] | None = None
        if receipt and plan.onto == "original":
            # The model that was trained answers first: the receipt says how far the other one is from it.
            target = plan.open("trained", scratch)
            trained, _ = sample_rows(plan.recipe, target.tokenizer)
            check_space(plan.output, logits_bytes(target.model, trained))
            store_logits(target.model, trained, _made(scratch / "trained"))
            del target
            gc.collect()
        live = plan.open(plan.onto, scratch)
        samples, rows = sample_rows(plan.recipe, live.tokenizer) if receipt else ([], "")
        content = _write(plan, live, staging, samples)
        if receipt:
            plan.say("comparing the merged model with the live adapter")
            store_logits(live.model, samples, _made(scratch / "live"))
        del live
        gc.collect()
        content["receipt"] = "none"
        if receipt:
            content["receipt"] = _receipt(plan, staging, samples, scratch)
            content["receipt"]["compared_on"] = rows
        content["notes"] = plan.notes
        write_json(staging / RECEIPT, content)
    return plan.output


def _plan(
    run: Run | Path | str,
    output: Path | str | None,
    onto: Literal["trained", "original"] | None,
    dtype: str | None,
    base_model: str | None,
    quiet: bool,
) -> _Plan:
    place = find_target(str(run.path if isinstance(run, Run) else run))
    if place.is_absent:
        raise UsageError(f"nothing to merge: no such run or directory: {place.text}")
    if place.kind == "model":
        raise UsageError(f"nothing to merge: {place.text} is a whole model, not a run or an adapter directory")
    recipe = place.run.recipe if place.run else None
    if place.run is not None and recipe is not None and recipe.method is None:
        raise UsageError(
            f"nothing to merge: {place.run.path} was trained in mode full, {place.run.model} is the whole model"
        )
    section = recipe.merge if recipe else MergeSection()
    if place.run is not None:
        place.run.result  # noqa: B018  raises where training has not finished
    elif output is None:
        raise UsageError(f"{place.text} is an adapter outside a run: say where the merged model goes with --output DIR")
    directory = Path(os.path.expanduser(output)) if output is not None else place.run.merged if place.run else Path()
    check_output(directory, receipt=RECEIPT, forbidden=[place.path, place.run.path if place.run else None])
    onto = onto or section.onto
    dtype = dtype or section.dtype
    plan = _Plan(place, recipe, directory, onto, onto == "original", dtype, section.max_kl, base_model, quiet)
    is_nf4 = recipe is not None and recipe.is_quantized
    if place.kind == "adapter" and place.path is not None:
        stored = base_storage(place.path)
        is_nf4, plan.knows_base = isinstance(stored, NF4Format), stored is not None
    if plan.onto == "original" and is_nf4:
        plan.note("merging onto the original weights: the adapter was trained on NF4 ones, so this is another model")
    elif plan.onto == "original":
        if plan.knows_base:
            plan.note("the adapter was trained on the weights as they are: --onto original changes nothing")
        plan.onto = "trained"
    return plan


def _write(plan: _Plan, live: Target, staging: Path, samples: list[Sample]) -> dict[str, Any]:
    """Write the merged model into the staging directory; returns merge.json without its receipt.

    The disk must also hold the logits of the samples.
    """
    plain = plain_model(live.model)
    dtype = plan.torch_dtype
    weights = sum(tensor.shape.numel() for tensor in plain.tensors) * dtype.itemsize
    check_space(plan.output, weights + logits_bytes(live.model, samples))
    plan.say(f"merging {len(plain.tensors)} tensors in float32, writing {plan.dtype}")
    with torch.no_grad():
        stream = ((t.name, _rounded(t.make(), dtype)) for t in plain.tensors)
        size = write_shards(staging, stream)
    if plan.recipe is not None:
        install_template_(live.tokenizer, plan.recipe.data)
    write_description(staging, live.model, live.tokenizer, dtype=dtype, is_tied=plain.is_tied)
    assert live.adapter is not None
    return {
        "dorakit": dorakit.__version__,
        "base": live.base,
        "adapter_sha256": adapter_sha256(live.adapter),
        "mode": plan.recipe.adapter.mode if plan.recipe else None,
        "onto": plan.onto if plan.knows_base else "original",
        "dtype": plan.dtype,
        "tied_embeddings": plain.is_tied,
        "bytes": size,
    }


def _receipt(plan: _Plan, staging: Path, samples: list[Sample], scratch: Path) -> dict[str, Any]:
    """Load the staged directory back and compare it.

    Raises:
        GateError: Above the limit.
        ModelError: Files and model do not match tensor for tensor.
    """
    attention = plan.recipe.model.attention if plan.recipe else "auto"
    merged = load_base(str(staging), dtype=plan.dtype, attention=attention)
    if merged.notes:
        raise ModelError("the merged directory does not load back as it was written: " + "; ".join(merged.notes))
    merged.model.eval()
    found: dict[str, Any] = {"rows": len(samples), "max_rows": MAX_ROWS, "max_kl": plan.max_kl}
    found |= compare_logits(merged.model, samples, scratch / "live")
    if (scratch / "trained").is_dir():
        found["versus_trained_model"] = compare_logits(merged.model, samples, scratch / "trained")
        divergence = found["versus_trained_model"]["all"]["kl"]
        plan.note(f"KL(model as trained || merged onto the original weights) is {divergence:.2e}")
    for name in ("supervised", "all"):
        divergence = found[name]["kl"]
        # Written so that a NaN fails too.
        if divergence is not None and not divergence <= plan.max_kl:
            raise GateError(
                f"the merged model is not the trained one: over {name} positions KL(live || merged) is "
                f"{divergence:.3g}, above merge.max_kl {plan.max_kl:g}\n"
                f"  top-1 agreement {found[name]['top1_agreement']:.2%}, largest logit difference "
                f"{found[name]['max_logit_difference']:.3g}; nothing was written\n"
                f"  `--dtype float32` rounds less than {plan.dtype}; `--no-receipt` writes without comparing"
            )
    return found


def _rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A directory for logits and packed weights, on the disk of the result and gone afterwards."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".tmp-merge-") as directory:
        yield Path(directory)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
