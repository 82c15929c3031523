"""The page about one run or several: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dorakit.errors import UsageError, shown
from dorakit.files import write_whole
from dorakit.report import tables
from dorakit.report.content import Content, as_list, read_content
from dorakit.report.curves import change_charts, changes_told, curves, run_colour
from dorakit.report.scores import answers, scores
from dorakit.report.templates import fill
from dorakit.run import Run
from dorakit.terminal import typed

MAX_BYTES = 1_000_000
MAX_RUNS = 16


@dataclass(frozen=True)
class _Room:
    """How much of everything a page shows: points a series, characters a text, rows a list."""

    points: int
    text: int
    rows: int


# The first that keeps the page small enough is taken.
_ROOMS = (_Room(1000, 2000, 100), _Room(500, 1000, 50), _Room(250, 400, 25), _Room(100, 150, 12), _Room(40, 60, 6))


def write_page(runs: Sequence[Run], output: Path | str | None = None) -> Path:
    """Write the page about runs.

    Args:
        runs: One is told in full; several are drawn in the same charts, set side by side, and told below.
        output: Where to; RUN/report.html for one run.

    Returns:
        The file written, smaller than a megabyte.

    Raises:
        UsageError: Several runs and no output, too many of them, or an output that is no place for a page.
    """
    if output is None and len(runs) != 1:
        raise UsageError(f"{len(runs)} runs have no place of their own: say where the page goes with --output FILE")
    if len(runs) > MAX_RUNS:
        raise UsageError(f"{len(runs)} runs do not fit in one page: at most {MAX_RUNS}")
    path = runs[0].report if output is None else _checked(Path(os.path.expanduser(output)))
    page = render([read_content(run) for run in runs])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    return path


def write_report(run: Run) -> Path | None:
    """Write RUN/report.html beside a result that is there already; what goes wrong with it is one line on stderr.

    Returns:
        The page; None where it could not be written.
    """
    try:
        return write_page([run])
    except Exception as error:  # a finished training must not look failed for the sake of its page
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(
            shown(f"no report: {reason}; `dorakit report {typed(run.path)}` tries again"), file=sys.stderr, flush=True
        )
        return None


def render(contents: Sequence[Content]) -> str:
    """The page as text, with as much of everything as a megabyte has room for.

    Raises:
        UsageError: It is too large all the same.
    """
    names = _names(contents)
    for room in _ROOMS:
        page = fill(
            "dorakit.report",
            text=room.text,
            title=names[0] if len(contents) == 1 else f"{len(contents)} runs",
            runs=[
                _told(content, name, index, room)
                for index, (content, name) in enumerate(zip(contents, names, strict=True))
            ],
            curves=curves(contents, names, limit=room.points),
            comparison=tables.comparison(contents) if len(contents) > 1 else [],
            differences=tables.differences(contents)[: room.rows] if len(contents) > 1 else [],
        )
        if len(page.encode()) < MAX_BYTES:
            return page
    raise UsageError(f"the page about {', '.join(names)} is too large: name fewer runs")


def _checked(output: Path) -> Path:
    if output.suffix not in (".html", ".htm"):
        raise UsageError(f"--output {output}: name a .html file")
    if output.is_dir():
        raise UsageError(f"--output {output}: that is a directory; name a file in it: {output / 'report.html'}")
    return output


def _names(contents: Sequence[Content]) -> list[str]:
    """The directory of each run, with as much of its path as tells it from the others."""
    paths = [content.path.resolve() for content in contents]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _told(content: Content, name: str, index: int, room: _Room) -> dict[str, Any]:
    """What the template shows of one run."""
    columns, numbers = tables.numbers_table(content, min(room.rows, 25))
    given = [(key, value, source) for key, value, source in content.recipe if source != "default"]
    return {
        "name": name,
        "number": index + 1,
        "colour": run_colour(index),
        "path": typed(content.path),
        "headline": tables.headline(content),
        "state": tables.state(content),
        "result": tables.result_line(content),
        "tiles": tables.tiles(content),
        "is_twin": bool(content.facts.get("is_twin")),
        "rows": content.answered[: room.rows],
        "in_both": tables.in_both(content),
        "samples": content.samples,
        "prompts": list(content.samples[-1].answers)[: room.rows] if content.samples else [],
        "scores": scores(content)[: room.rows],
        "answers": answers(content)[: room.rows],
        "changes": change_charts(content, prefix=f"change-{index}", limit=room.points // 3),
        "changes_told": changes_told(content),
        "given": given[: room.rows * 2],
        "recipe": content.recipe[: room.rows * 2],
        "environment": tables.environment_rows(content)[: room.rows],
        "merge": tables.merge_rows(content),
        "merge_notes": list(map(str, as_list(content.merge.get("notes"))))[: room.rows],
        "quantize": tables.quantize_rows(content)[: room.rows],
        "notes": list(map(str, as_list(content.facts.get("notes"))))[: room.rows],
        "unreadable": content.unreadable[: room.rows],
        "nonfinite": tables.nonfinite_rows(content)[: room.rows],
        "num_nonfinite": content.num_nonfinite,
        "columns": columns,
        "numbers": numbers,
    }
