"""Python and the installed packages: whether what is there goes together, as the packages themselves state it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dorakit.doctor.finding import Finding

_OWN = "dorakit"
_FOR_DEVELOPERS = "dev"


def check_python() -> Iterator[Finding]:
    """The interpreter and the system."""
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        yield Finding("warn", "python", f"{system}: only Linux is tested")
    else:
        yield Finding("ok", "python", system)


def check_versions() -> Iterator[Finding]:
    """The requirements of dorakit, and those of everything that they bring."""
    try:
        version = metadata.version(_OWN)
    except metadata.PackageNotFoundError:
        yield Finding("warn", "versions", "dorakit runs from its sources and is not installed", "pip install -e .")
        return
    wanted = _requirements(_OWN)
    wrong = [r for r in wanted if not _is_met(r)]
    for requirement in wrong:
        yield Finding("fail", requirement.name, _clash(requirement, _OWN), f"pip install '{requirement}'")
    if wrong:
        return
    checked, clashes = _below(wanted)
    yield from clashes
    if not clashes:
        named = ", ".join(f"{r.name} {metadata.version(r.name)}" for r in wanted[:2])
        yield Finding("ok", "versions", f"dorakit {version}, {named} and {checked - 2} more go together")


def check_extras() -> Iterator[Finding]:
    """The optional packages. That one is absent is no fault."""
    try:
        extras = metadata.metadata(_OWN).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        if extra == _FOR_DEVELOPERS:
            continue
        wanted = _requirements(_OWN, extra)
        mend = f"pip install 'dorakit[{extra}]'"
        if absent := [r.name for r in wanted if _installed(r.name) is None]:
            yield Finding("ok", f"extra {extra}", f"{', '.join(absent)} not installed: optional", mend)
        elif wrong := [r for r in wanted if not _is_met(r)]:
            yield Finding("warn", f"extra {extra}", _clash(wrong[0], _OWN), mend)
        else:
            versions = ", ".join(f"{r.name} {_installed(r.name)}" for r in wanted)
            yield Finding("ok", f"extra {extra}", versions)


def _below(wanted: list[Requirement]) -> tuple[int, list[Finding]]:
    """Follow the requirements downwards: the number of packages, and the ones that want what is not there."""
    clashes = []
    seen: set[str] = set()
    left = [requirement.name for requirement in wanted]
    while left:
        owner = canonicalize_name(left.pop())
        if owner in seen:
            continue
        seen.add(owner)
        for requirement in _requirements(owner):
            if not _is_met(requirement):
                clashes.append(
                    Finding("warn", requirement.name, _clash(requirement, owner), f"pip install '{requirement}'")
                )
            if _installed(requirement.name) is not None:
                left.append(requirement.name)
    return len(seen), clashes


def _requirements(package: str, extra: str = "") -> list[Requirement]:
    """What a package needs on this machine; with `extra`, what only that brings."""
    found = [Requirement(text) for text in metadata.requires(package) or []]
    plain = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [r for r in found if r not in plain and r.marker is not None and r.marker.evaluate({"extra": extra})]


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_met(requirement: Requirement) -> bool:
    version = _installed(requirement.name)
    # A development build of the right version is what somebody installed on purpose.
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _clash(requirement: Requirement, owner: str) -> str:
    return f"{owner} needs {requirement.specifier or 'it'}, {_installed(requirement.name) or 'nothing'} is installed"
