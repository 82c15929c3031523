"""How much of what was learned a written model loses: its logits against the live adapter's, both computed in float32.

The measure is relative. KL(live || base) is what training changed, KL(live || written) what the written model misses of
it; the quotient is the share that is lost. In 16 bits the rounding of activations alone would be larger than either.

The live model answers first and its logits go to disk, so that it may be dropped before the written one is loaded: the two
are never in memory together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dorakit.adapters.attach import adapter_layers, base_only, whole_modules
from dorakit.digests import sha256
from dorakit.errors import DataError, RunError
from dorakit.model.float32 import Float32
from dorakit.progress import progress
from dorakit.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dorakit.recipe.schema import Recipe

MAX_ROWS = 64
MAX_TOKENS = 8192
PARTS = ("supervised", "all")
# Nats a position that float32 leaves between two ways of computing the same model.
NOISE = 1e-9
_TOKENS_PER_BATCH = 1024
_POSITIONS_AT_ONCE = 64
# Read where no recipe names rows. Any text shows whether two models are the same one.
_TEXTS = (
    "Take the lid off the pot when the water boils, add the rice, and turn the heat down.",
    "The meeting moved from Tuesday at 9:30 to Friday at 14:00, in room 4.",
    "Question: a train covers 180 km in 2.5 hours. How fast does it go?\nAnswer: 72 km/h",
    'def area(width, height):\n    """Area of a rectangle."""\n    return width * height\n',
    '{"name": "Ada", "languages": ["English", "French"], "active": true}',
    "Le musée ouvre à dix heures. Das Museum öffnet um zehn Uhr. El museo abre a las diez.",
)


@dataclass(frozen=True)
class Sample:
    """One row to compare on: `ids` (T,) int64; `supervised` (T,) bool is true where the next token carries loss."""

    ids: Tensor
    supervised: Tensor


def sample_rows(
    recipe: Recipe | None, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
) -> tuple[list[Sample], str]:
    """The rows to compare on, and where they come from.

    The first validation rows, then training rows from the last on, up to 64 rows (or `limit`) and 8192 tokens in all;
    without a recipe, a few texts of our own. A longer row is cut.
    """
    limit = limit or MAX_ROWS
    if recipe is None:
        samples = _cut([(ids, [True] * len(ids)) for ids in (tokenizer(text)["input_ids"] for text in _TEXTS)], limit)
        return samples, f"{len(samples)} built-in texts"
    from dorakit.data.tokens import encode

    encoded = encode(recipe.data, tokenizer, seed=recipe.training.seed, twin=recipe.origin.is_twin)
    held_out = encoded.validation[:limit]
    missing = limit - len(held_out)
    documents = [*held_out, *reversed(encoded.train[-missing:] if missing else [])]
    samples = _cut([(d.input_ids.tolist(), d.mask.tolist()) for d in documents], limit)
    counts = {"validation": min(len(held_out), len(samples)), "training": max(len(samples) - len(held_out), 0)}
    return samples, " and ".join(counted(count, f"{name} row") for name, count in counts.items() if count)


def logits_bytes(model: PreTrainedModel, samples: Sequence[Sample]) -> int:
    """The bytes that `store_logits` will write."""
    positions = sum(len(sample.ids) for sample in samples)
    size: int = positions * model.config.get_text_config().vocab_size * torch.float32.itemsize
    return size


@torch.no_grad()
def store_logits(
    model: PreTrainedModel, samples: Sequence[Sample], directory: Path, *, label: str | None = None
) -> None:
    """Write the model's float32 logits over the samples to `directory`, with a progress bar where `label` names one."""
    for number, batch in _shown(list(_batches(samples)), label):
        save_file({"logits": _logits(model, batch)}, directory / f"{number:05d}.safetensors")


def compare_base(
    model: PreTrainedModel, samples: Sequence[Sample], directory: Path, *, label: str | None = None
) -> dict[str, Any] | None:
    """Hold the base, adapters switched off, against the stored logits of the live model; None where nothing is attached.

    Returns:
        As `compare_logits`: KL(live || base) is what was learned.
    """
    if next(adapter_layers(model), None) is None and next(whole_modules(model), None) is None:
        return None
    with base_only(model):
        return compare_logits(model, samples, directory, label=label)


@torch.no_grad()
def compare_logits(
    model: PreTrainedModel, samples: Sequence[Sample], directory: Path, *, label: str | None = None
) -> dict[str, Any]:
    """Hold the model's logits over the samples against stored ones, in float32; a progress bar where `label` names one.

    Returns:
        For `supervised` and `all` positions: how many, the largest |logit difference|, the mean and the largest
        KL(stored || model) in nats, and how often the most likely token is the same.
    """
    parts: list[Tensor] = []
    supervised: list[Tensor] = []
    for number, batch in _shown(list(_batches(samples)), label):
        stored = load_file(directory / f"{number:05d}.safetensors")["logits"]
        found = _logits(model, batch)
        for live, written in zip(_slices(stored), _slices(found), strict=True):
            parts.append(_compare(live, written))
        supervised.extend(sample.supervised for sample in batch)
    rows = torch.cat(parts)
    return {"supervised": _summary(rows[torch.cat(supervised)]), "all": _summary(rows)}


def with_share_lost(found: dict[str, Any], learned: dict[str, Any] | None) -> dict[str, Any]:
    """Add to what `compare_logits` found the KL that was learned and the share of it that is lost, in each part.

    `lost` is KL(live || written) / KL(live || base), 0 where float32 cannot tell live and written apart; None where it
    cannot tell live and base apart, so that nothing was learned, or where there is no base.
    """
    result = {}
    for part in PARTS:
        kl, base = found[part]["kl"], None if learned is None else learned[part]["kl"]
        lost = None
        # Written so that a NaN is no noise.
        if kl is not None and base is not None and not base <= NOISE:
            lost = 0.0 if kl <= NOISE else kl / base
        result[part] = {**found[part], "learned_kl": base, "lost": lost}
    return found | result


def learned_of(merge_json: dict[str, Any]) -> dict[str, Any] | None:
    """What was learned according to a merge.json, as `with_share_lost` takes it; None where nothing was compared."""
    receipt = merge_json.get("receipt")
    if not isinstance(receipt, dict) or any("learned_kl" not in receipt.get(part, {}) for part in PARTS):
        return None  # of an earlier version, too
    return {part: {"kl": receipt[part]["learned_kl"]} for part in PARTS}


def worst_part(found: dict[str, Any]) -> tuple[str, float | None]:
    """The kind of positions that loses most, and its share; NaN counts as the most."""
    shares = {part: found[part]["lost"] for part in PARTS if found[part]["lost"] is not None}
    if not shares:
        return "all", None
    part = max(shares, key=lambda name: float("inf") if shares[name] != shares[name] else shares[name])
    return part, shares[part]


def share(value: float) -> str:
    """A share as a person reads it: 0.24 %, 31 %."""
    return f"{100 * value:.2g} %" if value < 0.995 else f"{100 * value:.0f} %"


def adapter_sha256(directory: Path) -> str:
    """Digest of an adapter's weights file.

    Raises:
        RunError: There is none.
    """
    file = directory / "adapter_model.safetensors"
    if not file.is_file():
        raise RunError(f"{file} is missing")
    return sha256(file)


def read_receipt(directory: Path, name: str) -> dict[str, Any]:
    """Read merge.json or quantize.json of a result.

    Raises:
        RunError: It is missing or damaged.
    """
    try:
        content = json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{directory / name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunError(f"{directory / name} holds {type(content).__name__}, expected an object")
    return content


def _cut(rows: list[tuple[list[int], list[bool]]], limit: int) -> list[Sample]:
    samples, left = [], MAX_TOKENS
    for ids, mask in rows[:limit]:
        ids, mask = ids[:left], mask[:left]
        if len(ids) < 2:
            break
        # A position is supervised if the token after it carries loss.
        samples.append(Sample(torch.tensor(ids), torch.tensor([*mask[1:], False])))
        left -= len(ids)
    if not samples:
        raise DataError("there is no row of two tokens or more to compare the models on; merge has --no-receipt")
    return samples


def _batches(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Consecutive samples, as many as keep a padded batch small."""
    batch: list[Sample] = []
    for sample in samples:
        longest = max(len(s.ids) for s in [*batch, sample])
        if batch and longest * (len(batch) + 1) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def _shown(batches: list[list[Sample]], label: str | None) -> Iterator[tuple[int, list[Sample]]]:
    """Number and batch, one after the other."""
    with progress(label or "", len(batches), quiet=label is None) as tell:
        for number, batch in enumerate(batches):
            yield number, batch
            tell(number + 1)


def _logits(model: PreTrainedModel, batch: list[Sample]) -> Tensor:
    """float32 (positions of all rows, V) on the CPU. Padding is on the right, where a causal model does not look."""
    ids = torch.nn.utils.rnn.pad_sequence([sample.ids for sample in batch], batch_first=True).to(model.device)
    with Float32():
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.cat([row[: len(sample.ids)] for row, sample in zip(logits, batch, strict=True)]).cpu().contiguous()


def _slices(logits_PV: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(logits_PV), _POSITIONS_AT_ONCE):
        yield logits_PV[start : start + _POSITIONS_AT_ONCE]


def _compare(live_PV: Tensor, written_PV: Tensor) -> Tensor:
    """(P, 3) for P positions and V tokens: largest |difference|, KL(live || written), same top token."""
    if live_PV.shape != written_PV.shape:
        raise RunError(f"live logits have shape {tuple(live_PV.shape)}, written ones {tuple(written_PV.shape)}")
    # In float64: the sum of so many small terms would leave 1e-8 of nothing.
    live, written = live_PV.double().log_softmax(dim=-1), written_PV.double().log_softmax(dim=-1)
    divergence = (live.exp() * (live - written)).sum(dim=-1)
    same = live_PV.argmax(dim=-1) == written_PV.argmax(dim=-1)
    return torch.stack([(live_PV - written_PV).abs().amax(dim=-1).double(), divergence, same.double()], dim=-1)


def _summary(rows: Tensor) -> dict[str, Any]:
    if not len(rows):
        return {"positions": 0, "max_logit_difference": None, "kl": None, "max_kl": None, "top1_agreement": None}
    difference, divergence, same = rows.unbind(dim=-1)
    return {
        "positions": len(rows),
        "max_logit_difference": difference.max().item(),
        # Rounding may leave a sum of nothing a little below zero; a NaN stays one.
        "kl": divergence.mean().clamp_min(0.0).item(),
        "max_kl": divergence.max().clamp_min(0.0).item(),
        "top1_agreement": same.mean().item(),
    }
