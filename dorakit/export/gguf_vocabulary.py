"""A tokenizer as a GGUF file describes it. llama.cpp knows the rule that cuts text into words by name only.

A tokenizer that came from a GGUF file goes back as it was there: what transformers makes of such a file may lack a step
of the rule. Any other is read from tokenizer.json, and a rule without a name here is refused: with a wrong name a file reads
well and tokenizes otherwise.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf

from dorakit.errors import ModelError, shown
from dorakit.model.configs import read_object
from dorakit.words import counted

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_QWEN2 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # one digit each
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's names for what ends a text, a turn and a message. It ends an answer at any of them.
_ENDS = ("eos", "eot", "eom")
_GPT2_STEP, _BYTES_STEP, _DIGITS_STEP = ("bytes", True), ("bytes", False), ("digits", True)
# The steps of tokenizer.json, and whether a word that is a token is taken whole before merges: llama.cpp's name.
_RULES = {
    ((_GPT2_STEP,), False): "gpt-2",
    ((_DIGITS_STEP, _GPT2_STEP), False): "smollm",
    ((("split", _LLAMA3), _BYTES_STEP), True): "llama-bpe",
    ((("split", _QWEN2), _BYTES_STEP), False): "qwen2",
    ((("split", _TEKKEN), _BYTES_STEP), True): "tekken",
}


class NotWritable(ModelError):
    """A family, tokenizer or kind of positions that is not written here; llama.cpp's own converter may know it."""


def add_vocabulary(
    writer: gguf.GGUFWriter, directory: Path, num_rows: int, *, stops: Sequence[int], origin: Path | None
) -> list[str]:
    """Put a tokenizer into a GGUF file: tokens, merges, special tokens, chat template.

    Args:
        writer: Of the file.
        directory: A model directory with tokenizer.json and the chat template.
        num_rows: Rows of the embedding; those without a token are written as unused ones.
        stops: Tokens that end an answer.
        origin: The GGUF file that the base was read from, whose tokenizer keys are copied; None for any other base.

    Returns:
        Lines to print and to record.

    Raises:
        ModelError: It is no byte-level BPE, splits words by a rule that has no name here, or has more tokens than the
            embedding has rows.
    """
    file, tokenizer = directory / "tokenizer.json", _read(directory)
    logging.getLogger("gguf").setLevel(logging.ERROR)  # it would speak of merges that a tokenizer of bytes has not
    special = gguf.SpecialVocab(directory, load_merges=True, n_vocab=num_rows)
    if special.chat_template:
        writer.add_chat_template(special.chat_template)
        special.chat_template = None
    if origin is not None:
        return _copy(writer, origin, tokenizer, num_rows, stops)
    name = pre_type(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    vocabulary = {number: (text, int(gguf.TokenType.NORMAL)) for text, number in tokenizer["model"]["vocab"].items()}
    _add_tokens(writer, file, vocabulary | _added(tokenizer), num_rows)
    # llama.cpp takes silence for its own default, which differs from rule to rule.
    special.add_special_token.setdefault("bos", False)
    ids = special.special_token_ids
    ends, unsaid = _ends([ids.get("eos"), *stops, *(ids.pop(name, None) for name in _ENDS[1:])])
    ids.update(ends)
    special.add_to_gguf(writer, quiet=True)
    notes = [*unsaid, f"tokenizer: llama.cpp's pre-tokenizer {name!r}, recognised by its steps in tokenizer.json"]
    if not special.merges:
        notes.append(
            "the tokenizer merges no bytes, and llama.cpp loads none without merges: transformers reads this file"
        )
    return notes


def check_vocabulary(directory: Path) -> None:
    """Refuse a model directory whose tokenizer cannot be written.

    Raises:
        NotWritable: As `pre_type`.
    """
    pre_type(_read(directory))


def pre_type(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for how the content of a tokenizer.json cuts text into words.

    Raises:
        NotWritable: There is none here.
    """
    model = tokenizer.get("model") or {}
    is_bytes = (tokenizer.get("decoder") or {}).get("type") == "ByteLevel"
    if model.get("type") != "BPE" or model.get("byte_fallback") or not is_bytes:
        found = "there is no tokenizer.json" if not model else f"this one is {shown(str(model.get('type')))}"
        found += " with SentencePiece's byte fallback" if model.get("byte_fallback") else ""
        raise NotWritable(f"only byte-level BPE tokenizers can be written as GGUF, and {found}")
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    top = tokenizer.get("pre_tokenizer") or {}
    steps = [_step(step) for step in (top.get("pretokenizers", []) if top.get("type") == "Sequence" else [top])]
    name = _RULES.get((tuple(steps), bool(model.get("ignore_merges"))))
    if name is None and not model.get("merges") and steps == [_BYTES_STEP]:
        name = "gpt-2"  # where no two bytes are ever merged, no rule changes anything
    if name is None or normalizer not in (None, "NFC"):
        told = shown(json.dumps([normalizer, *steps], ensure_ascii=False))[:300]
        raise NotWritable(
            f"the tokenizer cuts text into words by a rule that has no name here: {told}\n"
            f"  known are those that llama.cpp calls {', '.join(sorted(_RULES.values()))}; under another name the file would "
            "read well and tokenize otherwise"
        )
    return name


def _step(step: dict[str, Any]) -> tuple[str, Any]:
    kind, pattern = step.get("type"), step.get("pattern") or {}
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert") and "Regex" in pattern:
        return "split", pattern["Regex"]
    if kind == "Digits" and step.get("individual_digits"):
        return _DIGITS_STEP
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes", bool(step.get("use_regex", True))
    return "other", str(kind)


def _read(directory: Path) -> dict[str, Any]:
    """The content of tokenizer.json, as far as this file uses it; {} where there is none.

    Raises:
        ModelError: It is damaged.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        return {}
    found = read_object(file)
    parts = ("model", "decoder", "normalizer", "pre_tokenizer")
    problems = [f"{part} is {found[part]!r:.60}" for part in parts if not isinstance(found.get(part) or {}, dict)]
    problems += [
        f"added_tokens[{number}] is {added!r:.60}"
        for number, added in enumerate(found.get("added_tokens") or [])
        if not (isinstance(added, dict) and _is_added(added))
    ]
    if not problems:
        model = found.get("model") or {}
        if model.get("type") == "BPE":
            kinds = {"vocab": dict, "merges": list}
            problems = [
                f"model.{key} is {model.get(key)!r:.60}" for key in kinds if not isinstance(model.get(key), kinds[key])
            ]
        vocabulary = model.get("vocab") or {}
        ids = vocabulary.values() if isinstance(vocabulary, dict) else [vocabulary]
        problems += [f"model.vocab has {value!r:.60}" for value in ids if not _is_id(value)]
        steps = (found.get("pre_tokenizer") or {}).get("pretokenizers") or []
        problems += [] if _are_steps(steps) else [f"pre_tokenizer.pretokenizers is {steps!r:.60}"]
    if problems:
        raise ModelError(f"{file} is damaged: {problems[0]}\n  take it from the base again")
    return found


def _is_added(added: dict[str, Any]) -> bool:
    return _is_id(added.get("id")) and isinstance(added.get("content"), str) and isinstance(added.get("special"), bool)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_steps(steps: Any) -> bool:
    """Whether `_step` can look at them."""
    return isinstance(steps, list) and all(
        isinstance(step, dict) and isinstance(step.get("pattern") or {}, dict) for step in steps
    )


def _added(tokenizer: dict[str, Any]) -> dict[int, tuple[str, int]]:
    """Text and GGUF token type by id, of the tokens that stand beside the vocabulary."""
    control, own = int(gguf.TokenType.CONTROL), int(gguf.TokenType.USER_DEFINED)
    return {
        added["id"]: (added["content"], control if added["special"] else own)
        for added in tokenizer.get("added_tokens", [])
    }


def _add_tokens(writer: gguf.GGUFWriter, file: Path, tokens: dict[int, tuple[str, int]], num_rows: int) -> None:
    if max(tokens) >= num_rows:
        raise ModelError(f"{file} has a token with id {max(tokens)}, and the embedding {num_rows} rows")
    unused = int(gguf.TokenType.UNUSED)
    rows = [tokens.get(number, (f"[PAD{number}]", unused)) for number in range(num_rows)]
    writer.add_token_list([text for text, _ in rows])
    writer.add_token_types([kind for _, kind in rows])


def _copy(
    writer: gguf.GGUFWriter, origin: Path, tokenizer: dict[str, Any], num_rows: int, stops: Sequence[int]
) -> list[str]:
    """Copy the tokenizer's keys of another GGUF file; tokens that were added since follow its own."""
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
    fields = {
        name: field for name, field in gguf.GGUFReader(origin).fields.items() if name.startswith("tokenizer.ggml.")
    }
    stated = [fields.pop(f"tokenizer.ggml.{name}_token_id", None) for name in _ENDS]
    eos, *others = (field and int(field.contents()) for field in stated)
    ends, unsaid = _ends([eos, *stops, *others])
    for name, number in ends.items():
        getattr(writer, f"add_{name}_token_id")(number)
    for name, field in fields.items():
        if name not in keys:
            content, inner = field.contents(), None
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                inner = field.types[1]
            if name == "tokenizer.ggml.scores":  # one a token, those that were added too
                content += [0.0] * (num_rows - len(content))
            writer.add_key_value(name, content, field.types[0], sub_type=inner)
    texts = fields[keys[0]].contents()
    kinds = fields[keys[1]].contents() if keys[1] in fields else [int(gguf.TokenType.NORMAL)] * len(texts)
    tokens = dict(enumerate(zip(texts, kinds, strict=True)))
    added = {number: token for number, token in _added(tokenizer).items() if number >= len(texts)}
    _add_tokens(writer, origin, tokens | added, num_rows)
    return [
        *unsaid,
        f"tokenizer: as in {origin.name}"
        + (f", and {counted(len(added), 'token')} added in training" if added else ""),
    ]


def _ends(stops: Iterable[int | None]) -> tuple[dict[str, int], list[str]]:
    """The stops under llama.cpp's names for them, and a line on those that are beyond."""
    found = list(dict.fromkeys(number for number in stops if number is not None))
    notes = []
    if beyond := found[len(_ENDS) :]:
        notes = [
            f"a GGUF file has room for {len(_ENDS)} tokens that end an answer: those with ids "
            f"{', '.join(map(str, beyond))} are in the Modelfile alone"
        ]
    return dict(zip(_ENDS, found, strict=False)), notes
