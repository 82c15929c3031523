"""`dorakit data`: a recipe's rows as the model will see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dorakit.cli import completion, options
from dorakit.errors import shown
from dorakit.terminal import json_line, printable
from dorakit.words import counted

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from dorakit.data.tokens import Document, Encoded

# (text, whether it is trained on)
Piece = tuple[str, bool]


def data(
    recipe: Annotated[str, typer.Argument(help="Recipe whose rows to show.", autocompletion=completion.recipes)],
    set_: options.Set = None,
    twin: options.Twin = False,
    limit: options.Limit = 3,
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print counts only: no samples, no notes.")] = False,
) -> None:
    """Show the first samples as the model will see them: trained tokens bright, the others dimmed.

    Off a terminal the trained text stands between ⟦ and ⟧. Only the tokenizer of the base is needed. Counts are of all
    rows, after max_seq_len; --limit only says how many are shown.

    Examples:
        dorakit data recipes/quickstart.yaml

        dorakit data recipes/quickstart.yaml --limit 1 --set data.max_seq_len=128
    """
    from dorakit.data.precheck import check_rows
    from dorakit.recipe.schema import Recipe

    plan = Recipe.from_yaml(recipe, set_ or [], twin=twin)
    check_rows(plan)

    from dorakit.build import build_tokenizer
    from dorakit.data.tokens import encode

    tokenizer = build_tokenizer(plan)
    encoded = encode(plan.data, tokenizer, seed=plan.training.seed, twin=plan.origin.is_twin)
    report = _report(encoded, [*plan.origin.notes, *encoded.notes])
    samples = [(document, _pieces(document, tokenizer)) for document in encoded.train[: 0 if quiet else limit]]
    if as_json:
        report["samples"] = [
            {
                "row": document.row,
                "tokens": len(document),
                "supervised_tokens": document.num_labels,
                "pieces": [{"text": text, "trained": trained} for text, trained in pieces],
            }
            for document, pieces in samples
        ]
        typer.echo(json_line(report))
        return

    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for document, pieces in samples:
        _show(console, document, pieces)
    for name in ("train", "validation"):
        if report[name] is not None:
            console.print(_summary(name, report[name]), markup=False)
    for note in [] if quiet else report["notes"]:
        console.print(shown(f"note: {note}"), markup=False, emoji=False)


def _report(encoded: Encoded, notes: list[str]) -> dict[str, Any]:
    return {
        "train": _counts(encoded.train),
        "validation": _counts(encoded.validation) if encoded.validation else None,
        "notes": notes,
        "fingerprint": encoded.fingerprint,
    }


def _counts(documents: list[Document]) -> dict[str, Any]:
    lengths = sorted(map(len, documents))
    return {
        "documents": len(documents),
        "tokens": sum(lengths),
        "supervised_tokens": sum(document.num_labels for document in documents),
        "lengths": {"min": lengths[0], "median": lengths[len(lengths) // 2], "max": lengths[-1]},
    }


def _summary(name: str, counts: dict[str, Any]) -> str:
    lengths, share = counts["lengths"], counts["supervised_tokens"] / counts["tokens"]
    return (
        f"{name + ':':11} {counted(counts['documents'], 'document')} of {lengths['min']} to {lengths['max']} tokens "
        f"(median {lengths['median']}); {counts['tokens']:,} tokens, "
        f"{counts['supervised_tokens']:,} trained on ({share:.1%})"
    )


def _pieces(document: Document, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The document's text, cut where the mask changes."""
    pieces: list[Piece] = []
    ids, mask = document.input_ids.tolist(), document.mask.tolist()
    changes = [i for i in range(1, len(ids)) if mask[i] != mask[i - 1]]
    before = ""
    for start, end in zip([0, *changes], [*changes, len(ids)], strict=True):
        # Decoded from the beginning each time: alone, some tokenizers drop the blank that a piece starts with.
        text = str(tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False))
        pieces.append((text[len(before) :], mask[start]))
        before = text
    return pieces


def _show(console: Console, document: Document, pieces: list[Piece]) -> None:
    from rich.text import Text

    heading = f"{shown(document.row)} · {counted(len(document), 'token')}, {document.num_labels} trained on"
    console.print(Text(heading, style="bold underline"))
    body = Text()
    for text, is_trained in pieces:
        visible = printable(text)
        if console.is_terminal and not console.no_color:
            body.append(visible, style="bold bright_green" if is_trained else "dim")
        else:
            body.append(f"⟦{visible}⟧" if is_trained else visible)
    console.print(body)
    console.print()
