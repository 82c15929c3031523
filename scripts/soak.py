"""The soak of scripts/soak.sh: random kill -9 and resume of one tiny run.

python soak.py CYCLES SEED

Each cycle is a process of its own, forked from this one so that torch is loaded once; it is killed only after its first
optimizer step. A kill inside a save loses the steps since the checkpoint before, so a run makes little way between kills:
it has enough steps that it never ends before the last cycle.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.progress import track

from dorakit import Recipe, Run, failpoints, train
from dorakit.model.source import resolve
from dorakit.training import loop  # noqa: F401  loaded before the forks

# After how many more steps a checkpoint is due, and the places inside its writing at which a process can die.
SAVE_EVERY = 2
PLACES = [
    *(("checkpoint.file", number) for number in (1, 2, 3, 4)),
    *((f"checkpoint.{part}", 1) for part in ("written", "synced", "renamed")),
    ("prune", 1),
]
LONGEST = 0.4  # seconds from a step to a kill from outside
RECIPE = """\
version: 1
output_dir: {place}/run
model: {{base: "tiny:llama", architecture: llama, dtype: float32}}
adapter: {{mode: qdora, rank: 4, alpha: 8, dropout: 0.1}}
data:
  root: {place}
  train: [{{path: rows.jsonl, format: completion}}]
  max_seq_len: 128
training:
  {{epochs: 1000, max_steps: {steps}, batch_size: 4, micro_batch_size: 2, log_every: 1, eval_every: 0, save_every: {every}}}
optimizer: {{name: adamw_8bit, learning_rate: 1e-3, schedule: cosine}}
"""


def prepare(place: Path, steps: int) -> Path:
    place.mkdir()
    rows = [{"prompt": f"{number} and {number} is", "completion": f" {2 * number}"} for number in range(64)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = place / "soak.yaml"
    recipe.write_text(RECIPE.format(place=place, steps=steps, every=SAVE_EVERY))
    return recipe


def child(recipe: Path, *, failpoint: str = "") -> int:
    """Begin or resume the run in a fork; its process number."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        failpoints.arm(failpoint)
        place = recipe.parent / "run"
        if place.exists():
            run = Run.open(place)
            train(run.recipe, resume=run, quiet=True)
        else:
            train(Recipe.from_yaml(str(recipe)), quiet=True)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def log_size(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.stat().st_size if log.exists() else 0


def newest(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def kill_from_outside(recipe: Path, draw: random.Random) -> int:
    """Kill at a random time after the process's first step."""
    run = recipe.parent / "run"
    process = child(recipe)
    # A resumed process first cuts the log back to its checkpoint; what grows after that are steps of its own.
    lowest, since = log_size(run), time.monotonic()
    began = False
    while not began and time.monotonic() - since < 60:
        time.sleep(0.001)
        size = log_size(run)
        lowest, began = min(lowest, size), size > lowest
    time.sleep(draw.random() * LONGEST)
    os.kill(process, signal.SIGKILL)
    return ended(process)


def kill_inside_a_save(recipe: Path, draw: random.Random) -> tuple[int, str]:
    """Kill inside the first, second or third save of the process."""
    place, number = draw.choice(PLACES)
    save = draw.randint(0, 2)
    per_save = 4 if place == "checkpoint.file" else 1
    # The first two checkpoints of a run prune nothing.
    where = f"{place}:{number + save * per_save}"
    return ended(child(recipe, failpoint=f"{where}=kill9")), place


def digest(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    cycles, seed = int(sys.argv[1]), int(sys.argv[2])
    draw = random.Random(seed)
    steps = 15 * cycles
    resolve("tiny:llama")
    home = Path(tempfile.mkdtemp(prefix="dorakit-soak-"))
    killed: Counter[str] = Counter()
    began = time.monotonic()
    try:
        recipe = prepare(home / "broken", steps)
        run = recipe.parent / "run"
        for cycle in track(range(cycles), "killing", disable=not sys.stderr.isatty()):
            if cycle % 2:
                code, place = kill_inside_a_save(recipe, draw)
            else:
                code, place = kill_from_outside(recipe, draw), "from outside"
            if code != -signal.SIGKILL:
                raise SystemExit(
                    f"cycle {cycle + 1}: ended with {code} instead of being killed ({place}, step {newest(run)})"
                )
            killed[place] += 1
        last = newest(run)
        print(f"{cycles} kills in {time.monotonic() - began:.0f} s, the run is at step {last} of {steps}", flush=True)
        print("  " + ", ".join(f"{place} {count}" for place, count in killed.most_common()))
        if ended(child(recipe)):
            raise SystemExit("the last resume failed")
        whole = prepare(home / "whole", steps)
        if ended(child(whole)):
            raise SystemExit("the run that nobody touched failed")
        same = digest(run) == digest(whole.parent / "run")
        print(f"after {steps} steps: {'byte-identical' if same else 'DIFFERENT'} ({digest(run)[:16]})")
        raise SystemExit(0 if same else 1)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
