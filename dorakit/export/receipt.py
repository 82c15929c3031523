"""The proof that a merged directory answers as the live adapter does, and its file.

The live model answers first, its logits go to disk, and it may then be dropped before the merged one is loaded: the two
are never in memory together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dorakit.errors import DataError, RunError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dorakit.data.tokens import Document
    from dorakit.recipe.schema import Recipe

MAX_ROWS = 64
MAX_TOKENS = 8192
_TOKENS_PER_BATCH = 1024
_POSITIONS_AT_ONCE = 256
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

    The first validation rows, else the last training rows, up to 64 rows (or `limit`) and 8192 tokens; without a
    recipe, a few texts of our own. A longer row is cut.
    """
    if recipe is None:
        rows = [tokenizer(text)["input_ids"] for text in _TEXTS]
        return _cut([(ids, [True] * len(ids)) for ids in rows], limit or MAX_ROWS), "built-in texts"
    from dorakit.data.tokens import encode

    encoded = encode(recipe.data, tokenizer, seed=recipe.training.seed, twin=recipe.origin.is_twin)
    documents: Sequence[Document] = encoded.validation
    name = "validation rows"
    if not documents:
        documents, name = encoded.train[-(limit or MAX_ROWS) :], "last training rows"
    return _cut([(d.input_ids.tolist(), d.mask.tolist()) for d in documents], limit or MAX_ROWS), name


def logits_bytes(model: PreTrainedModel, samples: Sequence[Sample]) -> int:
    """What `store_logits` will write."""
    positions = sum(len(sample.ids) for sample in samples)
    size: int = positions * model.config.get_text_config().vocab_size * model.dtype.itemsize
    return size


@torch.no_grad()
def store_logits(model: PreTrainedModel, samples: Sequence[Sample], directory: Path) -> None:
    """Write the model's logits over the samples to `directory`, in the dtype that the model gives them."""
    for number, batch in enumerate(_batches(samples)):
        save_file({"logits": _logits(model, batch)}, directory / f"{number:05d}.safetensors")


@torch.no_grad()
def compare_logits(model: PreTrainedModel, samples: Sequence[Sample], directory: Path) -> dict[str, Any]:
    """Hold the model's logits over the samples against stored ones, in float32.

    Returns:
        For `supervised` and `all` positions: how many, the largest |logit difference|, the mean and the largest
        KL(stored || model) in nats, and how often the most likely token is the same.
    """
    parts: list[Tensor] = []
    supervised: list[Tensor] = []
    for number, batch in enumerate(_batches(samples)):
        stored = load_file(directory / f"{number:05d}.safetensors")["logits"]
        found = _logits(model, batch)
        for live, merged in zip(_slices(stored), _slices(found), strict=True):
            parts.append(_compare(live.float(), merged.float()))
        supervised.extend(sample.supervised for sample in batch)
    rows = torch.cat(parts)
    return {"supervised": _summary(rows[torch.cat(supervised)]), "all": _summary(rows)}


def adapter_sha256(directory: Path) -> str:
    """Digest of an adapter's weights file.

    Raises:
        RunError: There is none.
    """
    file = directory / "adapter_model.safetensors"
    if not file.is_file():
        raise RunError(f"{file} is missing")
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


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
        raise DataError("there is no row of two tokens or more to compare the merged model on; see --no-receipt")
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


def _logits(model: PreTrainedModel, batch: list[Sample]) -> Tensor:
    """(positions of all rows, V) on the CPU. Padding is on the right, where a causal model does not look."""
    ids = torch.nn.utils.rnn.pad_sequence([sample.ids for sample in batch], batch_first=True)
    logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    return torch.cat([row[: len(sample.ids)] for row, sample in zip(logits, batch, strict=True)]).cpu().contiguous()


def _slices(logits_PV: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(logits_PV), _POSITIONS_AT_ONCE):
        yield logits_PV[start : start + _POSITIONS_AT_ONCE]


def _compare(live_PV: Tensor, merged_PV: Tensor) -> Tensor:
    """(P, 3) for P positions and V tokens: largest |difference|, KL(live || merged), same top token."""
    if live_PV.shape != merged_PV.shape:
        raise RunError(f"live logits have shape {tuple(live_PV.shape)}, merged ones {tuple(merged_PV.shape)}")
    live, merged = live_PV.log_softmax(dim=-1), merged_PV.log_softmax(dim=-1)
    divergence = (live.exp() * (live - merged)).sum(dim=-1)
    same = live_PV.argmax(dim=-1) == merged_PV.argmax(dim=-1)
    return torch.stack([(live_PV - merged_PV).abs().amax(dim=-1), divergence, same.float()], dim=-1)


def _summary(rows: Tensor) -> dict[str, Any]:
    if not len(rows):
        return {"positions": 0, "max_logit_difference": None, "kl": None, "max_kl": None, "top1_agreement": None}
    difference, divergence, same = rows.double().unbind(dim=-1)
    return {
        "positions": len(rows),
        "max_logit_difference": difference.max().item(),
        # Rounding may leave a sum of nothing a little below zero.
        "kl": max(divergence.mean(), torch.zeros(())).item(),
        "max_kl": max(divergence.max(), torch.zeros(())).item(),
        "top1_agreement": same.mean().item(),
    }
