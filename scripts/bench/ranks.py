"""Optimizer steps per second of two processes against one, a thread each, and what a process holds: figures of docs/scaling.md.

python scripts/bench/ranks.py DATA [--recipe arc-easy.yaml] [--rounds 2] [--steps 6] [--set KEY=VALUE ...]
DATA as of scripts/bench/run.sh

Nothing else should run on the machine. Rounds go through all contenders in turn.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CONTENDERS = {
    "1 process": [],
    "2 ranks, ddp": ["--nproc", "2", "--set", "parallel.strategy=ddp"],
    "2 ranks, fsdp": ["--nproc", "2", "--set", "parallel.strategy=fsdp"],
}


class Peaks(threading.Thread):
    """The largest resident memory, all of it and without mapped files, that a process or a child of it is seen to have."""

    def __init__(self, parent: int):
        super().__init__(daemon=True)
        self.parent, self.resident, self.anonymous = parent, 0, 0
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Look ten times a second."""
        while not self.ended.wait(0.1):
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
                except OSError:  # it ended
                    continue
                if self.parent in (int(lines["PPid"]), int(lines["Pid"])) and "VmRSS" in lines:
                    self.resident = max(self.resident, int(lines["VmRSS"].split()[0]) * 1024)
                    self.anonymous = max(self.anonymous, int(lines["RssAnon"].split()[0]) * 1024)


def measure(recipe: str, data: str, options: list[str], steps: int) -> tuple[list[float], Peaks, str]:
    """Seconds of each step but the first two, the peak memory of a process, and what it said of its share."""
    with tempfile.TemporaryDirectory() as directory:
        settings = [
            f"data.root={data}",
            f"output_dir={directory}/run",
            f"training.max_steps={steps}",
            "training.log_every=1",
        ]
        sets = [part for setting in settings for part in ("--set", setting)]
        process = subprocess.Popen(
            [sys.executable, "-m", "dorakit", "train", recipe, *sets, *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        times, peaks, share = [], Peaks(process.pid), ""
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step ") and "loss" in line and "validation" not in line:
                times.append(time.perf_counter())
            if line.startswith("fsdp:"):
                share = line.strip()
        peaks.ended.set()
        if process.wait():
            raise SystemExit(f"{' '.join(options)} failed")
    return [now - before for before, now in itertools.pairwise(times)][1:], peaks, share


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--recipe", default=str(Path(__file__).parent / "arc-easy.yaml"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    also = [part for setting in arguments.set for part in ("--set", setting)]
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peaks: dict[str, list[Peaks]] = {name: [] for name in CONTENDERS}
    for number in range(arguments.rounds):
        for name, options in CONTENDERS.items():
            data = str(Path(arguments.data).absolute())
            took, peak, share = measure(arguments.recipe, data, [*options, *also], arguments.steps)
            seconds[name] += took
            peaks[name].append(peak)
            print(f"round {number + 1}: {name}, {[round(s, 2) for s in took]} {share}", file=sys.stderr, flush=True)
    one = statistics.median(seconds["1 process"])
    print(
        "| | steps/s | against one | peak memory of a process, GB | without mapped files |\n| --- | --- | --- | --- | --- |"
    )
    for name, took in seconds.items():
        median = statistics.median(took)
        resident, anonymous = (max(getattr(p, kind) for p in peaks[name]) / 1e9 for kind in ("resident", "anonymous"))
        print(f"| {name} | {1 / median:.3f} | {one / median:.2f} | {resident:.2f} | {anonymous:.2f} |")


if __name__ == "__main__":
    main()
