"""Gates: what a result must reach for the command to succeed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dorakit.errors import Gate, GateError, UsageError

# Measures that a gate may name.
_MEASURES = ("accuracy", "loss", "perplexity", "unparsed", "unfinished")


def check_gates(gates: Iterable[tuple[str, str, float]], result: dict[str, Any] | None) -> None:
    """Hold a result against gates of (`--min` or `--max`, measure, value); without a result, check only their names.

    Raises:
        UsageError: There is no such measure.
        GateError: One or more gates are not met; all are named.
    """
    unmet: list[Gate] = []
    for flag, measure, bound in gates:
        if measure not in _MEASURES:
            raise UsageError(f"{flag} {measure}={bound:g}: no such measure; there are {', '.join(_MEASURES)}")
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
