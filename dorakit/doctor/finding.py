"""What an examination finds: one line, its level, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line.

    `fail` is what no training gets past, `warn` what surprises or slows; `mend` is the command, or the deed, that changes it.
    """

    level: Level
    about: str
    says: str
    mend: str = ""
