"""The commands of docs/faq.md, in their order, on a tiny random base."""

import re
import shutil
from pathlib import Path

from printed import ROOT, invoke, write_rows

FAQ = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
# Tested elsewhere: going on with an unfinished run (tests/faults), a comparison (tests/comparison), the card of `init --gpu`.
ELSEWHERE = ("--resume", "dorakit compare", "dorakit init")


def test_its_commands_run(tmp_path, monkeypatch):
    """Planted bug caught: `eval ADAPTER` without the recipe that names its rows."""
    monkeypatch.chdir(tmp_path)
    write_rows(my="orders.train", chats="orders.train")
    for rows in ("my", "chats"):
        invoke(f"dorakit init --data {rows}.jsonl --model tiny:llama")
    invoke("dorakit train my.yaml")
    shutil.copytree("runs/my/adapter", "ADAPTER")  # as its placeholder is named
    commands = [line.partition(" #")[0].strip() for line in re.findall(r"^    (dorakit .+)$", FAQ, re.MULTILINE)]
    ran = [command for command in commands if not any(word in command for word in ELSEWHERE)]
    assert len(ran) >= 15
    for command in ran:
        invoke(command)
    for place in ("runs/half/adapter", "runs/my/gguf/Modelfile", "runs/my/merged", "merged"):
        assert Path(place).exists(), place


def test_settings_for_a_resumed_run(tmp_path, monkeypatch):
    """A recipe takes what the lines that go on with a run set. Planted bug caught: training.nonfinite: {skip: 0}."""
    monkeypatch.chdir(tmp_path)
    write_rows(my="orders.train")
    invoke("dorakit init --data my.jsonl --model tiny:llama")
    lines = re.findall(r"^    dorakit train --resume \S+ (--set .+?)(?:\s+#.*)?$", FAQ, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        invoke(f"dorakit validate my.yaml --twin {line}")
