"""Runs to be broken, and the table of what was seen."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from dying_runs import Site, make_site, moved_copy


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory) -> Site:
    """A run that nothing happened to."""
    site = make_site(tmp_path_factory.mktemp("unbroken"))
    ended = site.train()
    assert ended.code == 0, ended.err
    return site


@pytest.fixture(scope="session")
def _half_done(tmp_path_factory) -> Path:
    site = make_site(tmp_path_factory.mktemp("half"))
    ended = site.train(failpoint="step:7=kill9")
    assert ended.code == -signal.SIGKILL, ended.err
    return site.place


@pytest.fixture
def half_done(_half_done, tmp_path) -> Site:
    """A run of its own, killed after step 7, with checkpoints of steps 4 and 6. (It was moved here, too.)"""
    return moved_copy(_half_done, tmp_path / "half")


@pytest.fixture
def matrix(record_property):
    """Note a row of the fault matrix: its number, what was injected, what must happen, what was seen."""
    return lambda *row: record_property("fault", tuple(map(str, row)))


def pytest_collection_modifyitems(items):
    """All of this directory is `scripts/test.sh --faults`, and not of the fast suite."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


def pytest_terminal_summary(terminalreporter):
    # From the reports, because the tests may have run in other processes.
    reports = [report for report in terminalreporter.stats.get("passed", []) if report.when == "call"]
    matrix = [row for report in reports for name, row in report.user_properties if name == "fault"]
    if len(matrix) < 10:
        return
    terminalreporter.section("fault matrix")
    for number, injected, expected, seen in sorted(matrix, key=lambda row: (int(row[0]), row[1])):
        terminalreporter.write_line(f"{number:>3} | {injected} | {expected} | {seen}")
