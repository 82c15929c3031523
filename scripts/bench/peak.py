"""Run a command; print its seconds and the peak of its anonymous resident memory.

python peak.py LABEL COMMAND...
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path


def run_and_watch(command: list[str], **options) -> tuple[subprocess.Popen, str, str, float, int]:
    """The ended process, its stdout and stderr where they are piped, seconds, and peak bytes."""
    began = time.monotonic()
    process = subprocess.Popen(command, text=True, **options)
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            peak.extend(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
            peak[:] = [max(peak)]

    watcher = threading.Thread(target=sample)
    watcher.start()
    out, err = process.communicate()
    done.set()
    watcher.join()
    return process, out, err, time.monotonic() - began, peak[0]


if __name__ == "__main__":
    process, _, _, seconds, peak = run_and_watch(sys.argv[2:])
    print(f"{sys.argv[1]}: {seconds:.0f} s, peak anonymous memory {peak / 1e9:.2f} GB, exit {process.returncode}")
    raise SystemExit(process.returncode)
