"""Gates: what a result must reach for the command to succeed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dorakit.errors import Gate, GateError, UsageError

# Measures that a gate may name.
_MEASURES = ("accuracy", "loss", "perplexity", "unparsed", "unfinished")
_OF_TEXT = ("loss", "perplexity")  # those that need no evaluation.metric


def check_gates(
    gates: Iterable[tuple[str, str, float]], result: dict[str, Any] | None, *, metric: str | None = None
) -> None:
    """Hold a result against gates of (`--min` or `--max`, measure, value).

    Without a result, check only whether their measures exist and, given the recipe's evaluation.metric, will be taken.

    Raises:
        UsageError: There is no such measure, or it is not taken.
        GateError: One or more gates are not met; all are named.
    """
    unmet: list[Gate] = []
    for flag, measure, bound in gates:
        if measure not in _MEASURES:
            raise UsageError(f"{flag} {measure}={bound:g}: no such measure; there are {', '.join(_MEASURES)}")
        if metric == "none" and measure not in _OF_TEXT:
            raise UsageError(
                f"{flag} {measure}={bound:g}: the recipe's evaluation.metric is none, so no answer is judged\n"
                "  add --set evaluation.metric=exact_match, or gate the loss: --max loss=VALUE or --max perplexity=VALUE"
            )
        if result is None:
            continue
        found = result.get(measure)
        if found is None:
            why = f"the recipe's evaluation.metric is {result['metric']}" if "metric" in result else "tasks have none"
            raise UsageError(f"{flag} {measure}={bound:g}: not measured; {why}")
        # Written so that a NaN does not pass.
        met = found >= bound if flag == "--min" else found <= bound
        if not met:
            unmet.append(Gate(measure, found, bound, flag))
    if unmet:
        lines = [f"{gate.metric} is {gate.value:.4g}, {gate.set_by} asked for {gate.limit:g}" for gate in unmet]
        raise GateError("; ".join(lines), *unmet)
