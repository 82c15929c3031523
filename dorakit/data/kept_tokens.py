"""Token ids of large data sets, kept between runs: they take minutes to make and are the same each time.

The key is a hash of everything that the ids depend on: the texts, the tokenizer, the chat template, `train_on`, the
libraries, and the code that encodes. Nothing is kept of small data sets, of templates that write today's date, and of
tokenizers that cannot be serialized. A digest beside the files tells damage, so that a flipped bit trains nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from dorakit import cache
from dorakit.data.encoder import Ids, Mask
from dorakit.data.formats import Passage, Sample
from dorakit.data.rendering import writes_date
from dorakit.errors import MachineError

MANY = 20_000  # fewer samples are tokenised in seconds
_FILE, _COUNTS, _DIGEST = "tokens.safetensors", "counts.json", "blake2b.txt"
_CODE = (
    *("chat.py", "documents.py", "encoder.py", "kept_tokens.py", "left_out.py", "rendering.py", "training_form.py"),
    "../model/stops.py",
)

Pairs = list[tuple[Ids, Mask]]
Counts = dict[str, int]


def kept_between_runs(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on: str,
    make: Callable[[], tuple[Pairs, Counts]],
) -> tuple[Pairs, Counts, list[str]]:
    """What `make` returns for these samples, from the cache where an earlier run made it: (ids, mask) pairs, and counts.

    The third value holds lines to print and record: a damaged entry was replaced, or the cache was left aside. One that
    cannot be read or written costs time and no training.
    """
    if len(samples) < MANY or writes_date(tokenizer) or not tokenizer.is_fast:
        return *make(), []
    name, notes, entry = f"tokens-{_key(samples, tokenizer, train_on)}", [], None
    with contextlib.suppress(MachineError):  # which is met again below
        entry = cache.find(name)
    if entry is not None:
        try:
            return *_read(entry), []
        except PermissionError as error:
            return *make(), [f"the token ids kept in {entry} cannot be read ({error.strerror}): they were made again"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            notes.append(f"the token ids kept in {entry} are damaged ({error}): they were made again")
    pairs, counts = make()
    try:
        if notes:
            cache.forget(name)
        cache.keep(name, lambda staging: _write(staging, pairs, counts))
    except (MachineError, OSError, SafetensorError) as error:
        notes.append(f"the token ids are not kept between runs: {str(error).splitlines()[0]}")
    return pairs, counts, notes


def _key(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, train_on: str) -> str:
    digest = hashlib.sha256()
    versions = [metadata.version(library) for library in ("tokenizers", "transformers", "jinja2")]
    special = tokenizer.special_tokens_map
    facts = [
        versions,
        train_on,
        str(tokenizer.chat_template),
        tokenizer.eos_token_id,
        {k: str(v) for k, v in special.items()},
    ]
    digest.update(json.dumps(facts).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for name in _CODE:
        digest.update((Path(__file__).parent / name).read_bytes())
    for sample in samples:
        texts = (sample.prompt, sample.completion) if isinstance(sample, Passage) else (sample.messages, sample.tools)
        digest.update(repr(texts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _write(directory: Path, pairs: Pairs, counts: Counts) -> None:
    arrays = {
        "ids": np.concatenate([ids for ids, _ in pairs]),
        "mask": np.packbits(np.concatenate([mask for _, mask in pairs])),
        "lengths": np.asarray([len(ids) for ids, _ in pairs], dtype=np.int64),
    }
    save_file(arrays, directory / _FILE)
    (directory / _COUNTS).write_text(json.dumps(counts), encoding="utf-8")
    (directory / _DIGEST).write_text(_digest(directory), encoding="utf-8")


def _read(directory: Path) -> tuple[Pairs, Counts]:
    if _digest(directory) != (directory / _DIGEST).read_text(encoding="utf-8"):
        raise ValueError(f"{_DIGEST} tells another digest")
    arrays = load_file(directory / _FILE)
    borders = np.cumsum(arrays["lengths"])[:-1]
    mask = np.unpackbits(arrays["mask"], count=len(arrays["ids"])).astype(bool)
    counts = json.loads((directory / _COUNTS).read_text(encoding="utf-8"))
    return list(zip(np.split(arrays["ids"], borders), np.split(mask, borders), strict=True)), counts


def _digest(directory: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in (_FILE, _COUNTS):
        digest.update((directory / name).read_bytes())
    return digest.hexdigest()
