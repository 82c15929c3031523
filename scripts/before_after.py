"""Lay evaluations of one run side by side: a table, and one held-out row answered before and after.

python scripts/before_after.py RUN LABEL=EVAL.json ...      the first is the base, the second the adapter
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def size_of(evaluation: dict[str, Any], run: Path) -> str:
    """Megabytes of weights that the variant adds or is; the base inside a package has none of ours."""
    directory = {"adapter": run / "adapter", "base": None}.get(evaluation["variant"], Path(evaluation["target"]))
    if directory is None:
        return "-"
    return f"{sum(file.stat().st_size for file in directory.glob('*.safetensors')) / 1e6:.0f} MB"


def main(run: Path, evaluations: dict[str, dict[str, Any]]) -> None:
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model")
    for heading in ("exact match", "rows", "loss", "weights"):
        table.add_column(heading, justify="right")
    for label, evaluation in evaluations.items():
        table.add_row(
            label,
            f"{evaluation['accuracy']:.1%}",
            str(evaluation["rows"]),
            f"{evaluation['loss']:.4f}",
            size_of(evaluation, run),
        )
    console.print(table)

    before, after = list(evaluations.values())[:2]
    pairs = zip(before["samples"], after["samples"], strict=False)
    shown = next((pair for pair in pairs if not pair[0]["correct"] and pair[1]["correct"]), None)
    if shown:
        sentence = shown[0]["prompt_tail"].split("user\n")[-1].split("<|im_end|>")[0]
        one_line = " ".join(shown[0]["generated"].split())
        console.print(Text(f"  order   {sentence}"), soft_wrap=True)
        console.print(Text(f"  before  {one_line[:100]}{'...' if len(one_line) > 100 else ''}"), soft_wrap=True)
        console.print(Text(f"  after   {shown[1]['generated']}"), soft_wrap=True)


if __name__ == "__main__":
    named = [argument.partition("=") for argument in sys.argv[2:]]
    main(Path(sys.argv[1]), {label: json.loads(Path(path).read_text(encoding="utf-8")) for label, _, path in named})
