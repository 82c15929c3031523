"""Plants each bug of tests/mutants.toml in a copy of the tree and runs the tests that must notice it.

A bug counts as killed only if every test named for it fails, in its own words: a copy that cannot even be imported says
nothing about the tests. The named tests run once on the tree as it is, so that none is red for another reason.

Each run is a process of its own, forked from one that has imported the large libraries and nothing of dorakit.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants.toml"
SECONDS = 300  # for the tests of one bug; the slowest take a tenth of it
# Errors of a copy that is broken rather than wrong.
_BROKEN = ("SyntaxError", "IndentationError", "NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError")
# What takes most of the time of a test that takes little.
_LIBRARIES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.generation",
    "peft",
    "bitsandbytes",
    "datasets",
    "pydantic",
    "pytest",
)
_LEFT_OUT = {"runs", "data", "build", "dist", "bench-results", "bench-8b", "__pycache__"}


@dataclass(frozen=True)
class Mutant:
    """One bug: `old` stands once in `file` and becomes `new`; each of `tests` must then fail."""

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What pytest made of some tests.

    `code` is its exit code, negative where it was stopped. `said` has an entry for each case of each test: what the failure
    said, None where it passed.
    """

    code: int
    said: dict[str, list[str | None]]
    output: str
    seconds: float


def read_list(path: Path = LIST) -> tuple[dict[str, str], list[Mutant]]:
    """The promises, and the bugs planted against them."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    mutants = [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in content["mutant"]]
    return content["promises"], mutants


def problems_of(promises: dict[str, str], mutants: Iterable[Mutant], root: Path = ROOT) -> list[str]:
    """What is wrong with the list itself, without running anything."""
    problems, names = [], set()
    for mutant in mutants:
        if mutant.name in names:
            problems.append(f"{mutant.name}: there are two of this name")
        names.add(mutant.name)
        if mutant.promise not in promises:
            problems.append(f"{mutant.name}: no promise {mutant.promise!r}")
        text = (root / mutant.file).read_text(encoding="utf-8") if (root / mutant.file).is_file() else ""
        if (count := text.count(mutant.old)) != 1:
            problems.append(f"{mutant.name}: its text stands {count} times in {mutant.file}, expected once")
        elif mutant.file.endswith(".py"):
            problems += [f"{mutant.name}: {error}" for error in _syntax_errors(text.replace(mutant.old, mutant.new))]
        if mutant.old == mutant.new or not mutant.tests:
            problems.append(f"{mutant.name}: it changes nothing, or names no test")
        problems += [f"{mutant.name}: no test {test}" for test in mutant.tests if not _exists(test, root)]
    return problems


def _syntax_errors(text: str) -> list[SyntaxError]:
    try:
        ast.parse(text)
    except SyntaxError as error:
        return [error]
    return []


def _exists(test: str, root: Path) -> bool:
    path, _, name = test.partition("::")
    if not (root / path).is_file():
        return False
    nodes = ast.walk(ast.parse((root / path).read_text(encoding="utf-8")))
    return name.partition("[")[0] in [node.name for node in nodes if isinstance(node, ast.FunctionDef)]


def copy_of_the_tree(place: Path) -> Path:
    """A copy without history, environments, caches and results."""

    def left_out(directory: str, names: list[str]) -> list[str]:
        at_top = Path(directory) == ROOT
        return [n for n in names if n == "__pycache__" or (at_top and (n in _LEFT_OUT or n.startswith(".")))]

    shutil.copytree(ROOT, place, ignore=left_out)
    return place


def run(
    tasks: list[tuple[Mutant | None, list[str]]], trees: list[Path], scratch: Path
) -> Iterator[tuple[int, Outcome]]:
    """Run tests, with a bug planted or without one, as many at once as there are trees.

    Yields:
        The number of a task and its outcome, as they end.
    """
    for name in _LIBRARIES:
        importlib.import_module(name)
    waiting, free = list(enumerate(tasks)), list(trees)
    running: dict[int, tuple[int, Path, float, str]] = {}
    while waiting or running:
        while waiting and free:
            number, (mutant, tests) = waiting.pop(0)
            tree = free.pop()
            before = _plant(tree, mutant) if mutant else ""
            running[_fork(tree, tests, scratch)] = number, tree, time.monotonic(), before
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            for late, (_, _, began, _) in running.items():
                if time.monotonic() - began > SECONDS:
                    os.killpg(late, signal.SIGKILL)
            time.sleep(0.05)
            continue
        number, tree, began, before = running.pop(pid)
        mutant, tests = tasks[number]
        if mutant is not None:
            (tree / mutant.file).write_text(before, encoding="utf-8")
        free.append(tree)
        code = os.waitstatus_to_exitcode(status)
        yield number, _outcome(code, tree, tests, scratch, time.monotonic() - began)


def _plant(tree: Path, mutant: Mutant) -> str:
    """Put the bug in; returns the text as it was."""
    before = (tree / mutant.file).read_text(encoding="utf-8")
    (tree / mutant.file).write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
    return before


def _fork(tree: Path, tests: list[str], scratch: Path) -> int:
    """Start pytest in a copy of the tree; its process."""
    (scratch / f"{tree.name}.xml").unlink(missing_ok=True)
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    try:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(os.open(scratch / f"{tree.name}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        os.chdir(tree)
        os.environ |= {
            "PYTHONPATH": str(tree),
            # A planted text may have the length of the one before it and come within the same second.
            "PYTHONDONTWRITEBYTECODE": "1",
            "DORAKIT_TEST_CACHE": str(scratch / "cache"),
        }
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(tree))
        import pytest

        first = ["-x"] if len(tests) == 1 else []
        report = f"--junitxml={scratch / tree.name}.xml"
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", report, *first, *tests]))
        sys.stdout.flush()
        os._exit(code)
    finally:
        os._exit(9)


def _outcome(code: int, tree: Path, tests: list[str], scratch: Path, seconds: float) -> Outcome:
    report, output = scratch / f"{tree.name}.xml", scratch / f"{tree.name}.txt"
    cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    return Outcome(code, {test: _cases(test, cases) for test in tests}, text, seconds)


def _cases(test: str, cases: list[ET.Element]) -> list[str | None]:
    path, _, name = test.partition("::")
    module = path.removesuffix(".py").replace("/", ".")
    said: list[str | None] = []
    for case in cases:
        own = case.get("name", "")
        if case.get("classname") == module and (own == name or own.startswith(f"{name}[")):
            bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            said.append(None if bad is None else f"{bad.get('message') or bad.tag}".strip() or bad.tag)
    return said


def check_as_it_is(trees: list[Path], tests: list[str], scratch: Path) -> list[str]:
    """Run the tests on unchanged copies; what does not pass there."""
    size = -(-len(tests) // len(trees))
    shares: list[tuple[Mutant | None, list[str]]] = [
        (None, tests[start : start + size]) for start in range(0, len(tests), size)
    ]
    problems = []
    for _, outcome in run(shares, trees, scratch):
        bad = [test for test, said in outcome.said.items() if not said or any(said)]
        problems += [f"does not pass as it is: {test}" for test in bad]
        if outcome.code:
            problems.append(f"pytest ended with {outcome.code}\n{outcome.output[-3000:]}")
    return problems


def judge(outcome: Outcome) -> tuple[str, str]:
    """killed, survived or broken, and the words that tell."""
    if outcome.code not in (0, 1):
        return "broken", _last_line(outcome.output)
    words = []
    for said in outcome.said.values():
        failed = [line for line in said if line is not None]
        if not failed:
            return "survived", ""
        words += [line.splitlines()[0] for line in failed]
    return "broken" if all(line.startswith(_BROKEN) for line in words) else "killed", words[0]


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def _chosen(mutants: list[Mutant], *, only: list[str] | None, quick: bool) -> list[Mutant]:
    if only:
        known = {mutant.name: mutant for mutant in mutants}
        if unknown := [name for name in only if name not in known]:
            sys.exit(f"error: no mutant {unknown[0]!r}; --list shows them")
        return [known[name] for name in only]
    if quick:
        first: dict[str, Mutant] = {}
        for mutant in mutants:
            first.setdefault(mutant.promise, mutant)
        return list(first.values())
    return mutants


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these bugs")
    parser.add_argument("--quick", action="store_true", help="the first bug of every promise")
    parser.add_argument("--list", action="store_true", help="print the bugs and run nothing")
    asked = parser.parse_args()
    promises, mutants = read_list()
    for promise, text in promises.items():
        if not any(mutant.promise == promise for mutant in mutants):
            print(f"no bug is planted against {promise!r}: {text}")
    if problems := problems_of(promises, mutants):
        print("\n".join(problems))
        return 1
    chosen = _chosen(mutants, only=asked.only, quick=asked.quick)
    width = max(len(mutant.name) for mutant in chosen)
    if asked.list:
        for mutant in chosen:
            print(f"{mutant.name:{width}}  {mutant.promise:10}  {mutant.file}  {'  '.join(mutant.tests)}")
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dorakit-mutants-") as directory:
        scratch = Path(directory)
        trees = [copy_of_the_tree(scratch / f"tree-{n}") for n in range(min(max(1, asked.jobs), len(chosen)))]
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        print(f"{len(tests)} tests on the tree as it is", flush=True)
        if problems := check_as_it_is(trees, tests, scratch):
            print("\n".join(problems))
            return 1
        print(f"they pass ({time.monotonic() - began:.0f} s)\n", flush=True)
        counts = _try_all(chosen, trees, scratch)
    print(f"\n{counts['killed']} of {len(chosen)} bugs noticed, {time.monotonic() - began:.0f} s", end="")
    print(f"; survived: {counts['survived']}, broken copies: {counts['broken']}")
    return int(counts["killed"] != len(chosen))


def _try_all(chosen: list[Mutant], trees: list[Path], scratch: Path) -> dict[str, int]:
    width = max(len(mutant.name) for mutant in chosen)
    counts = dict.fromkeys(("killed", "survived", "broken"), 0)
    print(f"{'mutant':{width}}  {'promise':10}  verdict   seconds  test, and what it said")
    for number, outcome in run([(mutant, list(mutant.tests)) for mutant in chosen], trees, scratch):
        mutant, (verdict, said) = chosen[number], judge(outcome)
        counts[verdict] += 1
        test = ", ".join(test.partition("::")[2] for test in mutant.tests)
        row = f"{mutant.name:{width}}  {mutant.promise:10}  {verdict:8}  {outcome.seconds:7.1f}  {test}"
        print(f"{row}: {said[:90]}" if said else row, flush=True)
    return counts


if __name__ == "__main__":
    sys.exit(main())
