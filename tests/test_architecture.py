"""The house: which room may import which, what the surface is, what stays unimported."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import dorakit

ROOT = Path(dorakit.__file__).parent
# A room may import from rooms before it and from itself. model and adapters know torch and no recipe.
ORDER = [
    {"secrets", "terminal", "words"},
    {"errors", "methods"},
    {"recipe", "failpoints"},
    {"files", "digests", "links", "cache", "lock", "machine", "versions", "progress", "interruptions"},
    {"run", "run_facts"},
    {"place"},
    {"model", "adapters"},
    {"parallel", "starting"},
    {"data", "build"},
    {"training"},
    {"target"},
    {"evaluation"},
    {"export"},
    {"report"},
    {"comparison"},
    {"plan", "doctor"},
    {"cli"},
    {"__main__"},
]
RANK = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def modules() -> list[tuple[Path, str, ast.Module]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        room = relative.parts[0].removesuffix(".py")
        if room != "__init__":
            found.append((relative, room, ast.parse(path.read_text())))
    return found


def imports(tree: ast.Module) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_arrows_point_one_way():
    wrong = []
    for path, room, tree in modules():
        for name in imports(tree):
            parts = name.split(".")
            if parts[0] != "dorakit" or len(parts) < 2 or parts[1] not in RANK:
                continue
            if RANK[parts[1]] > RANK[room]:
                wrong.append(f"{path} imports {name}")
            if room in ("model", "adapters") and parts[1] in ("recipe", "run"):
                wrong.append(f"{path} imports {name}: model and adapters know no recipe")
    assert not wrong, "\n".join(wrong)


def test_libraries_stay_in_their_rooms():
    homes = {
        "pydantic": lambda path: path.parts[0] == "recipe",
        "bitsandbytes": lambda path: str(path) in ("model/nf4.py", "training/optim.py"),
        "typer": lambda path: path.parts[0] in ("cli", "__main__.py"),
        "peft": lambda path: False,
    }
    wrong = [
        f"{path} imports {name}"
        for path, _, tree in modules()
        for name in imports(tree)
        if (at_home := homes.get(name.split(".")[0])) and not at_home(path)
    ]
    assert not wrong, "\n".join(wrong)


def test_modes_and_devices_are_decided_in_one_place():
    """No branch on a mode with a Q, on the storage or on the device outside the rooms that own them."""
    wrong = []
    for path, room, _ in modules():
        text = (ROOT / path).read_text()
        if room != "recipe" and re.search(r"""["']q(lora|dora)["']""", text):
            wrong.append(f"{path} names a mode with a Q")
        if re.search(r"cuda\.is_available|\.is_cuda", text) and str(path) != "model/load.py":
            wrong.append(f"{path} asks for the device")
    assert not wrong, "\n".join(wrong)


def test_public_names_are_the_surface():
    for name in dorakit.__all__:
        assert getattr(dorakit, name) is not None
    assert set(dorakit.__all__) == {
        "Recipe", "Run", "train", "evaluate", "merge", "quantize", "attach_", "merge_", "dense_weight",
        "save_adapter", "load_adapter", "DorakitError", "__version__",
    }  # fmt: skip


def test_the_command_line_starts_without_torch():
    code = "import sys, dorakit, dorakit.cli.app; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_report_is_written_without_torch():
    """Planted bug caught: a room that loads models, imported by a page that shows files."""
    code = (
        "import sys, dorakit.report.page; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_stay_readable():
    """Near 300 lines a file is asking to be split; these asked, and are one thing each."""
    allowed = {"recipe/schema.py", "recipe/foreign.py"}
    long = {str(path) for path, _, _ in modules() if len((ROOT / path).read_text().splitlines()) > 300}
    assert long <= allowed
