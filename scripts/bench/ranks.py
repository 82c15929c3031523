"""Optimizer steps per second of two processes against one, a thread each, and what a process holds: figures of docs/scaling.md.

python scripts/bench/ranks.py DATA [--rounds 2] [--steps 6] [--set KEY=VALUE ...]      DATA as of scripts/bench/run.sh

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
import time
from pathlib import Path

RECIPE = Path(__file__).parent / "arc-easy.yaml"
CONTENDERS = {
    "1 process": [],
    "2 ranks, ddp": ["--nproc", "2", "--set", "parallel.strategy=ddp"],
    "2 ranks, fsdp": ["--nproc", "2", "--set", "parallel.strategy=fsdp"],
}


def peak_bytes(parent: int) -> int:
    """The largest peak of resident memory among a process's children; its own where it has none."""
    peaks = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:  # it ended
            continue
        if parent in (int(lines["PPid"]), int(lines["Pid"])) and "VmHWM" in lines:
            peaks[int(lines["Pid"])] = int(lines["VmHWM"].split()[0]) * 1024
    return max((peak for pid, peak in peaks.items() if pid != parent), default=peaks.get(parent, 0))


def measure(data: str, options: list[str], steps: int) -> tuple[list[float], int, str]:
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
            [sys.executable, "-m", "dorakit", "train", str(RECIPE), *sets, *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        times, peak, share = [], 0, ""
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step ") and "loss" in line and "validation" not in line:
                times.append(time.perf_counter())
                peak = max(peak, peak_bytes(process.pid))
            if line.startswith("fsdp:"):
                share = line.strip()
        if process.wait():
            raise SystemExit(f"{' '.join(options)} failed")
    return [now - before for before, now in itertools.pairwise(times)][1:], peak, share


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    also = [part for setting in arguments.set for part in ("--set", setting)]
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peaks: dict[str, int] = {}
    for number in range(arguments.rounds):
        for name, options in CONTENDERS.items():
            took, peak, share = measure(str(Path(arguments.data).absolute()), [*options, *also], arguments.steps)
            seconds[name] += took
            peaks[name] = max(peak, peaks.get(name, 0))
            print(f"round {number + 1}: {name}, {[round(s, 2) for s in took]} {share}", file=sys.stderr, flush=True)
    one = statistics.median(seconds["1 process"])
    print("| | steps/s | against one | peak memory of a process, GB |\n| --- | --- | --- | --- |")
    for name, took in seconds.items():
        median = statistics.median(took)
        print(f"| {name} | {1 / median:.3f} | {one / median:.2f} | {peaks[name] / 1e9:.2f} |")


if __name__ == "__main__":
    main()
