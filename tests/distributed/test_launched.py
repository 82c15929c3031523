"""The installed command under torchrun's agent: `--nproc`, restarts, signals to the launcher."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from dying_runs import digest

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
DORAKIT = [sys.executable, "-m", "dorakit"]
# Rank 1 of the first attempt meets its end; after that nobody does.
DOOMED = 'if [ "$RANK$TORCHELASTIC_RESTART_COUNT" = 10 ]; then export DORAKIT_FAILPOINT=step:7=kill9; fi; exec "$@"'


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **options)


def test_nproc(site, unbroken):
    """The bytes of any group of two; one log."""
    ended = run(*DORAKIT, "train", site.recipe, "--nproc", 2)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("finished 12 steps") == 1 and ended.stderr.count("report:") == 1
    assert digest(site.run) == digest(unbroken.run)


def test_nproc_gives_the_exit_code_of_the_failure(site):
    ended = run(*DORAKIT, "train", site.recipe, "--nproc", 2, env={**os.environ, "DORAKIT_FAILPOINT": "loss:3=nan"})
    assert ended.returncode == 5, ended.stderr
    assert ended.stderr.count("is not finite") == 1 and "Traceback" not in ended.stderr
    assert "elastic" not in ended.stderr  # torchrun has nothing to add


def test_a_recipe_is_refused_before_anything_is_started(site):
    ended = run(*DORAKIT, "train", site.recipe, "--nproc", 2, "--set", "training.batchsize=3")
    assert ended.returncode == 2 and ended.stderr.count("error") == 1


def test_it_never_starts_groups_within_a_group(site):
    again = " ".join(DORAKIT) + f" train {site.recipe} --nproc 2"  # torchrun takes --nproc for one of its own
    ended = run(*TORCHRUN, "--no-python", "bash", "-c", again)
    assert ended.stderr.count("leave --nproc out") == 1, ended.stderr


def test_a_killed_rank_is_restarted(site, unbroken):
    """torchrun starts the group again; it goes on with its own run, and ends with the bytes of the unbroken one."""
    began = time.monotonic()
    command = [*DORAKIT, "train", site.recipe]
    ended = run(*TORCHRUN, "--max-restarts", 2, "--no-python", "bash", "-c", DOOMED, "-", *command)
    assert ended.returncode == 0, ended.stderr
    assert "going on after step 6 (bitwise)" in ended.stderr
    assert digest(site.run) == digest(unbroken.run) and not (site.place / "run-2").exists()
    assert time.monotonic() - began < 60


def test_a_restart_takes_no_other_run(site):
    """An unfinished run that this launch did not begin is refused at each attempt."""
    ended = run(*DORAKIT, "train", site.recipe, env={**os.environ, "DORAKIT_FAILPOINT": "step:3=kill9"})
    assert ended.returncode == -signal.SIGKILL
    ended = run(*TORCHRUN, "--max-restarts", 1, "-m", "dorakit", "train", site.recipe)
    assert ended.returncode != 0 and ended.stderr.count("holds an unfinished run") == 2, ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher(site, unbroken, number):
    """As Ctrl-C in a terminal, which reaches the whole process group, or a cluster's SIGTERM to the one process it knows."""
    site.recipe.write_text(site.recipe.read_text().replace("max_steps: 12", "max_steps: 3000"))
    command = [*DORAKIT, "train", site.recipe, "--nproc", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = site.run / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 3):
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert said.count("a checkpoint is saved") == 1 and "Traceback" not in said, said


def test_a_failure_is_one_json_object_of_the_whole_group(site):
    """Planted bug caught: an object of every rank, and one more of the launcher."""
    environment = {**os.environ, "DORAKIT_FAILPOINT": "loss:3=nan"}
    ended = run(*DORAKIT, "train", site.recipe, "--nproc", 2, "--json", env=environment)
    error = json.loads(ended.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("gate", 5) and error["gates"][0]["metric"] == "loss"
    ended = run(*DORAKIT, "train", site.recipe, "--nproc", 2, "--json", "--set", "training.batchsize=3")
    assert json.loads(ended.stdout)["error"]["kind"] == "recipe"
