"""Print what a study found as Markdown: the tables of docs/study.md.

python scripts/study_tables.py PLACE      PLACE is where scripts/study.sh wrote, runs/study by default
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dorakit.comparison.cells import Cell
from dorakit.comparison.methods import CellResult, Method, by_method, lead
from dorakit.comparison.sweep import result_of
from dorakit.run import Run


def read_cells(place: Path) -> list[CellResult]:
    """The measured runs of one piece."""
    return [read_cell(path) for path in sorted(place.glob("*-seed*")) if (path / "eval" / "comparison.json").is_file()]


def read_cell(path: Path) -> CellResult:
    """One of them."""
    run = Run.open(path)
    mode, rank = run.recipe.adapter.mode, run.recipe.adapter.rank
    cell = Cell(mode, None if mode == "full" else rank, run.recipe.optimizer.learning_rate, run.recipe.training.seed)
    return result_of(cell, run, with_general=(run.eval / "general-base.json").is_file())


def best(found: Sequence[Method], mode: str) -> Method | None:
    """The learning rate with the lowest validation loss, over the seeds that all its rates have."""
    known = [method for method in found if method.mode == mode]
    if not known:
        return None
    shared = set.intersection(*(seeds_of(method) for method in known))
    return min(known, key=lambda method: only(method, shared).mean(lambda cell: cell.validation_loss) or 0.0)


def seeds_of(method: Method) -> set[int]:
    return {cell.cell.seed for cell in method.cells}


def only(method: Method, seeds: set[int]) -> Method:
    """The method with these of its seeds."""
    return replace(method, cells=[cell for cell in method.cells if cell.cell.seed in seeds])


def row(method: Method) -> str:
    """Of the table of all methods."""
    loss, forgotten = method.mean(lambda cell: cell.validation_loss), method.mean(lambda cell: cell.forgotten)
    spread = "" if method.spread is None else f" ± {method.spread:.1%}"
    return (
        f"| {method.name} | {method.learning_rate:g} | {len(method.cells)} | {method.score:.1%}{spread} | {loss:.4f} "
        f"| {'' if forgotten is None else f'{forgotten:+.3f}'} |"
    )


def difference(a: Method, b: Method) -> str:
    """Accuracy of a minus b over the seeds that both have, with its 95 % interval, and the difference of validation losses."""
    seeds = seeds_of(a) & seeds_of(b)
    ours, theirs = only(a, seeds), only(b, seeds)
    found = lead(ours, theirs)
    losses = [
        (x.validation_loss or 0.0) - (y.validation_loss or 0.0) for x, y in zip(ours.cells, theirs.cells, strict=True)
    ]
    return (
        f"| {a.name} at {a.learning_rate:g} - {b.name} at {b.learning_rate:g} | {len(seeds)} | {found.mean:+.1%} "
        f"({found.low:+.1%} to {found.high:+.1%}) | {', '.join(f'{loss:+.4f}' for loss in losses)} |"
    )


HEADS = (
    "| method | rate | seeds | accuracy | validation loss | forgotten, nats |\n| --- | --- | --- | --- | --- | --- |"
)
PAIRS = "| difference | seeds | accuracy, 95 % | validation loss, by seed |\n| --- | --- | --- | --- |"


def pilot(place: Path) -> None:
    print("\n## pilot\n\n| task | rows | base | LoRA | rise in standard errors | always the commonest answer |")
    print("| --- | --- | --- | --- | --- | --- |")
    for directory in sorted(place.glob("pilot-*")):
        for run in directory.glob("*-seed*"):
            files = {name: run / "eval" / f"{name}.json" for name in ("base", "comparison")}
            if not all(file.is_file() for file in files.values()):
                continue
            base, tuned = (json.loads(file.read_text(encoding="utf-8")) for file in files.values())
            error = float(np.hypot(base["accuracy_standard_error"], tuned["accuracy_standard_error"]))
            rise = (tuned["accuracy"] - base["accuracy"]) / error
            print(
                f"| {directory.name.removeprefix('pilot-')} | {tuned['rows']} | {base['accuracy']:.1%} | {tuned['accuracy']:.1%} "
                f"| {rise:+.1f} | {commonest(run)} |"
            )


def commonest(run: Path) -> str:
    """What always giving the commonest expected answer would reach."""
    lines = (run / "eval" / "comparison.predictions.jsonl").read_text(encoding="utf-8").splitlines()
    answers: list[Any] = [json.loads(line)["answer"] for line in lines]
    return f"{max(answers.count(answer) for answer in set(answers)) / len(answers):.1%}"


def main(place: Path) -> None:
    pilot(place)
    swept = by_method([*read_cells(place / "rates-adapters"), *read_cells(place / "rates-full")])
    print(f"\n## rates\n\n{HEADS}")
    for method in swept:
        print(row(method))
    print(f"\n{PAIRS}")
    at_best = {mode: best(swept, mode) for mode in ("full", "lora", "dora", "qlora", "qdora")}
    fixed = {method.mode: method for method in swept if method.learning_rate == 1e-3}
    for a, b in (("dora", "lora"), ("qdora", "qlora"), ("qlora", "lora"), ("qdora", "dora"), ("full", "lora")):
        pairs = [(chosen.get(a), chosen.get(b)) for chosen in (at_best, fixed)]
        # Where the best rate is the fixed one, once.
        for one, other in pairs[:1] if pairs[0] == pairs[1] else pairs:
            if one is not None and other is not None:
                print(difference(one, other))
    scaled = by_method(read_cells(place / "scale"))
    if scaled:
        print(f"\n## scale: QLoRA with s = 0.25\n\n{HEADS}")
        for method in scaled:
            print(row(method))
        quarter, qdora = best(scaled, "qlora"), at_best["qdora"]
        if quarter is not None and qdora is not None:
            print(f"\n{PAIRS}\n{difference(qdora, quarter)}")
    ranked = by_method(read_cells(place / "ranks"))
    # Rank 16 at that rate is among the rates, where it has more seeds.
    ranked += [
        method for method in swept if ranked and method.mode in ("lora", "dora") and method.learning_rate == 1e-3
    ]
    if ranked:
        print(f"\n## ranks\n\n{HEADS}")
        for method in sorted(ranked, key=lambda method: (method.mode, method.rank or 0)):
            print(row(method))
        by_kind = {(method.mode, method.rank): method for method in ranked}
        print(f"\n{PAIRS}")
        for (mode, rank), method in sorted(by_kind.items()):
            if mode == "dora":
                for other in (by_kind.get(("lora", rank)), by_kind.get(("lora", 2 * rank))):
                    if other is not None:
                        print(difference(method, other))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/study"))
