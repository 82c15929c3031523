"""Answers kept as they come, so that an evaluation that was killed goes on where it stopped.

Each line carries a key over all that decides it: weights, settings, versions and the row. A line counts only for a row
with the same key, so that nothing has to be compared but keys.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dorakit.errors import RunError
from dorakit.evaluation.generation import Prediction
from dorakit.files import naming, write_whole
from dorakit.links import as_own

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FIELDS = tuple(Prediction.__dataclass_fields__)


class KeptAnswers:
    """Answers of one task, by the number of their row.

    Attributes:
        found: Answers that are there already: (prediction, seconds).
        stale: Lines that were there and are of other weights, settings or rows.
    """

    def __init__(self, keys: Sequence[str]):
        self.keys = keys
        self.found: dict[int, tuple[Prediction, float]] = {}
        self.stale = 0
        self._file: Any = None

    def add(self, number: int, prediction: Prediction, seconds: float) -> None:
        """Keep an answer; on the disk at `flush`."""
        self.found[number] = (prediction, seconds)
        if self._file is not None:
            self._file.write(_line(self.keys[number], prediction, seconds).encode())

    def flush(self) -> None:
        """Hand what was added to the system: a killed process loses no more than what came after."""
        if self._file is not None:
            self._file.flush()

    def as_list(self) -> list[list[Any]]:
        """`found` as JSON can hold it, for `take`."""
        return [[number, prediction.as_dict(), seconds] for number, (prediction, seconds) in self.found.items()]

    def take(self, answers: list[list[Any]]) -> None:
        """Have the answers of another rank, and no others."""
        self.found = {number: (Prediction(**fields), seconds) for number, fields, seconds in answers}

    def text(self) -> str:
        """All answers, in the order of their rows."""
        return "".join(_line(self.keys[number], *self.found[number]) for number in sorted(self.found))

    def _read(self, lines: Sequence[bytes]) -> None:
        rows = {key: number for number, key in enumerate(self.keys)}
        for line in lines:
            try:
                content = json.loads(line)
                number = rows[content["key"]]
                self.found[number] = (Prediction(**{f: content[f] for f in _FIELDS}), float(content["seconds"]))
            except (ValueError, KeyError, TypeError):
                self.stale += 1

    @contextlib.contextmanager
    def appending(self, path: Path, *, before: Path) -> Iterator[None]:
        """Append answers to a file within the block; one writer at a time.

        What fits of the answers in it, and of those in `before`, which a finished evaluation wrote, is taken first.

        Raises:
            RunError: Another process evaluates into the same file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), open(path, "a+b", opener=as_own) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{path} is being written by another evaluation\n  wait for it, or name another --output"
                ) from None
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]  # a killed process may leave half a line
            self._read(whole)
            file.truncate(sum(map(len, whole)) if self.found else 0)
            if before.is_file():
                self._read(before.read_bytes().splitlines())
            self._file = file
            try:
                yield
            finally:
                self._file = None


def finish(path: Path, kept: KeptAnswers) -> None:
    """Write the answers of a finished task, at any instant the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, kept.text())


def key_of(*parts: Any) -> str:
    """A key over anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def weights_digest(model: PreTrainedModel) -> str:
    """A sha256 over a model's settings and every byte of its weights, adapters included: about a second a gigabyte."""
    import torch

    settings = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):  # where it lies, and who wrote it
        settings.pop(name, None)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for name, module in sorted(model.named_modules()):
        if (scaling := getattr(module, "scaling", None)) is not None:
            digest.update(f"{name} {scaling}".encode())
    return digest.hexdigest()


def _line(key: str, prediction: Prediction, seconds: float) -> str:
    return json.dumps({**prediction.as_dict(), "seconds": round(seconds, 4), "key": key}, ensure_ascii=False) + "\n"
