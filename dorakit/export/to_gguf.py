"""`dorakit export --to gguf`: a run as one GGUF file, with Ollama's Modelfile and a card beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dorakit.data.chat import try_template_of
from dorakit.errors import UsageError
from dorakit.evaluation.progress import say
from dorakit.export.card import Card, write_card
from dorakit.export.gguf_file import TYPES, check_family, write_gguf
from dorakit.export.gguf_vocabulary import check_vocabulary
from dorakit.export.merge import merge
from dorakit.export.merge_plan import RECEIPT as MERGE_RECEIPT
from dorakit.export.outputs import RECEIPT, Exported, Onto, described, is_up_to_date, place_for, run_to_export
from dorakit.export.receipt import read_receipt
from dorakit.export.serving import frame_of, gguf_lines, modelfile
from dorakit.export.shards import locked
from dorakit.files import whole_directory, write_json, write_whole
from dorakit.model.configs import read_object
from dorakit.model.directory import check_model_directory
from dorakit.model.load import pick_dtype
from dorakit.model.source import gguf_file, resolve, sha256
from dorakit.run import Run
from dorakit.target import check_base
from dorakit.training.interruptions import out_of_memory_said


@out_of_memory_said("the model must fit in memory once")
def export_gguf(
    target: Run | Path | str,
    *,
    output: Path | str | None = None,
    outtype: str = "f16",
    onto: Onto | None = None,
    quiet: bool = False,
) -> Exported:
    """Write a run as a GGUF file, with export.json, a Modelfile and a card.

    RUN/merged is read where it is up to date; else the adapter is merged, with the receipt of `merge`, into a place
    that is removed afterwards.

    Args:
        target: A finished run.
        output: A directory; RUN/gguf. An earlier result of this command is replaced.
        outtype: One of gguf_file.TYPES.
        onto: As for `merge`.
        quiet: Print nothing.

    Raises:
        UsageError: No such type, or the output would overwrite something else.
        ModelError: The family or the tokenizer cannot be written.
        GateError: The merged model answers differently from the live one; nothing is left.
    """
    run = run_to_export(target)
    if outtype not in TYPES:
        raise UsageError(
            f"--type {outtype}: known are {', '.join(TYPES)}; llama-quantize makes others from an f16 file"
        )
    directory = place_for(run, run.gguf, output)
    recipe = run.recipe
    origin = gguf_file(recipe.model.base)
    if origin is not None:
        check_base(run, {origin.name: sha256(origin)})
    source, told = _source(run, onto, origin)
    file = f"model-{outtype}.gguf"
    with locked(run, directory), whole_directory(directory) as staging:
        scratch = staging / "merged"
        if source is None:
            source = merge(run, output=scratch, onto=onto, quiet=quiet)
        check_model_directory(source)
        say(f"writing {file}", quiet=quiet)
        written = write_gguf(source, staging / file, outtype, name=run.name, origin=origin)
        notes = [*written.notes, *_write_modelfile(run, source, staging, file)]
        for line in notes:
            say(line, quiet=quiet)
        content: dict[str, Any] = {
            **described(run, "gguf"),
            "source": told,
            "onto": read_receipt(source, MERGE_RECEIPT).get("onto") if recipe.method is not None else None,
            "file": file,
            "type": outtype,
            "tensor_types": written.tensor_types,
            "bytes": (staging / file).stat().st_size,
            "sha256": sha256(staging / file),
            "notes": notes,
        }
        if scratch.is_dir():
            shutil.rmtree(scratch)
        write_card(staging, Card(run, "gguf", gguf_lines(Path("."), file, run.name), file=file))
        write_json(staging / RECEIPT, content)
    return Exported(directory, content, gguf_lines(directory, file, run.name))


def _source(run: Run, onto: Onto | None, origin: Path | None) -> tuple[Path | None, str]:
    """The directory to write, None where the adapter has to be merged first, and what it is.

    Raises:
        ModelError: Its family or its tokenizer cannot be written: said before minutes go into merging.
    """
    model, source, told = run.recipe.model, None, "adapter, merged for this"
    if run.recipe.method is None:
        source, told = run.model, "model directory"
    elif is_up_to_date(run, run.merged, onto):
        source, told = run.merged, "merged directory"
    known = source or resolve(model.base, revision=model.revision, dtype=pick_dtype(model.dtype)).directory
    check_family(str(read_object(known / "config.json").get("model_type")), run.merged)
    if origin is None:
        check_vocabulary(known)
    return source, told


def _write_modelfile(run: Run, source: Path, staging: Path, file: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    is_raw = all(data.format != "chat" for data in run.recipe.data.train)
    frame = None
    if tokenizer.chat_template and not is_raw:
        try_template_of(tokenizer, run.recipe.data)
        frame = frame_of(tokenizer)
    write_whole(staging / "Modelfile", modelfile(file, frame, _stops(tokenizer), is_raw=is_raw))
    if is_raw:
        return [
            "trained on prompts without a chat template: ask /v1/completions with the prompt as in training; a chat client "
            "puts the base's template around it, and the Modelfile none"
        ]
    if frame is None:
        return [
            "the Modelfile has no TEMPLATE: this chat template is no fixed text around each turn; Ollama takes its own"
        ]
    return []


def _stops(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.eos_token)] if tokenizer.eos_token else []
