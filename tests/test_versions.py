"""Versions that pyproject.toml excludes are refused before torch is imported; --version and doctor name what runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tiny_runs import tiny_recipe

from dorakit import Run, __version__, train, versions
from dorakit.errors import MachineError

ROOT = Path(__file__).parent.parent
# Train, then say on stderr whether torch was imported.
TRAIN = """
import sys
from dorakit.cli.app import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def distribution(place: Path, name: str, version: str) -> Path:
    """A directory that, on sys.path, says that a package is installed in this version."""
    facts = place / f"{name}-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    return place


@pytest.mark.parametrize("version", ["5.17.0", "5.22.3", "6.0.0"])
def test_train_refuses_a_version_before_torch_is_imported(tmp_path, version):
    """Planted bugs caught: a check after the imports, one of lower bounds only."""
    tiny_recipe(tmp_path, "qlora")
    place = distribution(tmp_path / "site", "transformers", version)
    paths = os.pathsep.join(map(str, (place, ROOT)))
    ended = subprocess.run(
        [sys.executable, "-c", TRAIN, "train", tmp_path / "qlora.yaml", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    error = json.loads(ended.stdout)["error"]
    assert (ended.returncode, error["kind"]) == (3, "machine")
    assert error["message"] == f"transformers: dorakit needs <6,>=5.23.0, {version} is installed"
    assert error["hint"] == "pip install 'transformers<6,>=5.23.0'"
    assert ended.stderr.splitlines()[-1] == "False"
    assert not list(tmp_path.glob("run-*"))


def test_train_of_the_api_refuses_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(distribution(tmp_path / "site", "safetensors", "0.1"))
    with pytest.raises(MachineError, match=r"safetensors: dorakit needs .*\n  pip install 'safetensors>="):
        train(tiny_recipe(tmp_path, "lora"), quiet=True)


def test_a_missing_library_is_named_with_the_others(monkeypatch):
    right = versions.installed
    absent = {"gguf": None, "rich": "1.0"}
    monkeypatch.setattr(versions, "installed", lambda name: absent.get(name, right(name)))
    with pytest.raises(MachineError) as caught:
        versions.refuse_unfit_versions()
    lines = str(caught.value).splitlines()
    assert "1.0 is installed" in lines[0] + lines[1] and "nothing is installed" in lines[0] + lines[1]
    assert "'rich>=" in lines[2] and "'gguf>=" in lines[2] and len(lines) == 3


def git(*arguments, at):
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    names = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    return subprocess.run(
        ["git", *names, *arguments], cwd=at, check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


def test_version_names_the_commit_of_a_checkout(tmp_path):
    """A branch, packed refs, a detached HEAD, a worktree. Planted bug caught: refs looked for in the worktree's own files."""
    place = tmp_path / "checkout"
    place.mkdir()
    shutil.copytree(ROOT / "dorakit", place / "dorakit", ignore=shutil.ignore_patterns("__pycache__"))

    def version(at):
        command = [sys.executable, "-m", "dorakit", "--version"]
        environment = {**os.environ, "PYTHONPATH": str(at)}
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        ).stdout.strip()

    assert version(place) == f"dorakit {__version__}"
    git("init", "-q", at=place)
    assert version(place) == f"dorakit {__version__}"  # no commit yet
    git("add", ".", at=place)
    git("commit", "-q", "-m", "a", at=place)
    commit = git("rev-parse", "HEAD", at=place)
    named = f"dorakit {__version__} (commit {commit[:12]})"
    assert version(place) == named
    git("pack-refs", "--all", at=place)
    assert not (place / ".git/refs/heads/main").exists() and version(place) == named
    git("worktree", "add", "-q", "-b", "other", tmp_path / "tree", at=place)
    assert version(tmp_path / "tree") == named
    git("checkout", "-q", "--detach", at=place)
    assert version(place) == named


def test_a_checkout_around_an_installation_is_not_its_own(tmp_path):
    """Planted bug caught: .git looked for in all directories above, so that a project's commit is called dorakit's."""
    git("init", "-q", at=tmp_path)
    site = tmp_path / "venv" / "site-packages"
    site.mkdir(parents=True)
    git("commit", "-q", "--allow-empty", "-m", "a", at=tmp_path)
    assert versions._commit(site) is None and versions._commit(tmp_path) == git("rev-parse", "HEAD", at=tmp_path)


def test_doctor_and_the_run_list_every_library_in_play(tmp_path, monkeypatch, trained):
    """Planted bug caught: libraries that read the results (peft, vllm) left out."""
    from dorakit.doctor.libraries import check_libraries

    for name in ("trl", "vllm"):
        monkeypatch.syspath_prepend(distribution(tmp_path / name, name, "9.9.9"))
    [found] = check_libraries()
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        assert f"{name} {versions.installed(name)}" in found.says
    assert "trl 9.9.9" in found.says and "vllm 9.9.9" in found.says
    kept = Run.open(trained("lora").path).read("environment.json")["versions"]
    assert kept["peft"] == versions.installed("peft")


@pytest.mark.parametrize(("version", "met"), [("2.13.0a0+nv26.1", True), ("2.14.0.dev3", True), ("2.12.1+cpu", False)])
def test_a_vendors_build_counts_as_its_release(tmp_path, monkeypatch, version, met):
    """Planted bug caught: the torch of a vendor's container, 2.13.0a0, refused as older than 2.13.0."""
    monkeypatch.syspath_prepend(str(distribution(tmp_path, "torch", version)))
    assert versions.is_met(Requirement("torch>=2.13.0")) is met
