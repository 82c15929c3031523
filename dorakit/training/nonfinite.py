"""A loss or a gradient that is not finite: no step is taken, and the rows are named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from dorakit.data.batches import Batch
from dorakit.errors import Gate, GateError
from dorakit.files import FULL
from dorakit.links import as_own
from dorakit.recipe.schema import NonfiniteSection
from dorakit.run import Run

_SHOWN = 8


def is_finite(losses: Sequence[float], grad_norm: float) -> bool:
    """Whether a step may be taken."""
    return math.isfinite(grad_norm) and all(map(math.isfinite, losses))


def pass_over(
    run: Run,
    policy: str | NonfiniteSection,
    *,
    step: int,
    skipped: int,
    batches: Sequence[Batch],
    losses: Sequence[float],
    grad_norm: float,
) -> str:
    """Record a step that is not taken in nonfinite.jsonl; returns the line to print.

    Args:
        run: Where to.
        policy: `stop`, or how many steps may be passed over.
        step: Counted from 1.
        skipped: Steps passed over before this one.
        batches: The step's micro-batches.
        losses: One per micro-batch, summed over its tokens.
        grad_norm: Of the whole step.

    Raises:
        GateError: The recipe says stop, or this is one step too many.
    """
    bad = [batch for batch, loss in zip(batches, losses, strict=True) if not math.isfinite(loss)]
    rows = [row for batch in bad or batches for row in batch.rows]
    entry = {
        "step": step,
        "grad_norm": str(grad_norm),
        "micro_batches": [
            {"loss": str(loss), "rows": list(batch.rows)} for batch, loss in zip(batches, losses, strict=True)
        ],
    }
    lost = _unless_full(lambda: _append(run, entry))
    more = f" ... and {len(rows) - _SHOWN} more, all in {run.nonfinite_file.name}" if len(rows) > _SHOWN else ""
    what = (
        f"step {step}: the {'loss' if bad else 'gradient'} is not finite (gradient norm {grad_norm}); no step was taken.\n"
        f"  rows: {', '.join(rows[:_SHOWN])}{more}"
    )
    if lost:
        what += f"\n  not kept in {run.nonfinite_file}: {lost}"
    limit = 0 if isinstance(policy, str) else policy.skip
    if skipped < limit:
        return f"{what}\n  passed over, {skipped + 1} of at most {limit}"
    if lost := _unless_full(lambda: run.update(state="failed")):
        what += f"\n  run.json still says that it trains: {lost}"
    after = f"\n  {skipped} steps were passed over before, as many as training.nonfinite allows" if limit else ""
    raise GateError(
        f"{what}{after}\n  a lower optimizer.learning_rate or model.dtype: float32 often helps; more: docs/faq.md#loss-is-nan",
        next((Gate("loss", loss) for loss in losses if not math.isfinite(loss)), Gate("grad_norm", grad_norm)),
    )


def _append(run: Run, entry: dict[str, Any]) -> None:
    with open(run.nonfinite_file, "a", encoding="utf-8", opener=as_own) as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _unless_full(write: Callable[[], None]) -> str:
    """What a full disk says; "" where it took what was written."""
    try:
        write()
    except OSError as error:
        if error.errno not in FULL:
            raise
        return str(error.strerror)
    return ""
