"""What the images say about who runs in them and where their packages come from, read off the Dockerfiles. Nothing is built."""

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILES = ["docker/Dockerfile", "docker/Dockerfile.cpu"]
LOCKS = ["docker/requirements.lock", "docker/torch.lock", "docker/smollm2.lock"]
SECRET = re.compile(r"token|secret|passw|credential|api_?key|private", re.IGNORECASE)


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest) without comments, lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


def complaints(text: str) -> list[str]:
    """What is wrong with a Dockerfile."""
    steps = instructions(text)
    found = _about_the_user(steps) + _about_the_base(steps)
    for what, rest in steps:
        if re.search(r"(curl|wget)\b.*\|\s*(ba|da|z)?sh\b", rest) or (what == "ADD" and "://" in rest):
            found.append(f"fetches and runs: {what} {rest}")
        if what in ("ENV", "ARG") and SECRET.search(rest):
            found.append(f"a secret would stay in the image: {what} {rest}")
        if what == "COPY" and re.search(r"(^|[/\s])\.(env|netrc|ssh|aws|git)\b|(^|\s)\.\s", rest):
            found.append(f"copies more than it says: {what} {rest}")
        for install in re.findall(r"pip install [^;&]*", rest) if what == "RUN" else []:
            is_own = "--no-index --no-deps" in install and install.rstrip().endswith(" .")
            is_named = '--index-url "$TORCH_INDEX" torch==' in install and "--no-deps" in install
            if "--require-hashes" not in install and not is_own and not is_named:
                found.append(f"not by hash: {install}")
    return found


def _about_the_user(steps):
    users = [(index, rest) for index, (what, rest) in enumerate(steps) if what == "USER"]
    if not users:
        return ["runs as root: no USER"]
    index, last = users[-1]
    found = [] if re.fullmatch(r"[1-9][0-9]*(:[1-9][0-9]*)?", last) else [f"USER {last} is not a number other than 0"]
    return found + [f"{what} after USER" for what, _ in steps[index + 1 :] if what in ("RUN", "COPY", "ADD", "USER")]


def _about_the_base(steps):
    defaults = dict(rest.split("=", 1) for what, rest in steps if what == "ARG" and "=" in rest)
    found = []
    for what, rest in steps:
        if what == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda name: defaults.get(name[1], ""), rest.split()[0])
            tag = image.rsplit("/", 1)[-1].partition(":")[2]
            if "@sha256:" not in image and (not tag or tag == "latest"):
                found.append(f"FROM {image}: of no version")
    return found


@pytest.mark.parametrize("file", DOCKERFILES)
def test_an_image(file):
    text = (ROOT / file).read_text()
    assert complaints(text) == []
    assert text.count("--require-hashes") >= 1 and "Not built by us" in text


GOOD = "FROM python:3.12-slim\nRUN pip install --require-hashes -r x.lock\nUSER 10001:10001\n"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (GOOD.replace("USER 10001:10001\n", ""), "no USER"),
        (GOOD.replace("10001:10001", "dorakit"), "not a number"),
        (GOOD.replace("10001:10001", "0"), "not a number"),
        (GOOD + "USER root\n", "not a number"),
        (GOOD + "RUN chown x /y\n", "RUN after USER"),
        (GOOD.replace("3.12-slim", "latest"), "of no version"),
        (GOOD.replace(":3.12-slim", ""), "of no version"),
        ("ARG BASE=python\n" + GOOD.replace("python:3.12-slim", "${BASE}"), "of no version"),
        (GOOD.replace("--require-hashes ", ""), "not by hash"),
        (GOOD.replace("RUN ", "RUN pip install . \\\n && "), "not by hash"),
        (GOOD.replace("RUN ", "RUN curl -L https://x.example/i | sh && "), "fetches and runs"),
        (GOOD.replace("RUN ", "ADD https://x.example/i /i\nRUN "), "fetches and runs"),
        (GOOD.replace("RUN ", "ENV HF_TOKEN=x\nRUN "), "secret"),
        (GOOD.replace("RUN ", "COPY . /opt\nRUN "), "copies more"),
        (GOOD.replace("RUN ", "COPY .netrc /root/\nRUN "), "copies more"),
    ],
)
def test_what_is_wrong_is_found(bad, said):
    """Planted bug caught: a reader that finds nothing."""
    assert complaints(GOOD) == []
    assert any(said in line for line in complaints(bad)), complaints(bad)


@pytest.mark.parametrize("file", DOCKERFILES)
def test_what_is_copied_is_there_and_reaches_the_engine(file):
    """Planted bug caught: a lock file that .dockerignore keeps back."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for what, rest in instructions((ROOT / file).read_text()):
        if what == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source
    for name in re.findall(r"-r ([\w./-]+)", (ROOT / file).read_text()):
        assert name in LOCKS


def locked(file: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package."""
    text = (ROOT / file).read_text()
    found = {}
    for entry in re.sub(r"\\\n\s*", "", text).splitlines():
        if not entry.startswith("#"):
            name, version = re.match(r"([a-z0-9.-]+)==(\S+) ", entry).groups()
            found[name] = (version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)))
    return found


@pytest.mark.parametrize("file", LOCKS)
def test_a_lock_file(file):
    """Every package has its version, the tested one, and hashes. Planted bug caught: an index's address kept in it."""
    packages = locked(file)
    assert packages and all(hashes > 0 for _, hashes in packages.values())
    assert "://" not in (ROOT / file).read_text() and "--index" not in (ROOT / file).read_text()
    tested = dict(
        re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "scripts/constraints-cpu.txt").read_text(), re.MULTILINE)
    )
    tested = {normal(name): version for name, version in tested.items()}
    both = packages.keys() & tested.keys()
    assert {name: packages[name][0] for name in both} == {name: tested[name] for name in both}


def test_everything_that_dorakit_needs_is_locked():
    """Planted bug caught: a dependency added to pyproject.toml alone, which --no-deps would leave out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["tensorboard"], "setuptools"]
    names = {normal(re.match(r"[\w.-]+", line).group()) for line in wanted}
    assert names - locked("docker/requirements.lock").keys() == {"torch"}
    assert "torch" in locked("docker/torch.lock")
    assert not locked("docker/requirements.lock").keys() & locked("docker/torch.lock").keys()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
