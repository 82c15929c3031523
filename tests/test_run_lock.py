"""One writer per run directory."""

import os
import subprocess
import sys

import pytest
from tiny_runs import tiny_recipe

from dorakit import Run
from dorakit.errors import RunError

HOLD = """
import sys
from pathlib import Path
from dorakit import Run
with Run(Path(sys.argv[1])).writing():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_refused_with_the_first_ones_name(tmp_path, holder):
    """Planted bugs caught: the lock not taken; the refused one empties the file that names the holder."""
    for _ in range(2):
        with (
            pytest.raises(RunError, match=f"being written by process {holder.pid} on ") as caught,
            Run(tmp_path).writing(),
        ):
            pytest.fail("two writers")
        assert caught.value.exit_code == 3


def test_who_would_train_it_again_hears_of_the_writer(tmp_path):
    """Planted bug caught: the advice to remove a run while it is written."""
    recipe = tiny_recipe(tmp_path, "lora")
    run = Run.create(recipe)
    (run.path / "run.lock").write_text("process 4194303 on somewhere")
    with pytest.raises(RunError, match="holds an unfinished run"):
        Run.place(recipe)
    with run.writing() as vanished:
        assert vanished == "process 4194303 on somewhere"  # looking took nothing away
        with pytest.raises(RunError, match=rf"{run.path} is being written by process {os.getpid()} on ") as caught:
            Run.place(recipe)
        assert "rm -r" not in str(caught.value)


def test_a_killed_writer_leaves_no_lock(tmp_path, holder):
    """Planted bug caught: a file that is there taken for a lock that is held."""
    holder.kill()
    holder.wait()
    with Run(tmp_path).writing():
        assert str(os.getpid()) in (tmp_path / "run.lock").read_text()


def test_half_a_name_is_not_kept(tmp_path):
    """Planted bug caught: a disk that takes ten characters leaves the number of another process in the lock."""
    (tmp_path / "run.lock").write_text("process 4194303 on somewhere")
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom dorakit import Run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "with Run(Path(sys.argv[1])).writing() as vanished:\n"
        "    sys.stdout.write(vanished + '|' + (Path(sys.argv[1]) / 'run.lock').read_text())\n"
    )
    left = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert (left.returncode, left.stdout) == (0, "process 4194303 on somewhere|"), left.stderr
