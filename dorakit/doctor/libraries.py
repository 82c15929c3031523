"""Python and the installed packages: whether what is there goes together, as the packages themselves state it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dorakit.doctor.finding import Finding
from dorakit.machine import machine_facts
from dorakit.versions import OWN, clash, installed, is_met, own_version, requirements

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
    if installed(OWN) is None:
        yield Finding("warn", "versions", "dorakit runs from its sources and is not installed", "pip install -e .")
        return
    wanted = requirements(OWN)
    wrong = [r for r in wanted if not is_met(r)]
    for requirement in wrong:
        yield Finding("fail", requirement.name, clash(requirement, OWN), f"pip install '{requirement}'")
    if wrong:
        return
    checked, clashes = _below(wanted)
    yield from clashes
    if not clashes:
        named = ", ".join(f"{r.name} {metadata.version(r.name)}" for r in wanted[:2])
        yield Finding("ok", "versions", f"dorakit {own_version()}, {named} and {checked - 2} more go together")


def check_libraries() -> Iterator[Finding]:
    """The versions of all libraries that take part, or that read what dorakit writes."""
    versions = machine_facts()["versions"]
    yield Finding("ok", "libraries", ", ".join(f"{name} {version}" for name, version in versions.items()))


def check_extras() -> Iterator[Finding]:
    """The optional packages. That one is absent is no fault."""
    try:
        extras = metadata.metadata(OWN).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        if extra == _FOR_DEVELOPERS:
            continue
        wanted = requirements(OWN, extra)
        mend = f"pip install 'dorakit[{extra}]'"
        if absent := [r.name for r in wanted if installed(r.name) is None]:
            yield Finding("ok", f"extra {extra}", f"{', '.join(absent)} not installed: optional", mend)
        elif wrong := [r for r in wanted if not is_met(r)]:
            yield Finding("warn", f"extra {extra}", clash(wrong[0], OWN), mend)
        else:
            versions = ", ".join(f"{r.name} {installed(r.name)}" for r in wanted)
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
        for requirement in requirements(owner):
            if not is_met(requirement):
                clashes.append(
                    Finding("warn", requirement.name, clash(requirement, owner), f"pip install '{requirement}'")
                )
            if installed(requirement.name) is not None:
                left.append(requirement.name)
    return len(seen), clashes
