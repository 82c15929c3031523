"""Measure what merging and quantizing do to one finished run: KL to the live adapter, and accuracy on the recipe's test rows.

python scripts/merged_and_quantized.py RUN PLACE

Writes the models below PLACE, then PLACE/results.json and a table in Markdown on stdout. A model or a measurement that is
there already is not made again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import dorakit
from dorakit.comparison.statistics import paired_difference
from dorakit.export.receipt import compare_logits, sample_rows, store_logits
from dorakit.files import write_json
from dorakit.model.load import load_base
from dorakit.run import Run
from dorakit.target import open_target


def made(run: Run, place: Path) -> dict[str, Path]:
    """The variants, by what they are called in the table."""
    onto_trained, onto_original = place / "merged-trained", place / "merged-original"
    if not onto_trained.is_dir():
        dorakit.merge(run, output=onto_trained, onto="trained")
    if not onto_original.is_dir():
        dorakit.merge(run, output=onto_original, onto="original")
    quantized = {
        # Outside the run, a merged directory is a model like any other: it is quantized as it lies there.
        "onto trained, quantized": (onto_trained, "quantized-trained", False),
        "onto trained, quantized, row norms kept": (onto_trained, "quantized-trained-norms", True),
        "onto original, quantized": (onto_original, "quantized-original", False),
        "onto original, quantized, row norms kept": (onto_original, "quantized-original-norms", True),
    }
    variants = {"merged onto trained": onto_trained, "merged onto original": onto_original}
    for label, (source, name, keep_row_norms) in quantized.items():
        if not (place / name).is_dir():
            dorakit.quantize(str(source), output=place / name, keep_row_norms=keep_row_norms, recipe=run.recipe)
        variants[label] = place / name
    return variants


def right_answers(evaluation: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each row was answered rightly."""
    lines = Path(evaluation["predictions"]).read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(line)["correct"] for line in lines], dtype=np.bool_)


def evaluated(target: str, output: Path, run: Run) -> dict[str, Any]:
    """The evaluation in `output`, made if it is not there."""
    if not output.is_file():
        dorakit.evaluate(target, recipe=run.recipe, output=output)
    content: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return content


def main(run: Run, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    variants = made(run, place)
    divergences: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=place, prefix=".tmp-logits-") as logits:
        live = open_target(str(run.path))
        samples, rows = sample_rows(run.recipe, live.tokenizer)
        live.model.eval()
        store_logits(live.model, samples, Path(logits))
        dtype = str(live.model.dtype).removeprefix("torch.")
        del live
        for label, directory in variants.items():
            model = load_base(str(directory), dtype=dtype).model.eval()
            divergences[label] = compare_logits(model, samples, Path(logits))["all"]
    adapter = evaluated(str(run.path), place / "live.json", run)
    reference = right_answers(adapter)
    results: dict[str, Any] = {
        "run": run.path.name,
        "compared_on": f"{len(samples)} {rows}",
        "live": adapter["accuracy"],
    }
    print(
        f"| {run.path.name} | KL(live \\|\\| this), nats | top-1 agreement | accuracy, {adapter['rows']} rows ", end=""
    )
    print("| difference, 95 % |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| live adapter | 0 | 100 % | {adapter['accuracy']:.1%} | |")
    for label, directory in variants.items():
        evaluation = evaluated(str(directory), place / f"{directory.name}.json", run)
        difference = paired_difference([right_answers(evaluation)], [reference], same_rows=True)
        found = divergences[label]
        results[label] = {**found, "accuracy": evaluation["accuracy"], "difference": vars(difference)}
        print(
            f"| {label} | {found['kl']:.2e} | {found['top1_agreement']:.1%} | {evaluation['accuracy']:.1%} "
            f"| {difference.mean:+.1%} ({difference.low:+.1%} to {difference.high:+.1%}) |"
        )
    write_json(place / "results.json", results)


if __name__ == "__main__":
    main(Run.open(Path(sys.argv[1])), Path(sys.argv[2]))
