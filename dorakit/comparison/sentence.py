"""The sentence that a comparison ends with: which method to use here, or that they cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence

from dorakit.comparison.measure import Measure
from dorakit.comparison.methods import Method
from dorakit.comparison.statistics import Difference


def closing_sentence(
    winner: Method, others: list[Method], against: dict[str, Difference], measure: Measure, *, optimistic: bool
) -> str:
    """One paragraph in plain words.

    Args:
        winner: The method with the best mean.
        others: All others, each at its best.
        against: By their names, how far the winner is ahead.
        measure: What they are compared by.
        optimistic: Learning rates were chosen on the rows that are measured.
    """
    seeds = len(winner.cells)
    ground = f"{_counted(len(winner.cells[0].rows), measure.rows)} and {_counted(seeds, 'seeds')}"
    if not others:
        reached = f"a {measure.name} of {measure.with_unit(winner.score)}" if measure.is_loss else f"{winner.score:.1%}"
        return f"{winner.name} reaches {reached} on {ground}; there is nothing to compare it with."
    beside = [winner, *(method for method in others if not against[method.name].is_told_apart)]
    worse = [method for method in others if against[method.name].is_told_apart]
    caution = f" Learning rates were chosen on the {measure.rows}, which flatters all." if optimistic else ""
    if len(beside) == 1:
        margin = min(against.values(), key=lambda difference: difference.low)
        better = (
            f"its {measure.name} is lower than that of all others"
            if measure.is_loss
            else "it is better than all others"
        )
        return (
            f"Use {winner.name} here: on {ground} {better}, by at least {measure.with_unit(margin.low)} "
            f"(each interval corrected for {_counted(len(others), 'comparisons')})."
            f"{_price(winner, others)}{caution}"
        )
    cheapest = min(beside, key=_seconds)
    names = ", ".join(method.name for method in beside)
    than = f" Worse than {winner.name}: {', '.join(method.name for method in worse)}." if worse else ""
    open_ones = [against[method.name] for method in beside[1:]]
    widest = max(max(one.high, -one.low) for one in open_ones)
    possible = f"a difference of up to {measure.with_unit(widest)} is possible"
    if not all(one.is_bounded for one in open_ones):
        possible = f"so few {measure.rows} cannot say how large a difference is possible"
    return (
        f"{names} cannot be told apart {measure.by}on {ground}{_alike(beside, measure)} "
        f"({possible}). "
        f"Of these, {cheapest.name} trains fastest ({_seconds(cheapest):.0f} s a run).{than}"
        f"{_price(cheapest, [method for method in (winner, *others) if method is not cheapest])}{caution}"
    )


def _counted(number: int, plural: str) -> str:
    return f"{number} {plural if number != 1 else plural[:-1]}"


def _alike(methods: Sequence[Method], measure: Measure) -> str:
    """The reason, where the rows at hand hold nothing to tell methods apart by."""
    cells = [cell for method in methods for cell in method.cells]
    values = {value for cell in cells for value, _ in cell.rows.values()}
    if measure.is_loss or len(values) > 1:
        return ""
    verdict = "rightly" if values == {1.0} else "wrongly"
    return f": every row is answered {verdict} by all"


def _price(chosen: Method, others: Sequence[Method]) -> str:
    """How much the recommended one forgets, where that was measured and another forgets less."""
    known = {method.name: method.mean(lambda cell: cell.forgotten) for method in (chosen, *others)}
    forgotten = {name: nats for name, nats in known.items() if nats is not None}
    if chosen.name not in forgotten:
        return ""
    least = min(forgotten, key=lambda name: forgotten[name])
    if least == chosen.name:
        return f" It also forgets the least: {forgotten[least]:+.3f} nats a token of the general text."
    return (
        f" But it forgets {forgotten[chosen.name]:+.3f} nats a token of the general text, "
        f"{least} {forgotten[least]:+.3f}."
    )


def _seconds(method: Method) -> float:
    return method.mean(lambda cell: cell.seconds) or 0.0
