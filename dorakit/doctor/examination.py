"""Every check, one after the other. A library that breaks while it is looked at is a finding too, never the end of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dorakit.doctor import hardware, libraries, places
from dorakit.doctor.finding import Finding

_CHECKS: dict[str, Callable[[], Iterable[Finding]]] = {
    "python": libraries.check_python,
    "versions": libraries.check_versions,
    "libraries": libraries.check_libraries,
    "extras": libraries.check_extras,
    "torch": hardware.check_torch,
    "bitsandbytes": hardware.check_bitsandbytes,
    "memory": hardware.check_memory,
    "disk": places.check_disk,
    "caches": places.check_caches,
    "offline": places.check_offline,
}


def examine() -> list[Finding]:
    """Look at this machine; nothing is changed and no network is used."""
    findings: list[Finding] = []
    for about, check in _CHECKS.items():
        try:
            findings += check()
        except Exception as error:  # a broken installation raises anything, from anywhere
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            findings.append(
                Finding(
                    "fail", about, f"{type(error).__name__}: {reason}", "`dorakit --debug doctor` shows where it broke"
                )
            )
    return findings
