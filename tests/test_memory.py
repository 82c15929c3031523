"""Where there is no /proc: macOS, of which this is all that can be shown on Linux."""

import sys

from dorakit import memory
from dorakit.training.device import peak_memory_bytes


def test_a_host_without_proc(tmp_path, monkeypatch):
    """Planted bug caught: an estimate that ends in a traceback, since /proc/meminfo is not there."""
    total = memory.host_memory()[1]
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    free, whole = memory.host_memory()
    assert free == whole >= total


def test_the_unit_of_the_peak(monkeypatch):
    """The peak is in KiB on Linux and in bytes on macOS. Planted bug caught: a peak of terabytes in every line of a training."""
    on_linux = peak_memory_bytes()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert on_linux / 1024 <= peak_memory_bytes() < on_linux
