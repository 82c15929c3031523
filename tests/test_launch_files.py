"""docker/slurm.sbatch and docker/trainjob.yaml: the schema of the one, and what both do when they are run.

A script stands in for dorakit here; tests/faults/test_launched_runs.py has the real one.
"""

import copy
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api import models

ROOT = Path(__file__).parents[1]
SBATCH = ROOT / "docker/slurm.sbatch"
TRAINJOB = ROOT / "docker/trainjob.yaml"
KINDS = {
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
}
# Says what it was asked, and leaves as dorakit does: at SIGTERM with 143, else with $STAND_IN_CODE after $STAND_IN_S.
STAND_IN = """\
#!/bin/bash
trap 'exit 143' TERM
echo "$@" >>"$CALLS"
sleep "${STAND_IN_S:-0}" & wait $!
exit "${STAND_IN_CODE:-0}"
"""
SCONTROL = """\
#!/bin/bash
echo "scontrol $@" >>"$CALLS"
"""


def refused(document: dict) -> bool:
    """Whether the API's own models find a value of another type, or leave out a key that they do not know."""
    try:
        return KINDS[document["kind"]].from_dict(document).to_dict() != document
    except ValueError:
        return True


def documents() -> list[dict]:
    return list(yaml.safe_load_all(TRAINJOB.read_text()))


def test_the_train_job_fits_the_schema():
    assert [document["kind"] for document in documents()] == ["PersistentVolumeClaim", "TrainJob"]
    assert not any(refused(document) for document in documents())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer.numNode", 1),
        ("trainer.numNodes", "1"),
        ("trainer.command", "dorakit"),
        ("podTemplateOverrides", []),
        ("runtimePatches.0.trainingRuntimeSpec.template.spec.replicatedJobs.0.template.spec.template.spec.volume", []),
        ("runtimePatches.0.manager", None),
    ],
)
def test_what_does_not_fit_is_found(path, value):
    """Dies if the schema lets a misspelt key or a value of another type pass, at any depth."""
    job = copy.deepcopy(documents()[1])
    *way, last = path.split(".")
    place = job["spec"]
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    assert refused(job)


def test_runs_and_downloads_are_on_the_volume():
    """Dies if a place that must outlive the Pod is outside the mount, or the mount has no claim behind it."""
    claim, job = documents()
    trainer, patch = job["spec"]["trainer"], job["spec"]["runtimePatches"][0]
    pod = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    mount = pod["containers"][0]["volumeMounts"][0]
    assert trainer["numNodes"] == 1 and trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "1"
    places = {entry["name"]: entry["value"] for entry in trainer["env"]}
    for name in ("RUN", "HF_HOME", "DORAKIT_CACHE"):
        assert places[name].startswith(mount["mountPath"] + "/"), name
    volume = next(volume for volume in pod["volumes"] if volume["name"] == mount["name"])
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    user = re.search(r"^USER (\d+):(\d+)", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert pod["securityContext"]["fsGroup"] == int(user[2])
    recipe = Path(places["RECIPE"]).relative_to("/opt/dorakit")  # where the image has them
    assert (ROOT / recipe).is_file()


@pytest.fixture
def machine(tmp_path):
    """Environment of a job on a machine where a stand-in takes dorakit's place; `CALLS` is what was called."""
    for name, text in (("dorakit", STAND_IN), ("scontrol", SCONTROL)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {"PATH": path, "CALLS": str(tmp_path / "calls"), "SHARED": str(tmp_path), "SLURM_JOB_ID": "17"}


def calls(machine) -> list[str]:
    file = Path(machine["CALLS"])
    return file.read_text().splitlines() if file.exists() else []


def make_run(place: Path, state: str) -> None:
    place.mkdir(parents=True)
    (place / "run.json").write_text(f'{{\n  "schema": 1,\n  "state": "{state}"\n}}\n')


def as_slurm(machine, *recipes: str, **more: str):
    return subprocess.run(["bash", SBATCH, *recipes], env={**machine, **more}, capture_output=True, text=True)


def as_pod(machine, run: Path):
    trainer = documents()[1]["spec"]["trainer"]
    environment = {**machine, "RECIPE": "a/my.yaml", "RUN": str(run)}
    return subprocess.run([*trainer["command"], *trainer["args"]], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("launch", ["slurm", "pod"])
@pytest.mark.parametrize(
    ("state", "asked"),
    [
        (None, "train a/my.yaml --set output_dir={run}"),
        ("training", "train --resume {run}"),
        ("failed", "train --resume {run}"),
        ("finished", None),
    ],
)
def test_the_same_command_begins_and_goes_on(machine, tmp_path, launch, state, asked):
    """Dies if a restarted job begins a second run, or a finished one is trained again or taken for a failure."""
    run = tmp_path / "runs" / "my"
    if state is not None:
        make_run(run, state)
    ended = as_slurm(machine, "a/my.yaml") if launch == "slurm" else as_pod(machine, run)
    assert ended.returncode == 0, ended.stderr
    assert calls(machine) == ([asked.format(run=run)] if asked else [])


@pytest.mark.parametrize("launch", ["slurm", "pod"])
def test_the_exit_code_is_dorakits(machine, tmp_path, launch):
    """Dies if a failure looks like success, or is queued again: it would fail again."""
    machine["STAND_IN_CODE"] = "5"
    ended = as_slurm(machine, "a/my.yaml") if launch == "slurm" else as_pod(machine, tmp_path / "run")
    assert ended.returncode == 5
    assert not any(call.startswith("scontrol") for call in calls(machine))


def test_an_array_takes_a_recipe_each(machine, tmp_path):
    """Dies if two tasks of an array train the same recipe, or one too many trains any."""
    recipes = ["a/one.yaml", "b/two.yaml"]
    for task in ("0", "1"):
        assert as_slurm(machine, *recipes, SLURM_ARRAY_TASK_ID=task).returncode == 0
    assert calls(machine) == [
        f"train {recipe} --set output_dir={tmp_path}/runs/{Path(recipe).stem}" for recipe in recipes
    ]
    for too_few in ([], recipes):
        ended = as_slurm(machine, *too_few, **({"SLURM_ARRAY_TASK_ID": "2"} if too_few else {}))
        assert ended.returncode == 2 and "RECIPE" in ended.stderr
    assert len(calls(machine)) == 2


def ended_after(sent: int, machine) -> int:
    """Exit code of a job whose script, and nothing else, gets a signal while dorakit trains."""
    job = subprocess.Popen(["bash", SBATCH, "a/my.yaml"], env={**machine, "STAND_IN_S": "60"})
    deadline = time.monotonic() + 30
    while not calls(machine) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)  # the script sets its traps right after the start
    job.send_signal(sent)
    return job.wait(timeout=30)


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_time_is_up_and_cancelled(machine, sent, requeued):
    """Dies if a cancelled job comes back, one whose time was up does not, or dorakit is not told."""
    assert ended_after(sent, machine) == 143
    assert calls(machine)[1:] == (["scontrol requeue 17"] if requeued else [])


def test_time_is_up_at_the_last_step(machine):
    """Dies if a run that ended well after the signal is queued again."""
    stand_in = Path(machine["PATH"].split(":")[0]) / "dorakit"
    stand_in.write_text(STAND_IN.replace("exit 143", "exit 0"))
    assert ended_after(signal.SIGUSR1, machine) == 0
    assert len(calls(machine)) == 1


def test_directives_stand_before_the_first_command():
    """Slurm reads no further. Dies if a directive slips below the first command, or the signal is not the script's own."""
    lines = SBATCH.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert lines[0] == "#!/bin/bash" and directives and max(directives) < first
    assert any(re.fullmatch(r"#SBATCH --signal=B:USR1@\d+", line) for line in lines)
    assert {"#SBATCH --requeue", "#SBATCH --ntasks=1", "#SBATCH --gpus=1"} <= set(lines)
