"""docker/slurm.sbatch with the installed command: a job whose time is up, queued again. The test plays Slurm."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dying_runs import make_site

SBATCH = Path(__file__).parents[2] / "docker/slurm.sbatch"
SCONTROL = '#!/bin/bash\necho "$@" >>"$REQUEUED"\n'
STEPS = 300


@pytest.fixture
def start():
    """Starts a job; what is left of its processes after the test is killed."""
    jobs = []

    def start(recipe: Path, environment: dict[str, str]) -> subprocess.Popen:
        whole = {**os.environ, **environment}
        command = ["bash", SBATCH, recipe]
        jobs.append(subprocess.Popen(command, env=whole, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return jobs[-1]

    yield start
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.timeout(600)
def test_time_is_up_in_mid_run(tmp_path, matrix, start):
    """Dies if the announced end of a job's time costs a step, or its second start begins anew, or its third trains."""
    site = make_site(tmp_path / "site", steps=STEPS)
    rarely = (
        site.recipe.read_text().replace("save_every: 2", "save_every: 200").replace("eval_every: 4", "eval_every: 0")
    )
    site.recipe.write_text(rarely)
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    requeued = tmp_path / "requeued"
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        "PATH": path,
        "SHARED": str(tmp_path),
        "RUN": str(site.run),
        "REQUEUED": str(requeued),
        "SLURM_JOB_ID": "17",
    }

    first, log = start(site.recipe, environment), site.run / "metrics.jsonl"
    while first.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 20):
        time.sleep(0.02)
    first.send_signal(signal.SIGUSR1)  # to the script alone, as B: asks
    _, said = first.communicate()
    assert first.returncode == 143, f"it was over before it could be stopped:\n{said[-2000:]}"
    assert requeued.read_text() == "requeue 17\n"
    (checkpoint,) = site.checkpoints()
    reached = int(checkpoint.name.removeprefix("step-"))
    assert 20 < reached < 200

    second = start(site.recipe, environment)
    _, said = second.communicate()
    assert second.returncode == 0, said
    assert site.facts()["state"] == "finished"
    assert [line["step"] for line in site.metrics() if "train/loss" in line] == list(range(1, STEPS + 1))

    third = start(site.recipe, environment)
    third.communicate()
    assert third.returncode == 0
    assert [found.name for found in site.place.glob("run*")] == ["run"]
    assert requeued.read_text() == "requeue 17\n"
    matrix(1, "a Slurm job's time is up, twice queued", "goes on, then leaves it", f"went on from step {reached}")
