"""The commands of the pages, each run in a directory that holds what they name: in tiny form, on a tiny random base.

README, docs/faq.md, docs/ci.md and docs/tour.md have tests of their own, which run their commands one after another.
"""

import fnmatch
import functools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from printed import SMOLLM2, tiny
from printed_commands import PAGES, ROOT, blocks, calls, fault, inline, text_of
from tiny_runs import write_rows
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import GateError
from dorakit.evaluation.tasks.table import TASKS
from dorakit.model.source import resolve

ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "faq.md": "tests/test_faq.py",
    "ci.md": "tests/test_failures.py",
    "tour.md": "tests/test_tour.py",
}
# What is only parsed (tests/test_docs.py), with the reason.
NOT_RUN = {
    "compare *": "up to 18 trainings; tests/comparison/test_compare.py runs some of each axis",
    "eval RUN --task lm-eval:arc_easy": "rows of the hub; tests/evaluation/test_harness.py has rows of its own",
    "train * logging.to=[[]wandb]": "a service of seconds; tests/training/test_trackers.py has every tracker",
    "init": "asks on a terminal; tests/test_init.py answers there",
    "train --twin": "a mention, which is parsed as if it were whole",
}
# What stands for what: placeholders, a shell's variables, a step that a tiny run does not reach, tokens that are bytes.
WORDS = {
    r"\$?RECIPE|(?<![\w/])[ab]\.yaml": "my.yaml",
    r"\$?RUN(?![\w.])": "runs/my",
    "step-000000120": "step-000000001",
    "max_seq_len=128": "max_seq_len=512",
}
CONFIG = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 256}
AXOLOTL = """\
base_model: tiny:llama
adapter: lora
datasets: [{path: rows.jsonl, type: {field_instruction: prompt, field_output: completion}}]
sequence_len: 64
lora_r: 8
lora_alpha: 16
learning_rate: 0.0002
"""
TRL = """\
model_name_or_path: tiny:llama
dataset_name: rows.jsonl
use_peft: true
"""


def printed_commands():
    """Page and arguments of each command: those in blocks, and those in running text that are whole."""
    for page in PAGES:
        if page.name in ELSEWHERE:
            continue
        text = text_of(page)
        for lines, is_mention in ((blocks(text), False), (inline(text), True)):
            for call in (call for line in lines for call in calls(line)):
                if call and not (is_mention and (len(call) == 1 or fault(call, is_mention=False))):
                    yield page.name, call


def with_words(word):
    return functools.reduce(lambda text, item: re.sub(*item, text), WORDS.items(), word)


PRINTED = {" ".join(call) for _, call in printed_commands()}
# What is run, by what it is for the tiny base, so that nothing is run twice.
RUN = {
    shlex.join(tiny([with_words(word) for word in call])): page
    for page, call in printed_commands()
    if not any(fnmatch.fnmatchcase(" ".join(call), pattern) for pattern in NOT_RUN)
}


def invoke(*arguments):
    return CliRunner().invoke(app, arguments, input="Hello\n", catch_exceptions=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the pages name, made once."""
    patch = pytest.MonkeyPatch()
    here = tmp_path_factory.mktemp("prepared")
    patch.chdir(here)
    for name in ("my", "chats", "rows", "test"):
        write_rows(here / f"{name}.jsonl", 24)
    Path("questions.txt").write_text("Who?\n", encoding="utf-8")
    invoke("init", "--data", "my.jsonl", "--model", "tiny:llama", "--mode", "dora")
    recipe = Path("my.yaml").read_text(encoding="utf-8")
    recipe += "evaluation: {path: test.jsonl, metric: exact_match, max_new_tokens: 2}\n"
    Path("my.yaml").write_text(recipe, encoding="utf-8")
    for name, mode in (("lora", "lora"), ("my", "dora")):
        settings = (f"adapter.mode={mode}", "training.save_every=1", "training.sample_rows=0", "training.max_steps=2")
        invoke("train", "my.yaml", "-o", f"runs/{name}", "-q", *(word for key in settings for word in ("--set", key)))
    invoke("merge", "runs/my", "-q")
    invoke("quantize", "runs/my", "-q")
    for name in ("runs/other", "runs/dora", "runs/orders-comparison/a"):
        shutil.copytree("runs/my", name)
    for name in ("ADAPTER", "adapter", "peft-adapter"):
        shutil.copytree("runs/my/adapter", name)
    shutil.copytree(resolve("tiny:llama").directory, "MODEL")
    shutil.copytree(ROOT / "recipes", "recipes")
    for file in Path("recipes").rglob("*.yaml"):
        text = file.read_text(encoding="utf-8").replace(SMOLLM2, "tiny:llama").replace("len: 192", "len: 512")
        file.write_text(re.sub(r"batch_size: \d+", "batch_size: 8", text), encoding="utf-8")
    for name, text in {"axolotl.yaml": AXOLOTL, "axolotl.yml": AXOLOTL, "sft.yaml": TRL}.items():
        Path(name).write_text(text, encoding="utf-8")
    Path("Llama-3-8B").mkdir()
    for name in ("Llama-3-8B/config.json", "CONFIG"):
        Path(name).write_text(json.dumps(CONFIG), encoding="utf-8")
    Path("dataset").mkdir()
    for task in TASKS.values():
        answer = task.options[0] if task.options else "7"
        rows = [{"instruction": f"Which? {n}", "input": "", "output": answer, "answer": answer} for n in range(1)]
        Path("dataset", f"{task.name}.test.json").write_text(json.dumps(rows), encoding="utf-8")
    yield here
    patch.undo()


def leave_unfinished(run):
    """As it was after its first step."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**facts, "state": "training"}), encoding="utf-8")
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints/step-000000002")


@pytest.mark.parametrize("command", RUN, ids=str)
def test_it_runs(command, prepared, tmp_path, monkeypatch):
    """Planted bug caught: `export RUN --to lora --max-rank 250`, which parses and is refused."""
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "here", symlinks=True))
    arguments = shlex.split(command)
    if arguments[0] in ("init", "import"):
        Path("my.yaml").unlink()  # never overwritten
    if arguments[0] == "eval" and "DIR" in arguments:
        Path("dataset").rename("DIR")
    if "--resume" in arguments:
        run = Path(arguments[arguments.index("--resume") + 1])
        leave_unfinished(run.parents[1] if run.parent.name == "checkpoints" else run)
    if "merged/generation_config.json" in arguments:
        config = Path("runs/my/merged/generation_config.json")
        config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    elif "--accept-change" in arguments:
        recipe = Path("my.yaml").read_text(encoding="utf-8")
        Path("my.yaml").write_text(re.sub("learning_rate: .*", "learning_rate: 3e-4", recipe), encoding="utf-8")
    try:
        result = invoke(*arguments)
    except GateError:
        assert "--min" in arguments or "--max-lost" in arguments  # the answer that such a command is for
    else:
        assert result.exit_code == 0, f"{RUN[command]}: {result.output}"


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_what_is_not_run_is_printed(pattern):
    """Dies where a line of NOT_RUN is no longer needed."""
    assert fnmatch.filter(PRINTED, pattern)
