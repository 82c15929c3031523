"""What changed between a checkpoint and the run that goes on from it: said key by key, and refused unless it is accepted.

Settings that move no trained byte may change freely, and those that move only last digits with a word. Data, base and
chat template are compared by content, so that a run and its files can be moved.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dorakit.data.rendering import template_date
from dorakit.data.tokens import Document, Encoded
from dorakit.errors import RunError, UsageError
from dorakit.files import give_rights_of_new, naming
from dorakit.recipe.resolved import settings
from dorakit.recipe.schema import Recipe
from dorakit.run import Run

# They move no trained byte.
_FREE = re.compile(
    r"output_dir|extends|evaluation\..*|merge\..*|logging\..*|parallel\..*"
    r"|training\.(log_every|eval_every|save_every|keep_checkpoints|sample_prompts|sample_rows|nonfinite.*)"
    # What these name is compared by content.
    r"|data\.root|data\.train\.\d+\.path|data\.validation\.path|data\.chat_template|model\.(base|revision|architecture)"
)
# They change how the same sums are split up and rounded.
_ROUNDING = re.compile(r"training\.(micro_batch_size|micro_batch_tokens|gradient_checkpointing|compile|deterministic)")


def moves_bytes(key: str) -> bool:
    """Whether a recipe's key can change what is trained; what it names may still be compared by content."""
    return not _FREE.fullmatch(key)


@dataclass(frozen=True)
class Facts:
    """What a checkpoint depends on: recipe values as YAML, sha256 of the base's files, of data, of the chat template."""

    recipe: dict[str, str]
    base: dict[str, str]
    data: str
    template: str

    @classmethod
    def gather(cls, recipe: Recipe, base: dict[str, str], data: Encoded, template: str | None) -> Facts:
        """Those of a run that is about to begin or go on."""
        digest = hashlib.sha256((template or "").encode("utf-8", "surrogatepass")).hexdigest()
        return cls(settings(recipe), base, data.fingerprint, digest)


@dataclass(frozen=True)
class Comparison:
    """What changed.

    Attributes:
        notes: Lines to print and record.
        accepted: By key, what changes that are neither free nor refused changed to.
        is_exact: Nothing changed that could move a trained byte.
    """

    notes: list[str]
    accepted: dict[str, Any]
    is_exact: bool


def compare(
    then: dict[str, Any],
    now: Facts,
    *,
    run: Run,
    data: Encoded,
    accepted: Sequence[str],
    accepted_before: dict[str, Any],
    validates_best: bool,
) -> Comparison:
    """Compare a checkpoint's facts with those of now.

    Args:
        then: `vars` of the checkpoint's Facts.
        now: Those of the run that goes on.
        run: Has the digests of the rows.
        data: The rows of now.
        accepted: Keys whose change is accepted: of the recipe, or data, base, template.
        accepted_before: What was accepted by an earlier resume from this checkpoint, as `Comparison.accepted` gave it:
            it need not be accepted again.
        validates_best: The validations decide which weights are kept, so that eval_every is not free.

    Raises:
        RunError: Something changed that is neither free nor accepted.
        UsageError: Something was accepted that did not change.
    """
    changes, free = _changed_settings(then["recipe"], now.recipe, validates_best=validates_best)
    if then["base"] != now.base:
        changes["base"] = "base: " + _different_files(then["base"], now.base)
    if then["template"] != now.template:
        changes["template"] = (
            f"template: the chat template is another one (sha256 {then['template']:.12} then, {now.template:.12} now)"
        )
    if then["data"] != now.data:
        changes["data"] = "data: " + first_changed_row(run, then["data"], data)
        if data.date is not None and template_date(run) is None:
            changes["data"] += "; the chat template writes the date, and the run did not keep that of its beginning"
    if unknown := [key for key in accepted if key not in changes]:
        what = ", ".join(changes) or "nothing"
        raise UsageError(f"--accept-change {unknown[0]}: that did not change; what changed and is not free: {what}")
    values = {key: vars(now)[key] if key in ("base", "data", "template") else now.recipe.get(key) for key in changes}
    agreed = [key for key in changes if key in accepted or accepted_before.get(key) == values[key]]
    _refuse({key: line for key, line in changes.items() if key not in agreed}, run)
    notes = [f"changed: {line}" for line in free.values()] + [f"changed, accepted: {changes[key]}" for key in agreed]
    return Comparison(notes, values, is_exact=not any(map(_ROUNDING.fullmatch, free)) and not agreed)


def refuse_changed_settings(
    run: Run,
    then: dict[str, str],
    now: dict[str, str],
    *,
    accepted: Sequence[str],
    accepted_before: dict[str, Any],
    validates_best: bool,
) -> None:
    """Of what `compare` refuses, the part that is known from two recipes as `Facts` has them.

    Raises:
        RunError: A setting changed that is neither free nor accepted.
    """
    changes, _ = _changed_settings(then, now, validates_best=validates_best)
    agreed = {key for key in changes if key in accepted or accepted_before.get(key) == now.get(key)}
    _refuse({key: line for key, line in changes.items() if key not in agreed}, run)


def _changed_settings(
    then: dict[str, str], now: dict[str, str], *, validates_best: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """By key, a line for each setting that changed and needs to be accepted, and for each that may change freely."""
    changes: dict[str, str] = {}
    free: dict[str, str] = {}
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key, "absent"), now.get(key, "absent")
        if before == after:
            continue
        decides = key == "training.eval_every" and validates_best
        is_free = _ROUNDING.fullmatch(key) or (_FREE.fullmatch(key) and not decides)
        (free if is_free else changes)[key] = f"{key}: {before} then, {after} now"
    return changes, free


def _refuse(changes: dict[str, str], run: Run) -> None:
    if changes:
        raise RunError(
            f"changed since the checkpoint of {run.path}:\n"
            + "".join(f"  {line}\n" for line in changes.values())
            + "  put it back, or go on with the change: "
            + " ".join(f"--accept-change {key}" for key in changes)
        )


def accepted_at(run: Run, step: int) -> dict[str, Any]:
    """What an earlier resume from the checkpoint of `step` accepted, as `Comparison.accepted` gave it."""
    kept = run.read("run.json").get("accepted", {})
    return dict(kept["values"]) if isinstance(kept, dict) and kept.get("step") == step else {}


def write_row_digests(run: Run, data: Encoded) -> None:
    """Keep a digest of each document, by which a later resume can say which row changed.

    Named by the data's fingerprint, as checkpoints name it: those of earlier data, whose checkpoints are still the newest
    ones, stay.
    """
    target = run.row_digests(data.fingerprint)
    target.parent.mkdir(exist_ok=True)
    staging = target.with_name(f".tmp-{target.name}")
    with naming(target):
        save_file({"train": _digests(data.train), "validation": _digests(data.validation)}, staging)
    give_rights_of_new(staging)
    staging.replace(target)


def rows_trained_on(run: Run, documents: Sequence[Document]) -> int | None:
    """How many of the documents a run was trained on; None where its digests are not there."""
    fingerprint = run.read("run.json").get("data", {}).get("fingerprint")
    try:
        trained = load_file(run.row_digests(str(fingerprint)))["train"]
    except (OSError, SafetensorError, KeyError):
        return None
    return int(np.isin(_digests(documents), trained).sum())


def first_changed_row(run: Run, then: str, data: Encoded) -> str:
    """Which document is the first that is not what it was in the data with the fingerprint `then`."""
    digests = run.row_digests(then)
    try:
        kept = load_file(digests)
    except (OSError, SafetensorError) as error:
        return f"rows changed; which, cannot be said: {digests.name}: {error}"
    if kept.keys() != {"train", "validation"}:
        return f"rows changed; which, cannot be said: {digests.name} is damaged"
    for which, documents in (("train", data.train), ("validation", data.validation)):
        before, now = kept[which], _digests(documents)
        shared = min(len(before), len(now))
        place = next(iter(np.flatnonzero(before[:shared] != now[:shared]).tolist()), shared)
        if place == len(before) == len(now):
            continue
        row = documents[place].row if place < len(documents) else "absent"
        return f"{which} row {place + 1} is the first that changed, now {row} ({len(before)} rows then, {len(now)} now)"
    return "the order or the masks of rows changed"


def _digests(documents: Sequence[Document]) -> npt.NDArray[np.int64]:
    numbers = [int.from_bytes(document.digest, "little", signed=True) for document in documents]
    return np.asarray(numbers, dtype=np.int64)


def _different_files(then: dict[str, str], now: dict[str, str]) -> str:
    different = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    shown = [
        f"{name} (sha256 {then.get(name, 'absent'):.12} then, {now.get(name, 'absent'):.12} now)"
        for name in different[:3]
    ]
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return ", ".join(shown) + more
