"""Text to token ids, with a mask over spans of the text.

Two rules make the ids of training those of inference. A prompt is tokenised alone, so that a passage begins with
exactly the ids that generation starts from. (LLM-Adapters tokenises prompt and answer as one text instead; its prompts
end in blanks, and so are other tokens in training than in evaluation.) And no token lies across the border of a span:
where one would, the text is tokenised in pieces cut at the borders.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Spans = list[tuple[int, int]]

_CHUNK = 1000  # texts handed to the tokenizer at once: enough for its threads, little enough to stay small in memory
_PROBE = "a"


class Encoder:
    """A tokenizer's ids, without and with the tokens that it adds.

    Attributes:
        lead: Ids that the tokenizer puts before a text (BOS), possibly none.
        eos_id: The token that ends a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.eos_id = int(tokenizer.eos_token_id)
        self.lead = self._lead()
        bare, newline, both = (self._plain(text) for text in (_PROBE, "\n", "\n" + _PROBE))
        # Tokenizers of the SentencePiece kind begin every text with a blank. After a prompt that blank would be one
        # more than the text has, so such a text is tokenised behind a newline, which is then cut off.
        self._guard = "\n" if both[: len(newline)] == newline and both[len(newline) :] != bare else ""
        self._guard_ids = newline if self._guard else []

    def texts(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts as they stand, nothing added."""
        found = []
        for chunk in self._chunks(texts):
            found += [np.asarray(ids, dtype=np.int32) for ids in self._call(chunk)["input_ids"]]
        return found

    def beginnings(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts that begin a document: BOS first, where the tokenizer has the habit, and never twice."""
        lead = np.asarray(self.lead, dtype=np.int32)
        return [
            ids if not len(lead) or (len(ids) and ids[0] == lead[0]) else np.concatenate([lead, ids])
            for ids in self.texts(texts)
        ]

    def continuations(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts that follow other text."""
        if not self._guard:
            return self.texts(texts)
        count = len(self._guard_ids)
        guarded = self.texts([self._guard + text for text in texts])
        return [
            ids[count:] if ids[:count].tolist() == self._guard_ids else self.texts([text])[0]
            for ids, text in zip(guarded, texts, strict=True)
        ]

    def marked(self, texts: Sequence[str], spans: Sequence[Spans]) -> list[tuple[Ids, Mask]]:
        """Ids of whole texts, nothing added, and a mask that is true for the tokens inside the spans."""
        if not self.tokenizer.is_fast:  # such a tokenizer cannot say where its tokens lie
            return [self._in_pieces(text, where) for text, where in zip(texts, spans, strict=True)]
        found = []
        index = 0
        for chunk in self._chunks(texts):
            encoded = self._call(chunk, return_offsets_mapping=True)
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
                self._add_trailing_blanks_(places, texts[index], ids, spans[index])
                mask = _mask(places, spans[index])
                found.append(
                    (np.asarray(ids, dtype=np.int32), mask)
                    if mask is not None
                    else self._in_pieces(texts[index], spans[index])
                )
                index += 1
        return found

    def _add_trailing_blanks_(self, offsets: npt.NDArray[np.int64], text: str, ids: list[int], spans: Spans) -> None:
        """Extend a token's offsets, in place, over blanks at its end that the tokenizer leaves out of them.

        Only where a border lies among those blanks, so that the token is seen to cross it.
        """
        ends, following = offsets[:, 1], np.append(offsets[1:, 0], len(text))
        for border in {border for span in spans for border in span}:
            for index in np.flatnonzero((ends <= border) & (border < following) & (offsets[:, 0] < ends)):
                start, piece = int(offsets[index, 0]), self.tokenizer.decode([ids[index]])
                if text.startswith(piece, start):
                    offsets[index, 1] = max(ends[index], start + len(piece))

    def _in_pieces(self, text: str, spans: Spans) -> tuple[Ids, Mask]:
        ids: list[int] = []
        mask: list[bool] = []
        borders = sorted({0, len(text), *(border for span in spans for border in span)})
        for start, end in itertools.pairwise(borders):
            piece = (self.continuations if start else self.texts)([text[start:end]])[0].tolist()
            ids += piece
            mask += [any(a <= start < b for a, b in spans)] * len(piece)
        return np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=bool)

    def _lead(self) -> list[int]:
        bare, dressed = self._plain(_PROBE), list(self._call([_PROBE], add_special_tokens=True)["input_ids"][0])
        for start in range(len(dressed) - len(bare) + 1):
            if dressed[start : start + len(bare)] == bare:
                return dressed[:start]
        return []

    def _plain(self, text: str) -> list[int]:
        return list(self._call([text])["input_ids"][0])

    def _call(self, texts: Sequence[str], **options: Any) -> Any:
        settings = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False, **options}
        return self.tokenizer(list(texts), **settings)

    def _chunks(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        console = Console(stderr=True)
        starts = range(0, len(texts), _CHUNK)
        quiet = len(starts) < 5 or not console.is_terminal
        for start in track(starts, "tokenising", console=console, transient=True, disable=quiet):
            yield texts[start : start + _CHUNK]


def _mask(offsets: npt.NDArray[np.int64], spans: Spans) -> Mask | None:
    """Which tokens lie inside the spans; None where a token lies across a border."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    # Some tokenizers leave blanks out of their offsets: a token then begins where the one before it ended. Tokens that
    # share a character (one byte of it each) overlap.
    reach = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
    begins = np.minimum(starts, reach)
    mask = np.zeros(len(begins), dtype=bool)
    for start, end in spans:
        if ((begins < start) & (start < ends)).any() or ((begins < end) & (end < ends)).any():
            return None
        mask |= (begins >= start) & (begins < end)
    return mask
