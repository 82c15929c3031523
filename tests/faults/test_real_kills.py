"""kill -9 from outside, at no chosen instant, of the command as it is installed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dying_runs import digest, make_site


def command(*arguments) -> subprocess.Popen:
    program = Path(sys.executable).with_name("dorakit")
    assert program.is_file(), "the package is not installed: no dorakit beside the interpreter"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [program, "train", *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )


def ended(process: subprocess.Popen) -> str:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return err.decode()


def test_three_kills(tmp_path, matrix):
    """Dies if a kill that nobody prepared for costs a byte."""
    whole, broken = make_site(tmp_path / "whole", steps=300), make_site(tmp_path / "broken", steps=300)
    rarely = ["--set", "training.save_every=15", "--set", "training.eval_every=0"]
    ended(command(whole.recipe, *rarely))
    log = broken.run / "metrics.jsonl"
    reached = 0
    for number in range(3):
        process = command(*([broken.recipe, *rarely] if number == 0 else ["--resume", broken.run]))
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None:
            lines = log.read_bytes().count(b"\n") if log.exists() else 0
            if lines > reached + 20:
                break
            time.sleep(0.002)
        time.sleep(0.013 * number)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it was over before it could be killed:\n{err.decode()[-2000:]}"
        reached = log.read_bytes().count(b"\n")
    said = ended(command("--resume", broken.run))
    assert "vanished: killed, or out of memory" in said
    assert digest(whole.run) == digest(broken.run)
    assert whole.metrics() == broken.metrics()
    matrix(1, f"kill -9 of the installed command, {number + 1} times", "resumes, same bytes", "same bytes and metrics")
