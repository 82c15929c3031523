"""Token ids of large data sets, kept between runs: they take minutes to make and are the same each time.

The key is a hash of everything that the ids depend on: the texts, the tokenizer, the chat template, `train_on`, the
libraries, and the code that encodes. Nothing is kept of small data sets, of templates that write today's date, and of
tokenizers that cannot be serialized.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from dorakit.cache import cached
from dorakit.data.encoder import Ids, Mask
from dorakit.data.formats import Passage, Sample

MANY = 20_000  # fewer samples are tokenised in seconds
_FILE = "tokens.safetensors"
_CODE = ("chat.py", "documents.py", "encoder.py")

Pairs = list[tuple[Ids, Mask]]
Counts = dict[str, int]


def kept_between_runs(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on: str,
    make: Callable[[], tuple[Pairs, Counts]],
) -> tuple[Pairs, Counts]:
    """What `make` returns for these samples, from the cache where an earlier run made it: (ids, mask) pairs, and counts."""
    template = str(tokenizer.chat_template)
    if len(samples) < MANY or "strftime_now" in template or not tokenizer.is_fast:
        return make()
    name = f"tokens-{_key(samples, tokenizer, train_on)}"
    try:
        return _read(cached(name, lambda staging: _write(staging, *make())))
    except (OSError, ValueError, KeyError, SafetensorError):
        return make()  # a cache that cannot be written, or whose file is damaged, costs time and no training


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
    (directory / "counts.json").write_text(json.dumps(counts), encoding="utf-8")


def _read(directory: Path) -> tuple[Pairs, Counts]:
    arrays = load_file(directory / _FILE)
    borders = np.cumsum(arrays["lengths"])[:-1]
    mask = np.unpackbits(arrays["mask"], count=len(arrays["ids"])).astype(bool)
    counts = json.loads((directory / "counts.json").read_text(encoding="utf-8"))
    return list(zip(np.split(arrays["ids"], borders), np.split(mask, borders), strict=True)), counts
