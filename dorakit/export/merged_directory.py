"""A merged directory that is there already: whether an export may take it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dorakit.export.merge_plan import RECEIPT as MERGE_RECEIPT
from dorakit.export.receipt import adapter_sha256, read_receipt
from dorakit.export.trained import Trained

Onto = Literal["trained", "original"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


def merged_of(trained: Trained) -> Path | None:
    """RUN/merged; None for an adapter directory."""
    return trained.run.merged if trained.run else None


def fits(trained: Trained, merged: Path | None, onto: Onto | None, dtype: Dtype | None) -> bool:
    """Whether a directory is a merge of this very adapter, onto the base and in the dtype that were asked for, if any were.

    `merge` leaves no directory whose comparison failed.
    """
    if merged is None or trained.adapter is None or not (merged / MERGE_RECEIPT).is_file():
        return False
    receipt = read_receipt(merged, MERGE_RECEIPT)
    # Only NF4 makes two bases of one.
    is_onto = onto is None or trained.storage is None or receipt.get("onto") == onto
    is_base = trained.run is not None or receipt.get("base") == trained.base
    is_dtype = dtype in (None, "auto") or receipt.get("dtype") == dtype
    return is_onto and is_base and is_dtype and receipt.get("adapter_sha256") == adapter_sha256(trained.adapter)


def taken_notes(merged: Path) -> list[str]:
    """Lines on a merged directory that is taken as it is."""
    receipt = read_receipt(merged, MERGE_RECEIPT)
    base = "original weights" if receipt.get("onto") == "original" else "weights that the adapter was trained on"
    lines = [f"{merged.name}/ is taken as it is: {receipt.get('dtype')}, merged onto the {base}"]
    if receipt.get("receipt") == "none":
        lines.append("it was merged with --no-receipt: nothing was compared with the live adapter")
    return lines
