"""`dorakit export --to gguf`: a run or an adapter as one GGUF file, with Ollama's Modelfile and a card beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dorakit.data.chat import try_template_of
from dorakit.data.generation_config import read_generation_config, tried_stops
from dorakit.digests import EXPORTED, refuse_changed, sha256, write_receipt
from dorakit.errors import ModelError, UsageError
from dorakit.export.card import Card, card_text
from dorakit.export.destination import CARD, staged
from dorakit.export.gguf_file import TYPES, check_family, write_gguf
from dorakit.export.gguf_receipt import gguf_receipt
from dorakit.export.gguf_vocabulary import NotWritable, check_vocabulary
from dorakit.export.merge import carry_out
from dorakit.export.merge_plan import RECEIPT as MERGE_RECEIPT
from dorakit.export.merge_plan import plan_merge
from dorakit.export.merged_directory import Dtype, Onto, fits, merged_of, taken_notes
from dorakit.export.outputs import Exported, described, place_for
from dorakit.export.receipt import learned_of, read_receipt
from dorakit.export.serving import frame_of, gguf_lines, modelfile
from dorakit.export.trained import Trained, find_trained, is_raw
from dorakit.files import write_whole
from dorakit.interruptions import explain_out_of_memory
from dorakit.model.configs import read_object
from dorakit.model.directory import check_model_directory
from dorakit.model.load import pick_dtype
from dorakit.model.source import gguf_file, resolve
from dorakit.progress import say
from dorakit.run import Run
from dorakit.target import check_base


@explain_out_of_memory("the model must fit in memory once")
def export_gguf(
    target: Run | Path | str,
    *,
    output: Path | str | None = None,
    outtype: str = "f16",
    onto: Onto | None = None,
    dtype: Dtype | None = None,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> Exported:
    """Write a run or an adapter as a GGUF file, with export.json, a Modelfile and a card.

    RUN/merged is read where it fits; else the adapter is merged, with the receipt of `merge`, into a place that is removed
    afterwards.

    Args:
        target: A finished run, or a PEFT adapter directory.
        output: A directory; RUN/gguf for a run. An earlier result of this command is replaced.
        outtype: One of gguf_file.TYPES.
        onto: As for `merge`; None takes what RUN/merged was merged onto.
        dtype: Of the merge; None takes that of RUN/merged, or the recipe's.
        base_model: Base of an adapter directory, instead of the one that it names.
        accept_changes: Files of what is read that may have changed since they were written, each DIRECTORY/FILE.
        quiet: Print nothing.

    Raises:
        UsageError: No such type, or the output would overwrite something else.
        ModelError: The family or the tokenizer cannot be written.
        GateError: The merged model answers differently from the live one; nothing is left.
    """
    trained = find_trained(target, base_model=base_model)
    if outtype not in TYPES:
        raise UsageError(
            f"--type {outtype}: known are {', '.join(TYPES)}; llama-quantize makes others from an f16 file"
        )
    directory = place_for(trained, "gguf", output)
    origin = gguf_file(trained.base)
    if origin is not None and trained.run is not None:
        check_base(trained.run, {origin.name: sha256(origin)})
    source, told, notes = _source(trained, onto, dtype, origin)
    if source is not None:  # what is merged for this, the merge looks at
        read: dict[Path, dict[str, str]] = {place: {} for place in (trained.adapter, source) if place is not None}
        notes = [*refuse_changed(read, accept_changes), *notes]
    for line in notes:
        say(line, quiet=quiet)
    file = f"model-{outtype}.gguf"
    with staged(trained.run, directory) as (staging, scratch), _converter_named(trained):
        if source is None:
            dtype = dtype or _finest(trained)
            merged = scratch / "merged"
            source = carry_out(plan_merge(trained.text, merged, onto, dtype, base_model, accept_changes, quiet))
        check_model_directory(source)
        say(f"writing {file}", quiet=quiet)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        stops, found = tried_stops(tokenizer, read_generation_config(source))
        written = write_gguf(source, staging / file, outtype, name=trained.name, stops=stops, origin=origin)
        found += [*written.notes, *_write_modelfile(trained, source, tokenizer, stops, staging, file)]
        for line in found:
            say(line, quiet=quiet)
        merge_json = read_receipt(source, MERGE_RECEIPT) if trained.adapter is not None else {}
        (logits := scratch / "logits").mkdir()
        compared = gguf_receipt(
            source,
            staging / file,
            written.packed,
            recipe=trained.recipe,
            learned=learned_of(merge_json),
            scratch=logits,
        )
        content: dict[str, Any] = {
            **described(trained, "gguf"),
            "source": told,
            "onto": merge_json.get("onto"),
            "file": file,
            "type": outtype,
            "tensor_types": written.tensor_types,
            "bytes": (staging / file).stat().st_size,
            "sha256": sha256(staging / file),
            "compared": compared,
            "notes": [*notes, *found],
        }
        card = Card(trained, "gguf", gguf_lines(Path("."), file, trained.name), file=file)
        write_whole(staging / CARD, card_text(card))
        content = write_receipt(staging, EXPORTED, content)
    return Exported(directory, content, gguf_lines(directory, file, trained.name))


def _source(
    trained: Trained, onto: Onto | None, dtype: Dtype | None, origin: Path | None
) -> tuple[Path | None, str, list[str]]:
    """The directory to write, None where the adapter has to be merged first; what it is; lines to print.

    Raises:
        UsageError: A base or a dtype for the merge of a run that has nothing to merge.
        ModelError: Its family or its tokenizer cannot be written: raised before minutes go into merging.
    """
    merged, source, told, notes = merged_of(trained), None, "adapter, merged for this", []
    if trained.adapter is None and trained.run is not None:
        if given := [name for name, value in (("--onto", onto), ("--dtype", dtype)) if value is not None]:
            raise UsageError(
                f"{given[0]} is for a merge, and {trained.path} was trained in mode full, with nothing to merge\n"
                f"  `{trained.command('gguf')}` writes {trained.run.model} as it is"
            )
        source, told = trained.run.model, "model directory"
    elif merged is not None and fits(trained, merged, onto, dtype):
        source, told, notes = merged, "merged directory", taken_notes(merged)
    known = source or _base_directory(trained)
    with _converter_named(trained):
        check_family(str(read_object(known / "config.json").get("model_type")))
        if origin is None:
            check_vocabulary(known)
    return source, told, notes


def _finest(trained: Trained) -> Dtype | None:
    """float32 for a merge that only this file is made from, so that a weight is rounded once; None where a recipe says."""
    return "float32" if trained.recipe is None or trained.recipe.merge.dtype == "auto" else None


def _base_directory(trained: Trained) -> Path:
    stated = trained.recipe.model.dtype if trained.recipe else "auto"
    return resolve(trained.base, revision=trained.revision or "main", dtype=pick_dtype(stated)).directory


@contextlib.contextmanager
def _converter_named(trained: Trained) -> Iterator[None]:
    """Add llama.cpp's own converter to the refusal of a model that is not written here."""
    try:
        yield
    except NotWritable as error:
        if trained.adapter is None and trained.run is not None:
            way = f"llama.cpp's own converter may take it: convert_hf_to_gguf.py {trained.run.model}"
        else:
            merged = merged_of(trained) or "DIR"
            way = (
                f"`{trained.command('merged')}` makes a directory that llama.cpp's own converter may take: "
                f"convert_hf_to_gguf.py {merged}"
            )
        raise ModelError(f"{error}\n  {way}") from None


def _write_modelfile(
    trained: Trained, source: Path, tokenizer: PreTrainedTokenizerBase, stops: list[int], staging: Path, file: str
) -> list[str]:
    raw = is_raw(trained, source)
    frame = None
    if tokenizer.chat_template and not raw:
        try_template_of(tokenizer, trained.recipe.data if trained.recipe else None)
        frame = frame_of(tokenizer)
    write_whole(staging / "Modelfile", modelfile(file, frame, tokenizer.convert_ids_to_tokens(stops), is_raw=raw))
    if raw and trained.recipe is None:
        return ["the tokenizer has no chat template: ask /v1/completions with the prompt as in training"]
    if raw:
        return [
            "trained on prompts without a chat template: ask /v1/completions with the prompt as in training; a chat client "
            "puts the base's template around it, and the Modelfile none"
        ]
    if frame is None:
        return [
            "the Modelfile has no TEMPLATE: this chat template is no fixed text around each turn; Ollama takes its own"
        ]
    return []
