"""Versions: dorakit's own with its commit, and whether the installed libraries are ones that it can work with."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from dorakit import __version__
from dorakit.errors import MachineError, listed

OWN = "dorakit"
_ROOT = Path(__file__).parent.parent
_SHORT = 12


def own_version() -> str:
    """The version, with the commit where dorakit runs from a git checkout."""
    commit = _commit(_ROOT)
    return __version__ if commit is None else f"{__version__} (commit {commit[:_SHORT]})"


def requirements(package: str, extra: str = "") -> list[Requirement]:
    """The requirements of an installed package on this machine; with `extra`, those that only the extra adds."""
    found = [Requirement(text) for text in metadata.requires(package) or []]
    plain = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [r for r in found if r not in plain and r.marker is not None and r.marker.evaluate({"extra": extra})]


def installed(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def is_met(requirement: Requirement) -> bool:
    """Whether a version is installed that the requirement admits."""
    version = installed(requirement.name)
    # A vendor's or a development build, 2.13.0a0+nv for one, is what somebody installed on purpose: its release counts.
    return version is not None and requirement.specifier.contains(Version(version).base_version)


def clash(requirement: Requirement, owner: str) -> str:
    """The range that `owner` needs, and the version that is there."""
    return f"{owner} needs {requirement.specifier or 'it'}, {installed(requirement.name) or 'nothing'} is installed"


def refuse_unfit_versions() -> None:
    """Look at dorakit's own requirements, without importing any of them.

    Raises:
        MachineError: A library is missing or has a version that pyproject.toml excludes: some of those compute wrongly.
    """
    if installed(OWN) is None:  # runs from its sources: no installation says what it needs
        return
    if wrong := [requirement for requirement in requirements(OWN) if not is_met(requirement)]:
        lines = [f"{requirement.name}: {clash(requirement, OWN)}" for requirement in wrong]
        wanted = " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement in wrong)
        raise MachineError(f"{listed(lines)}\n  pip install {wanted}")


def _commit(root: Path) -> str | None:
    """The commit that is checked out, read from git's files; None without a checkout, or where refs are kept otherwise."""
    try:
        git = root / ".git"
        if git.is_file():  # of a worktree or submodule: gitdir: PATH
            git = root / git.read_text(encoding="utf-8").partition(":")[2].strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        ref = head.partition(":")[2].strip()
        common = git / "commondir"
        shared = git / common.read_text(encoding="utf-8").strip() if common.is_file() else git
        if (shared / ref).is_file():
            return (shared / ref).read_text(encoding="utf-8").strip()
        for line in (shared / "packed-refs").read_text(encoding="utf-8").splitlines():
            commit, _, name = line.partition(" ")
            if name == ref:
                return commit
    except (OSError, ValueError):
        pass
    return None
