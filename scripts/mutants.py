"""Plants each bug of tests/mutants.toml in a copy of the tree and runs the tests that must notice it.

A bug counts as killed only if every test named for it fails, in its own words: a copy that cannot even be imported says
nothing about the tests. The named tests run once on the tree as it is, so that none is red for another reason.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants.toml"
SECONDS = 300  # for the tests of one bug; the slowest take a tenth of it
# Errors of a copy that is broken rather than wrong.
_BROKEN = ("SyntaxError", "IndentationError", "NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError")
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
class Verdict:
    """What became of one bug."""

    word: str
    seconds: float
    said: str


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
    functions = [node.name for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))) if _is_test(node)]
    return name.partition("[")[0] in functions


def _is_test(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")


def copy_of_the_tree(place: Path) -> Path:
    """A copy without history, environments, caches and results."""

    def left_out(directory: str, names: list[str]) -> list[str]:
        at_top = Path(directory) == ROOT
        return [n for n in names if n == "__pycache__" or (at_top and (n in _LEFT_OUT or n.startswith(".")))]

    shutil.copytree(ROOT, place, ignore=left_out)
    return place


def run_tests(tree: Path, tests: Iterable[str], scratch: Path) -> tuple[int, dict[str, list[str | None]], str]:
    """Run tests in a copy of the tree.

    Returns:
        pytest's exit code; for each test named what each of its cases said, None where it passed; and the output.
    """
    tests = list(tests)
    report = scratch / f"{tree.name}.xml"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        # A planted text may have the length of the one before it and come within the same second.
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "DORAKIT_TEST_CACHE": str(scratch / "cache"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}"]
    command += ["-x"] if len(tests) == 1 else []
    try:
        done = subprocess.run(
            [*command, *tests], cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return -1, {}, f"not done after {SECONDS} s"
    cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    return done.returncode, {test: _cases(test, cases) for test in tests}, done.stdout + done.stderr


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
    shares = [tests[start : start + size] for start in range(0, len(tests), size)]
    with ThreadPoolExecutor(len(trees)) as pool:
        done = list(pool.map(lambda pair: run_tests(*pair, scratch), zip(trees, shares, strict=False)))
    problems = []
    for code, found, output in done:
        bad = [test for test, said in found.items() if not said or any(said)]
        problems += [f"does not pass as it is: {test}" for test in bad]
        if code and not bad:
            problems.append(f"pytest ended with {code}")
        if code:
            problems.append(output[-3000:])
    return problems


def try_mutant(mutant: Mutant, tree: Path, scratch: Path) -> Verdict:
    """Plant one bug, run its tests, take it out again."""
    file, began = tree / mutant.file, time.monotonic()
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, found, output = run_tests(tree, mutant.tests, scratch)
    finally:
        file.write_text(before, encoding="utf-8")
    seconds = time.monotonic() - began
    if code not in (0, 1):
        return Verdict("broken", seconds, _last_line(output))
    words = []
    for said in found.values():
        failed = [line for line in said if line is not None]
        if not failed:
            return Verdict("survived", seconds, "")
        words += [line.splitlines()[0] for line in failed]
    if all(line.startswith(_BROKEN) for line in words):
        return Verdict("broken", seconds, words[0])
    return Verdict("killed", seconds, words[0])


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
        verdicts = _try_all(chosen, trees, scratch, width)
    counts = {word: sum(v.word == word for v in verdicts) for word in ("killed", "survived", "broken")}
    print(f"\n{counts['killed']} of {len(chosen)} bugs noticed, {time.monotonic() - began:.0f} s", end="")
    print(f"; survived: {counts['survived']}, broken copies: {counts['broken']}")
    return int(counts["killed"] != len(chosen))


def _try_all(chosen: list[Mutant], trees: list[Path], scratch: Path, width: int) -> list[Verdict]:
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def attempt(mutant: Mutant) -> Verdict:
        tree = free.get()
        try:
            return try_mutant(mutant, tree, scratch)
        finally:
            free.put(tree)

    verdicts = []
    print(f"{'mutant':{width}}  {'promise':10}  verdict   seconds  test, and what it said")
    with ThreadPoolExecutor(len(trees)) as pool:
        for mutant, verdict in zip(chosen, pool.map(attempt, chosen), strict=True):
            test = ", ".join(test.partition("::")[2] for test in mutant.tests)
            row = f"{mutant.name:{width}}  {mutant.promise:10}  {verdict.word:8}  {verdict.seconds:7.1f}  {test}"
            print(f"{row}: {verdict.said[:90]}" if verdict.said else row, flush=True)
            verdicts.append(verdict)
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
