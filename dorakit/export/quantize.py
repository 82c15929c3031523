"""Quantizing: a model in bitsandbytes' NF4 format on disk, which transformers and dorakit load."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

import dorakit
from dorakit.data.chat import install_template_
from dorakit.digests import QUANTIZED, write_receipt
from dorakit.errors import DataError, ModelError, UsageError
from dorakit.evaluation.perplexity import perplexity, token_loss
from dorakit.evaluation.task import rows_to_measure
from dorakit.export.destination import check_output, check_space, sources_of, staged
from dorakit.export.merge_plan import RECEIPT as MERGE_RECEIPT
from dorakit.export.nf4_tensors import Ledger, nf4_bytes, nf4_tensors, spread
from dorakit.export.receipt import (
    Sample,
    adapter_sha256,
    compare_base,
    compare_logits,
    learned_of,
    logits_bytes,
    read_receipt,
    sample_rows,
    store_logits,
    with_share_lost,
)
from dorakit.export.shards import bitsandbytes_config, write_description, write_shards
from dorakit.export.tensors import plain_model
from dorakit.interruptions import explain_out_of_memory
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format, NF4Linear
from dorakit.place import Place, find_target
from dorakit.progress import say
from dorakit.recipe.schema import MergeSection
from dorakit.run import Run
from dorakit.target import Target, open_target
from dorakit.terminal import typed
from dorakit.training.device import as_found
from dorakit.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dorakit.evaluation.rows import HeldOut
    from dorakit.recipe.schema import Recipe

RECEIPT = QUANTIZED
# Rows that perplexity is taken over, before and after: enough to see damage, few enough to wait for on a CPU.
MAX_ROWS = 256


@as_found()
@explain_out_of_memory("the dense model must fit in memory once")
def quantize(
    target: Run | Path | str,
    *,
    format: Literal["nf4"] = "nf4",
    output: Path | str | None = None,
    keep_row_norms: bool = False,
    recipe: Recipe | None = None,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Write a 4-bit model directory, and quantize.json: sizes, error per layer, perplexity before and after, and the share of
    what was learned that 4 bits lose (receipt.py). The loss is expected and refuses nothing.

    Linear layers become NF4 with double quantization; the embedding and the output head stay in 16 bit. A run or an
    adapter is merged first, in memory, with the rounding that `merge` would do; RUN/merged is read instead where it was
    made from the adapter that the run holds now. A run in a q mode is merged onto the original weights (see `_source`).

    Args:
        target: A run, an adapter directory, a model directory, or a base as in `model.base`.
        format: There is one.
        output: Where to; RUN/quantized for a run and what lies in it. An earlier result of this command is replaced.
        keep_row_norms: Scale each quantized row back to the norm that it had; after DoRA that is the learnt magnitude.
            What that is worth is in docs/study.md.
        recipe: Names the rows for perplexity where the target belongs to no run.
        base_model: Base of an adapter directory, instead of the one that it names.
        accept_changes: Files of what is read that may have changed since they were written, each DIRECTORY/FILE.
        quiet: Print nothing.

    Returns:
        The directory written.

    Raises:
        UsageError: Another format, no output given, or one that would overwrite something else.
        ModelError: The model is quantized already, or the result does not load back.
        RunError: The adapter or the model changed since it was written.
    """
    if format != "nf4":
        raise UsageError(f"--format {format}: only nf4 can be written")
    place = find_target(str(target.path if isinstance(target, Run) else target))
    if output is None and "/" not in place.text:
        place.refuse_absent(hint="a model of the hub needs a place: --output DIR")
    if output is None and place.run is None:
        raise UsageError(f"{place.text} belongs to no run: say where the quantized model goes with --output DIR")
    directory = Path(os.path.expanduser(output)) if output is not None else place.run.quantized if place.run else Path()
    sources = sources_of(place, recipe, base_model)
    check_output(directory, "quantized", sources, own=place.run.quantized if place.run else None)
    with staged(place.run, directory) as (staging, scratch):
        source, origin, onto = _source(place, quiet=quiet)
        opened = open_target(
            source, recipe=recipe, onto=onto, base_model=base_model, as_stored=True, accept_changes=accept_changes
        )
        for line in opened.notes:
            say(line, quiet=quiet)
        if any(isinstance(module, NF4Linear) for module in opened.model.modules()):
            if opened.adapter is None:
                raise ModelError(f"{place.text} is NF4 already: there is nothing to quantize")
            raise ModelError(
                f"{place.text}: the weights of its base exist as NF4 only, and quantizing again would round the update away\n"
                f"  `dorakit merge {typed(place.text)}{'' if place.run else ' --output DIR'}` writes it in 16 bit"
            )
        rows, reason = _rows(opened)
        before = _perplexity(opened, rows, quiet=quiet)
        samples, compared_on = sample_rows(opened.recipe, opened.tokenizer)
        learned = _answer(opened, samples, directory, scratch, quiet=quiet)
        content = _write(opened, staging, keep_row_norms=keep_row_norms, quiet=quiet)
        content["base"] = place.run.recipe.model.base if place.run else opened.base
        content["adapter_sha256"] = _adapter_of(Path(source), opened)
        known = opened.recipe
        del opened
        gc.collect()
        dtype, attention = ("auto", "auto") if known is None else (known.model.dtype, known.model.attention)
        reloaded = load_base(str(staging), dtype=dtype, attention=attention)
        if reloaded.notes:
            raise ModelError("the quantized directory does not load back as written: " + "; ".join(reloaded.notes))
        after = None
        if rows is not None and known is not None:
            size, model = known.training.micro_batch_size, reloaded.model.eval()
            after, _ = token_loss(model, reloaded.tokenizer, rows.documents, micro_batch_size=size, quiet=quiet)
        content["source"] = origin
        label = None if quiet else "answers after"
        found = with_share_lost(compare_logits(reloaded.model.eval(), samples, scratch, label=label), learned)
        content["compared"] = {"rows": len(samples), "compared_on": compared_on, "computed_in": "float32", **found}
        content["perplexity"] = {
            "before": None if before is None else perplexity(before),
            "after": None if after is None else perplexity(after),
            "data": rows.name if rows else None,
            "tokens": sum(d.num_labels for d in rows.documents) if rows else 0,
            "reason": reason,
        }
        write_receipt(staging, RECEIPT, content)
    return directory


def _source(place: Place, *, quiet: bool) -> tuple[str, str, Literal["trained", "original"]]:
    """What to load, what it is, and which base an adapter goes onto.

    A run's merged directory where it is up to date, else the target itself. An adapter trained on NF4 goes onto the
    original weights: dequantized NF4 lies exactly on the grid that quantizing rounds to, so an update smaller than half
    a step of the grid, which is most of a fine-tune, would round away weight by weight and leave the base.
    """
    run = place.run
    if run is not None and place.path is not None and place.path.resolve() == run.merged.resolve():
        receipt = read_receipt(run.merged, MERGE_RECEIPT)
        if run.recipe.stores_nf4 and receipt.get("onto") == "trained":
            say(f"{place.text} lies on the NF4 grid of its base: taking the adapter of {run.path} instead", quiet=quiet)
            return str(run.path), "adapter, merged in memory onto the original weights", "original"
    if place.kind == "adapter":
        return place.text, "adapter, merged in memory onto the original weights", "original"
    if place.kind != "run" or run is None or run.result == run.model:
        return place.text, "model", "trained"
    if run.recipe.stores_nf4:
        return place.text, "adapter, merged in memory onto the original weights", "original"
    if not (run.merged / MERGE_RECEIPT).is_file():
        return place.text, "adapter, merged in memory", "trained"
    receipt = read_receipt(run.merged, MERGE_RECEIPT)
    section = run.recipe.merge
    # Rounded to 16 bits next, the two that auto may have written are one.
    dtypes = ("bfloat16", "float32") if section.dtype == "auto" else (section.dtype,)
    now = {"adapter_sha256": adapter_sha256(run.adapter), "onto": "trained"}
    if all(receipt.get(key) == value for key, value in now.items()) and receipt.get("dtype") in dtypes:
        say(f"quantizing {run.merged}", quiet=quiet)
        return str(run.merged), "merged directory", "trained"
    say(f"{run.merged} was made otherwise: merging the adapter anew, in memory", quiet=quiet)
    return place.text, "adapter, merged in memory", "trained"


def _answer(
    target: Target, samples: list[Sample], output: Path, scratch: Path, *, quiet: bool
) -> dict[str, Any] | None:
    """Store the model's logits; what was learned, as `compare_base`, or as merge.json says of a merged directory."""
    check_space(output, logits_bytes(target.model, samples))
    store_logits(target.model, samples, scratch, label=None if quiet else "answers before")
    if target.variant == "merged" and target.run is not None:
        return learned_of(read_receipt(target.run.merged, MERGE_RECEIPT))
    return compare_base(target.model, samples, scratch, label=None if quiet else "answers of the base")


def _adapter_of(source: Path, target: Target) -> str | None:
    """Digest of the adapter inside: attached, or merged in according to merge.json."""
    if target.adapter is not None:
        return adapter_sha256(target.adapter)
    if (source / MERGE_RECEIPT).is_file():
        return str(read_receipt(source, MERGE_RECEIPT).get("adapter_sha256"))
    return None


def _rows(target: Target) -> tuple[HeldOut | None, str | None]:
    """Rows for perplexity, or why there are none."""
    if target.recipe is None:
        return None, "no recipe names rows; give one with --recipe"
    unjudged = target.recipe.evaluation.model_copy(update={"metric": "none", "options": []})
    try:
        rows = rows_to_measure(
            target.recipe.model_copy(update={"evaluation": unjudged}), target.tokenizer, limit=MAX_ROWS
        )
    except DataError as error:
        return None, str(error).splitlines()[0]
    return (rows, None) if rows.documents else (None, "the test rows hold no text to take the loss of")


def _perplexity(target: Target, rows: HeldOut | None, *, quiet: bool) -> float | None:
    if rows is None or target.recipe is None:
        return None
    size = target.recipe.training.micro_batch_size
    return token_loss(target.model, target.tokenizer, rows.documents, micro_batch_size=size, quiet=quiet)[0]


def _write(target: Target, staging: Path, *, keep_row_norms: bool, quiet: bool) -> dict[str, Any]:
    """Write the quantized model into the staging directory; returns quantize.json without its perplexity."""
    model = target.model
    form, half = _format(target), _half(target)
    plain = plain_model(model)
    skipped = _skipped(model, form)
    check_space(staging, int(sum(nf4_bytes(tensor, skipped, form) for tensor in plain.tensors)))
    say(f"quantizing {counted(len(plain.tensors), 'tensor')}", quiet=quiet)
    ledger = Ledger()
    with torch.no_grad():
        written = write_shards(staging, nf4_tensors(plain.tensors, skipped, form, half, keep_row_norms, ledger))
    if not ledger.errors:
        raise ModelError(f"{target.name} has no linear layer that NF4 can hold")
    if ledger.row_norms_not_kept:
        say(f"row norms not kept, rows are no whole blocks: {', '.join(ledger.row_norms_not_kept)}", quiet=quiet)
    if target.recipe is not None:
        install_template_(target.tokenizer, target.recipe.data)
    notes = write_description(
        staging,
        model,
        target.tokenizer,
        dtype=half,
        is_tied=plain.is_tied,
        quantization=bitsandbytes_config(form, half, ledger.kept),
    )
    for line in notes:
        say(line, quiet=quiet)
    return {
        "dorakit": dorakit.__version__,
        "format": "nf4",
        "block_size": form.block_size,
        "double_quant": form.double_quant,
        "dtype": str(half).removeprefix("torch."),
        "bytes_before": ledger.bytes_before,
        "bytes_after": written,
        "unquantized_layers": ledger.kept,
        "relative_error": spread(ledger.errors),
        "row_norm_error": {
            "kept": keep_row_norms,
            "not_kept": ledger.row_norms_not_kept,
            **spread(ledger.row_norm_errors),
        },
    }


def _skipped(model: PreTrainedModel, form: NF4Format) -> tuple[str, ...]:
    """Name suffixes of linear layers that stay as they are."""
    head = model.get_output_embeddings()
    head_name = next((name for name, module in model.named_modules() if module is head), "lm_head")
    return (head_name, *form.skip_modules)


def _format(target: Target) -> NF4Format:
    """As the run stored its base in a q mode, else bitsandbytes' defaults with double quantization."""
    recipe = target.recipe
    if recipe is None or not recipe.stores_nf4:
        return NF4Format()
    section = recipe.quantization
    return NF4Format(section.block_size, section.double_quant, tuple(section.skip_modules))


def _half(target: Target) -> torch.dtype:
    """The 16-bit dtype that weights are rounded to before they are quantized, and that the rest keeps.

    The merge's where there is one, so that a run quantizes to the same bytes with and without its merged directory.
    """
    dtype = target.model.dtype
    if target.recipe is not None or target.adapter is not None:
        section = target.recipe.merge if target.recipe is not None else MergeSection()
        dtype = torch.bfloat16 if section.dtype == "auto" else getattr(torch, section.dtype)
    return dtype if dtype.itemsize == 2 else torch.bfloat16
