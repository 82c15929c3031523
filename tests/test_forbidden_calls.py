"""What the source may not contain: formats that run code when they are read, and text that is run as code.

Read off the syntax tree, in dorakit/, in scripts/ and in the Python pieces inside shell scripts.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {"pickle", "cPickle", "_pickle", "pickletools", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# By the end of their dotted name, so that an alias of the module does not hide them.
CALLS = {
    "torch.load": "reads a pickle",
    "torch.save": "writes a pickle",
    "torch.jit.load": "reads code",
    "torch.hub.load": "fetches code and runs it",
    "torch.package.PackageImporter": "reads code",
    "pandas.read_pickle": "reads a pickle",
    "pd.read_pickle": "reads a pickle",
    "yaml.load": "builds what the text names",
    "yaml.load_all": "builds what the text names",
    "yaml.full_load": "builds what the text names",
    "yaml.unsafe_load": "builds what the text names",
    "os.system": "hands a text to a shell",
    "os.popen": "hands a text to a shell",
    "subprocess.getoutput": "hands a text to a shell",
    "jinja2.Environment": "renders outside the sandbox",
    "jinja2.Template": "renders outside the sandbox",
}
# By their last name, of whatever module: what one process of a group is sent by another is not unpickled.
METHODS = {
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Keywords that are dangerous unless they say False.
SWITCHES = {"shell", "allow_pickle", "trust_remote_code", "weights_only"}
LOADERS = {"FullLoader", "UnsafeLoader", "CUnsafeLoader", "CFullLoader"}


def offences(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, what) of everything forbidden."""
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        found += [(line, what) for what in (*_imported(node), *_called(node), *_optional(node))]
    return found


def _imported(node):
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for name in names:
        if name.split(".")[0] in MODULES:
            yield f"imports {name}"
        if name in CALLS:
            yield f"{name} {CALLS[name]}"


def _called(node):
    if isinstance(node, ast.Attribute) and node.attr in LOADERS:
        yield f"a {node.attr} builds what the text names"
    if not isinstance(node, ast.Call):
        return
    name = ast.unparse(node.func)
    if name in BUILTINS:
        yield f"{name} runs a text"
    if name in CALLS:
        yield f"{name} {CALLS[name]}"
    if name.split(".")[-1] in ("import_module", "find_spec", "__import__") and node.args:
        argument = node.args[0]
        if isinstance(argument, ast.Constant) and str(argument.value).split(".")[0] in MODULES:
            yield f"imports {argument.value}"
    if name.split(".")[-1] in METHODS:
        yield f"{name} sends a pickle"
    for keyword in node.keywords:
        says_no = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in SWITCHES and not says_no:
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"
        if keyword.arg == "weights_only":
            yield "weights_only is of a reader of pickles"


def _optional(node):
    """trust_remote_code as something that a caller, a recipe or a command line could set."""
    if isinstance(node, ast.arg) and node.arg == "trust_remote_code":
        yield "trust_remote_code is a parameter"
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "trust_remote_code":
        yield "trust_remote_code is a field"
    if isinstance(node, ast.Constant) and node.value == "--trust-remote-code":
        yield "trust_remote_code is an option"


def sources():
    """(name, text) of every piece of Python."""
    for path in sorted([*(ROOT / "dorakit").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "scripts").rglob("*.sh")):
        for number, piece in enumerate(re.findall(r"<<'PYTHON'.*?\n(.*?)\nPYTHON", path.read_text(), re.DOTALL)):
            yield f"{path.relative_to(ROOT)}, piece {number + 1}", piece


def test_the_source():
    pieces = list(sources())
    assert len(pieces) > 60 and any("piece" in name for name, _ in pieces)
    found = [f"{name}:{line}: {what}" for name, text in pieces for line, what in offences(ast.parse(text))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import torch, cPickle",
        "from dill import loads",
        "import joblib.numpy_pickle",
        "import_module('shelve')",
        "importlib.import_module('marshal')",
        "__import__(name)",
        "torch.load(path)",
        "from torch import load",
        "torch.save(state, path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
        "eval(text)",
        "exec(compile(text, '', 'exec'))",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.parse(text, Loader=yaml.FullLoader)",
        "jinja2.Environment().from_string(text)",
        "from jinja2 import Template",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=setting)",
        "def load(path, *, trust_remote_code=False): ...",
        "class Model:\n    trust_remote_code: bool = False",
        "typer.Option(False, '--trust-remote-code')",
        "reader(path, weights_only=True)",
        "dist.all_gather_object(values, value)",
    ],
)
def test_each_is_found(text):
    """Planted bug caught: a walk that finds nothing."""
    assert offences(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "np.load(path)",
        "np.load(path, allow_pickle=False)",
        "yaml.parse(text, Loader=yaml.SafeLoader)",
        "subprocess.run([program], check=True)",
        "from jinja2.sandbox import ImmutableSandboxedEnvironment",
        "from jinja2 import TemplateError",
        "safetensors.torch.load_file(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=False)",
        "re.compile(pattern)",
    ],
)
def test_nothing_else_is(text):
    assert not offences(ast.parse(text))
