"""`dorakit export --to merged`: a plain model directory with a card; a merge that is there is taken where it fits."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from dorakit.digests import EXPORTED, MERGED, listed_files, refuse_changed, write_receipt
from dorakit.export.card import Card, card_text
from dorakit.export.destination import CARD, check_card, check_space, locked, staged
from dorakit.export.gguf_file import FAMILIES
from dorakit.export.merge import merge
from dorakit.export.merged_directory import Dtype, Onto, fits, merged_of, taken_notes
from dorakit.export.outputs import Exported, described, place_for, refuse_full, unplaced_command
from dorakit.export.receipt import read_receipt
from dorakit.export.serving import merged_lines, merged_use
from dorakit.export.trained import Trained, find_trained, is_raw
from dorakit.files import write_json, write_whole
from dorakit.model.configs import read_object
from dorakit.progress import say
from dorakit.run import Run


def export_merged(
    target: Run | Path | str,
    *,
    output: Path | str | None = None,
    onto: Onto | None = None,
    dtype: Dtype | None = None,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> Exported:
    """Write a run or an adapter as a plain model directory with a card; RUN/merged is taken where it fits.

    Args:
        target: A finished run, or a PEFT adapter directory.
        output: A directory; RUN/merged for a run. An earlier merge there is kept where it fits, else replaced.
        onto: As for `merge`; None takes what RUN/merged was merged onto.
        dtype: Of the weights; None takes that of RUN/merged, or the recipe's.
        base_model: Base of an adapter directory, instead of the one that it names.
        accept_changes: Files of what is read that may have changed since they were written, each DIRECTORY/FILE.
        quiet: Print nothing.

    Raises:
        UsageError: There is no adapter to merge, or the output would overwrite something else.
        GateError: The merged model answers differently from the live one; nothing is left.
    """
    trained = find_trained(target, base_model=base_model)
    refuse_full(trained, "merged")
    assert trained.adapter is not None
    directory = trained.place("merged", output)
    notes: list[str] = []
    found = next((place for place in (directory, merged_of(trained)) if fits(trained, place, onto, dtype)), None)
    if found is None:
        merge(
            trained.text,
            output=directory,
            onto=onto,
            dtype=dtype,
            base_model=base_model,
            accept_changes=accept_changes,
            quiet=quiet,
        )
    else:
        if found == directory:
            check_card(directory, "merged")
        else:
            place_for(trained, "merged", output)
        notes = [*refuse_changed({trained.adapter: {}, found: {}}, accept_changes), *taken_notes(found)]
        for line in notes:
            say(line, quiet=quiet)
        if found != directory:
            _copy_merged(trained, found, directory)
    receipt = read_receipt(directory, MERGED)
    kept = {key: receipt[key] for key in ("onto", "dtype", "bytes", "receipt")}
    content = {**described(trained, "merged"), **kept, "notes": notes}
    config = read_object(directory / "config.json")
    architecture = next(iter(config.get("architectures") or [""]))
    gguf = unplaced_command(trained, "gguf") if config.get("model_type") in FAMILIES else None
    use = merged_use(is_raw=is_raw(trained, directory), as_gguf=gguf)
    card = card_text(Card(trained, "merged", merged_lines(Path("."), trained.name, architecture), use))
    with locked(trained.run, directory):
        # First the receipt: a card that none lists would not be ours.
        content["files"] = {CARD: hashlib.sha256(card.encode()).hexdigest()}
        write_json(directory / EXPORTED, content)
        write_whole(directory / CARD, card)
    return Exported(directory, content, merged_lines(directory, trained.name, architecture))


def _copy_merged(trained: Trained, merged: Path, directory: Path) -> None:
    """Copy a merge without what was put beside it since: a card, a person's notes."""
    receipt = read_receipt(merged, MERGED)
    names = list(listed_files(merged / MERGED)) or [file.name for file in merged.iterdir() if file.is_file()]
    with staged(trained.run, directory) as (staging, _):
        check_space(directory, sum((merged / name).stat().st_size for name in names))
        for name in names:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(merged / name, staging / name)
        write_receipt(staging, MERGED, receipt)
