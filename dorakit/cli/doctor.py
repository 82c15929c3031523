"""`dorakit doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dorakit.cli import options
from dorakit.cli.failures import failure
from dorakit.errors import MachineError
from dorakit.terminal import json_line, printable


def doctor(
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what warns or fails.")] = False,
) -> None:
    """Look at this machine: versions, CUDA, NF4 kernels, memory, disk, caches, offline flags, extras.

    Each line says ok, warn or fail, and what mends it. Exit code 3 if anything failed. Changes nothing, uses no network.

    Examples:
        dorakit doctor

        dorakit doctor --json > doctor.json
    """
    from dorakit.doctor.examination import examine

    findings = examine()
    failed = [finding.about for finding in findings if finding.level == "fail"]
    if as_json:
        content = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        error = failure(MachineError(f"checks failed: {', '.join(failed)}")) if failed else {}
        typer.echo(json_line({**content, **error}))
    else:
        width = max(len(finding.about) for finding in findings)
        for finding in findings:
            if quiet and finding.level == "ok":
                continue
            mend = f"  ->  {finding.mend}" if finding.mend else ""
            typer.echo(printable(f"{finding.level:4}  {finding.about:{width}}  {finding.says}{mend}"))
    if failed:
        raise typer.Exit(MachineError.exit_code)
