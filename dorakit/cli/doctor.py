"""`dorakit doctor`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from dorakit.errors import MachineError
from dorakit.terminal import json_line, printable


def doctor(
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout, to paste into a report of a bug."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print only what warns or fails."),
) -> None:
    """Look at this machine: versions, CUDA, NF4 kernels, memory, disk, caches, offline flags, extras.

    Each line says ok, warn or fail, and what mends it. Exit code 3 if anything failed. Changes nothing, uses no network.
    """
    from dorakit.doctor.examination import examine

    findings = examine()
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        typer.echo(json_line({"ok": not failed, "findings": [asdict(finding) for finding in findings]}))
    else:
        width = max(len(finding.about) for finding in findings)
        for finding in findings:
            if quiet and finding.level == "ok":
                continue
            mend = f"  ->  {finding.mend}" if finding.mend else ""
            typer.echo(printable(f"{finding.level:4}  {finding.about:{width}}  {finding.says}{mend}"))
    if failed:
        raise typer.Exit(MachineError.exit_code)
