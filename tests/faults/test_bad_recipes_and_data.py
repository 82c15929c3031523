"""The list of bad recipes and bad rows: what is typed, what a person reads, the exit code.

Each row has the number of its entry: 1 to 35 are of recipes, 36 to 53 of rows. ELSEWHERE says of the numbers that have
no row here where they are held, or what is right about them. Recipes, and rows that can be judged without a tokenizer,
are run in one fresh interpreter that must not import torch; the others in this process.
"""

# ruff: noqa: E501 (a row is a line)

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

GOOD = """\
version: 1
model: {base: "tiny:llama", dtype: float32}
adapter:
  mode: lora
  rank: 4
data:
  train:
    - {path: rows.jsonl, format: completion}
  max_seq_len: 64
training: {max_steps: 1, batch_size: 1, micro_batch_size: 1}
optimizer:
  learning_rate: 1e-3
"""
ROW = '{"prompt": "1 + 1 =", "completion": " 2"}\n'
CHAT = '{"messages": [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two."}]}\n'
# Obviously no secrets, and of their shape.
TOKEN, KEY = "hf" + "_" + "ThisIsNoToken" * 2, "sk" + "-" + "this-is-no-key-" + "0123456789" * 2
URL = "https://" + "somebody:" + "notapassword" + "@example.org/model"

Content = str | bytes


@dataclass(frozen=True)
class Case:
    """What lies in the directory, what is typed there, and what must come of it."""

    entry: int
    said: str
    recipe: Content = GOOD
    rows: Content | None = ROW
    files: dict[str, Content] = field(default_factory=dict)
    argv: tuple[str, ...] = ("train", "r.yaml", "--quiet")
    code: int = 2
    never: str = ""

    def write(self, directory: Path) -> Path:
        files = {"r.yaml": self.recipe, **({} if self.rows is None else {"rows.jsonl": self.rows}), **self.files}
        for name, content in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return directory


def put(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def rank(line: str) -> str:
    return put("rank: 4", line)


def rate(text: str) -> str:
    return put("1e-3", text)


def data(entry: int, said: str, rows: Content | None, form: str = "completion", **more: object) -> Case:
    """Rows that are wrong under a recipe that is right."""
    return Case(entry, said, recipe=put("completion", form), rows=rows, **more)  # type: ignore[arg-type]


RECIPES = [
    Case(1, r"r\.yaml:5:3: error: unknown key 'adapter\.rnak'\n +5 \|   rnak: 4\n +\|   \^{4} did you mean 'rank'\?", rank("rnak: 4")),
    Case(1, r"r\.yaml:11:1: error: unknown key 'optimiser'(.|\n)*did you mean 'optimizer'\?", put("optimizer:", "optimiser:")),
    Case(1, r"r\.yaml:5:3: (.|\n)*`learning_rate` belongs under `optimizer`", rank("learning_rate: 1e-4")),
    Case(1, r"r\.yaml:5:3: (.|\n)*`lora_r` is `rank` here", rank("lora_r: 4")),
    Case(2, r"r\.yaml:6:3: error: duplicate key 'rank' \(lines 5 and 6\)", rank("rank: 4\n  rank: 8")),
    Case(3, r"r\.yaml:5:1: error: a tab cannot be used to indent(.|\n)*use spaces", rank("\trank: 4").replace("  \t", "\t")),
    Case(4, r"r\.yaml: error: the file is empty\n +it starts with `version: 1`", ""),
    Case(4, r"r\.yaml: error: the file is empty", "# to do\n"),
    Case(5, r"r\.yaml:1:1: error: a recipe is a mapping of sections", "- version: 1\n"),
    Case(5, r"r\.yaml:1:1: error: a recipe is a mapping of sections", "version 1\n"),
    Case(6, r"r\.yaml:11:1: error: a second document starts here(.|\n)*remove the '---' line", put("optimizer:", "---\noptimizer:")),
    Case(7, r"r\.yaml: error: byte 0xf6 at offset 15 \(line 2\) is not UTF-8\n +save it as UTF-8", "version: 1\n# Größe".encode("latin-1")),
    Case(7, r"r\.yaml: error: the file starts with a byte order mark \(byte 0\)\n +save it as UTF-8 without BOM", GOOD.encode("utf-8-sig")),
    Case(7, r"r\.yaml: error: the file is UTF-16 or UTF-32 \(byte 0\)", GOOD.encode("utf-16")),
    Case(7, r"r\.yaml: error: the file is UTF-16 or UTF-32 \(byte 0\)", GOOD.encode("utf-16-be")),
    Case(8, r"r\.yaml:12:18: error: optimizer\.learning_rate: quoted text '1e-4', expected a number above 0(.|\n)*remove the quotes", rate('"1e-4"')),
    Case(9, r"got text '1,0e-4'(.|\n)*write 1\.0e-4\n", rate("1,0e-4")),
    Case(9, r"expected a number above 0, got -1\n", rate("-1")),
    Case(9, r"expected a number above 0, got 0\n", rate("0")),
    Case(9, r"expected a number above 0, got \.nan\n", rate(".nan")),
    Case(9, r"got text '1e-4x'\n", rate("1e-4x")),
    Case(10, r"expected true or false, got text 'yes'(.|\n)*write true or false", rank("rslora: yes")),
    Case(10, r"expected true or false, got text 'on'(.|\n)*write true or false", rank("rslora: on")),
    Case(10, r"DoRA is `adapter\.mode: dora` \(or `qdora`\) here", rank("use_dora: no")),
    Case(11, r"r\.yaml:5:9: error: adapter\.rank: expected a whole number of at least 1, got 0\n", rank("rank: 0")),
    Case(11, r"expected a whole number of at least 1, got -8\n", rank("rank: -8")),
    Case(11, r"got 8\.0(.|\n)*write 8\n", rank("rank: 8.0")),
    Case(11, r"quoted text '8', expected a whole number(.|\n)*remove the quotes", rank('rank: "8"')),
    Case(11, r"got text '1,000'(.|\n)*write 1000\n", rank("rank: 1,000")),
    Case(12, r"adapter\.alpha: expected a number above 0, got 0\n", rank("alpha: 0")),
    Case(12, r"adapter\.alpha: expected a number above 0, got nothing(.|\n)*write a value or remove the line", rank("alpha:")),
    Case(13, r"adapter\.dropout: expected a number of at least 0 and below 1, got 1\.0\n", rank("dropout: 1.0")),
    Case(13, r"adapter\.dropout: expected a number of at least 0 and below 1, got -0\.1\n", rank("dropout: -0.1")),
    Case(14, r"'all_linear' would match no module(.|\n)*did you mean 'all-linear'\?", rank("target_modules: all_linear")),
    Case(14, r"adapter\.target_modules is no regular expression", rank("target_modules: '*_proj'")),
    Case(17, r"r\.yaml:5:3: error: 'adapter\.magnitude' is not read in mode lora(.|\n)*or write `mode: dora`", rank("magnitude: {init: original}")),
    Case(17, r"r\.yaml:6:1: error: 'quantization' is not read in mode lora(.|\n)*or write `mode: qlora`", put("data:", "quantization: {block_size: 64}\ndata:")),
    Case(20, r"training\.micro_batch_size 4 \(the default\) is larger than training\.batch_size 1", put(", micro_batch_size: 1", "")),
    Case(21, r"training\.max_steps: expected a whole number of at least 1 or null, got 0", put("max_steps: 1", "max_steps: 0")),
    Case(21, r"training\.epochs: expected a number above 0, got 0", put("max_steps: 1", "epochs: 0")),
    Case(22, r"optimizer\.warmup_steps: expected a whole number of at least 0 or null, got -1", rate("1e-3\n  warmup_steps: -1")),
    Case(22, r"'optimizer\.warmup_ratio' is not read beside optimizer\.warmup_steps", rate("1e-3\n  warmup_steps: 1\n  warmup_ratio: 0.1")),
    Case(23, r"training\.keep_checkpoints: expected a whole number of at least 2, got 1", put("max_steps: 1", "keep_checkpoints: 1")),
    Case(24, r"'cosin' is not one of cosine, linear, constant(.|\n)*did you mean 'cosine'\?", rate("1e-3\n  schedule: cosin")),
    Case(24, r"'adamw_torch' is not one of adamw, (.|\n)*did you mean 'adamw'\?", rate("1e-3\n  name: adamw_torch")),
    Case(24, r"'alpaca' is not one of chat, instruction, completion, text(.|\n)*did you mean 'instruction'\?", put("completion", "alpaca")),
    Case(24, r"data\.chat_template: no such file: chta\.jinja \(looked for .*chta\.jinja\)\n +did you mean chat\.jinja\?", put("max_seq_len: 64", "chat_template: chta.jinja"), files={"chat.jinja": "x"}),
    Case(25, r"training\.seed: expected a whole number of at least 0 and below 2147483648, got 1\.5", put("max_steps: 1", "seed: 1.5")),
    Case(25, r"training\.seed: expected a whole number .*, got 9223372036854775808", put("max_steps: 1", "seed: 9223372036854775808")),
    Case(25, r"training\.seed: expected a whole number .*, got text 'abc'", put("max_steps: 1", "seed: abc")),
    Case(26, r"no such file: row\.jsonl \(looked for /.*/row\.jsonl\)\n +did you mean rows\.jsonl\?", put("rows.jsonl", "row.jsonl")),
    Case(26, r"no such file: /.*/deep/er/rows\.jsonl\n +nearest directory that exists: /.* \(holds r\.yaml, rows\.jsonl\)", put("rows.jsonl", "deep/er/rows.jsonl")),
    Case(26, r"extends: no such file: absent\.yaml", put("version: 1", "version: 1\nextends: absent.yaml")),
    Case(27, r"runs/r exists and is not a run directory\.\n +set output_dir to another place", files={"runs/r/mine.txt": "x"}, code=3),
    Case(27, r"runs/r holds an unfinished run\.\n.*dorakit train --resume runs/r", files={"runs/r/run.json": '{"schema": 1, "state": "training", "notes": []}'}, code=3),
    Case(29, r"r\.yaml:2:16: error: this looks like a Hugging Face token, and no secret belongs in a recipe\n +remove it .* use `hf auth login`", put("tiny:llama", TOKEN), never=TOKEN[:12]),
    Case(29, r"r\.yaml:5:14: error: this looks like an API key", rank(f"rank: 4  # {KEY}"), never="no-key"),
    Case(29, r"r\.yaml:2:24: error: this looks like a password in a URL", put("tiny:llama", URL), never="notapassword"),
    Case(29, r"r\.yaml:2:15: error: this looks like a Hugging Face token", put("tiny:llama", "\\x68" + TOKEN[1:]), never=TOKEN[1:13]),
    Case(29, r"unknown key 'model\.hf_token'(.|\n)*no secret belongs in a recipe", put(", dtype", ", hf_token: Sw0rdfish, dtype"), never="Sw0rdfish"),
    Case(29, r"--set model\.base=\[hidden\]: error: this looks like a Hugging Face token", argv=("train", "r.yaml", "--set", f"model.base={TOKEN}"), never=TOKEN[:12]),
    Case(29, r"--set model\.token=\[hidden\]: error: unknown key 'model\.token'", argv=("train", "r.yaml", "--set", "model.token=Sw0rdfish"), never="Sw0rdfish"),
    Case(30, r"r\.yaml:5:9: error: anchor '&r' cannot be used here", rank("rank: &r 4")),
    Case(30, r"r\.yaml:5:9: error: alias '\*r' cannot be used here(.|\n)*write the value out", rank("rank: *r")),
    Case(30, r"merge key '<<' cannot be used here(.|\n)*use `extends`", rank("<<: {rank: 4}")),
    Case(30, r"tag '!!python/object/apply:os\.system' cannot be used here", rank('rank: !!python/object/apply:os.system ["touch owned"]')),
    Case(31, r"r\.yaml: error: 2,097,152 bytes are too many for a recipe \(at most 262,144\)", b"#" * 2**21),
    Case(31, r"r\.yaml:5:31: error: nested more than 24 levels deep", rank("rank: " + "[" * 5000)),
    Case(32, r"r\.yaml:1:10: error: version 2 is not known(.|\n)*this dorakit reads version 1", put("version: 1", "version: 2")),
    Case(33, r"^--set adapter\.rnk=8: error: unknown key 'adapter\.rnk'\n +did you mean 'rank'\?", argv=("train", "r.yaml", "--set", "adapter.rnk=8")),
    Case(33, r"^--set adapter\.rank=many: error: adapter\.rank: expected a whole number", argv=("train", "r.yaml", "--set", "adapter.rank=many")),
    Case(34, r"error: \.: a directory, not a recipe file|^\.: error: a directory, not a recipe file", argv=("train", ".")),
    Case(34, r"^q\.yaml: error: no such file\n +recipes there: r\.yaml", argv=("train", "q.yaml")),
    Case(34, r"^gone/r\.yaml: error: no such file\n +the nearest directory that exists is /", argv=("train", "gone/r.yaml")),
    Case(34, r"^list\.json:1:1: error: a recipe is a mapping of sections", files={"list.json": "[1]"}, argv=("train", "list.json")),
    Case(35, r"unknown key 'fsdp'(.|\n)*several devices are `parallel.strategy", put("version: 1", "version: 1\nfsdp: full_shard")),
]  # fmt: skip

PLAIN_ROWS = [
    data(36, r"error: no such file: rows\.jsonl \(looked for /.*/rows\.jsonl\)\n +the directory holds r\.yaml", None),
    data(36, r"error: rows\.jsonl is empty", ""),
    data(36, r"error: rows\.jsonl is empty", " \n\n\t\n"),
    data(36, r"error: rows\.jsonl has no rows", "[]"),
    data(37, r"error: rows\.jsonl:2: not JSON: Expecting value at column 12: \{\"prompt\": \}$", ROW + '{"prompt": }\n'),
    data(37, r"rows\.jsonl:1: not JSON: Invalid control character at at column 13: \{\"prompt\": \"\\x1b\[31m\"\}$", '{"prompt": "\x1b[31m"}\n'),
    data(37, r"rows\.jsonl:1: not JSON: Expecting ',' delimiter at column 215: \.\.\.x{20,39}\" [^\n]{1,40}\.\.\.$", '{"prompt": "' + "x" * 200 + '" ' + "y" * 200 + "}\n"),
    data(37, r"rows\.jsonl:1: a line of 4,200,\d{3} characters, at most 4,194,304 are read", '{"prompt": "' + "x" * 4_200_000 + '"}\n'),
    data(37, r"rows\.jsonl:1: not JSON that is read: nested more than 64 levels deep", '{"prompt": ' + "[" * 70 + "]" * 70 + "}\n"),
    data(37, r"rows\.jsonl:1: not JSON: (nested too deeply|Expecting value)", '{"prompt": ' + "[" * 200_000 + "\n"),
    data(37, r"rows\.jsonl:1: not JSON: NaN is not JSON", '{"prompt": NaN}\n'),
    data(38, r"rows\.jsonl holds one JSON object; expected an array of objects, or one object a line", '{\n  "rows": [1]\n}\n'),
    data(38, r"rows\.jsonl:2: expected a JSON object, found list: \[\"a\"\]", ROW + '["a"]\n'),
    data(38, r"rows\.jsonl\[1\]: expected a JSON object, found int: 3", "[{}, 3]"),
    data(39, r"rows\.jsonl:1: no field 'completion'; the row has: prompt, response\.\n +format completion needs prompt and completion; may have answer\n +if it goes by another name, say so in the source: columns: \{completion: response\}", '{"prompt": "a", "response": "b"}\n'),
    data(39, r"no fields 'prompt' and 'completion'; the row has: k0, (.*, ){10}k11, \.\.\.\.", json.dumps({f"k{i}": 1 for i in range(5000)}) + "\n"),
    data(40, r"rows\.jsonl:1: field 'prompt' holds list \['a'\], expected text", '{"prompt": ["a"], "completion": "b"}\n'),
    data(40, r"rows\.jsonl:2: field 'completion' is null, expected text\.\n +remove the row, or fill it in", ROW + '{"prompt": "a", "completion": null}\n'),
    data(41, r"rows\.jsonl:1: turn 1 of 'messages': unknown role 'bot'; known are system, developer, user, assistant, tool", CHAT.replace("user", "bot"), "chat"),
    data(41, r"rows\.jsonl:1: field 'messages' is an empty list, expected a list of turns", '{"messages": []}\n', "chat"),
    data(41, r"rows\.jsonl:1: turn 1 of 'messages' has no content; it has: role", '{"messages": [{"role": "user"}]}\n', "chat"),
    data(41, r"rows\.jsonl:1: turn 1 of 'messages': unknown role '(x|\.)+; known are", '{"messages": [{"role": "' + "x" * 10_000 + '", "content": ""}]}\n', "chat"),
    data(46, r"rows\.jsonl:1: field 'prompt' holds half of a surrogate pair, which is no text", '{"prompt": "\\ud83d", "completion": "b"}\n'),
    data(46, r"rows\.jsonl:1: field 'prompt' holds a zero character \(NUL\), which is no text", '{"prompt": "a\\u0000", "completion": "b"}\n'),
    data(46, r"rows\.jsonl:2: not UTF-8 text: byte 0x00 at offset 45\.", ROW.encode() + b'{"a\0": 1}\n'),
    data(46, r"rows\.jsonl:2: not UTF-8 text: byte 0xff at offset 54\.\n +save the file as UTF-8", ROW.encode() + b'{"prompt": "\xff"}\n'),
    data(46, r"rows\.jsonl:1: not UTF-8 text: byte 0xff at offset 0\.", ROW.encode("utf-16")),
    data(37, r"rows\.jsonl:1: not JSON", "{\n", argv=("data", "r.yaml")),
    Case(51, r"rows\.xml is of no known kind; rows are read from \.json, \.jsonl, \.csv, \.parquet and \.txt files", put("rows.jsonl", "./rows.xml"), files={"rows.xml": "<a/>"}),
    Case(51, r"rows\.parquet is not a Parquet file that can be read", put("rows.jsonl", "rows.parquet"), files={"rows.parquet": "PAR0"}),
    Case(51, r"rows\.csv:3: 1 values for 2 columns", put("rows.jsonl", "rows.csv"), files={"rows.csv": "prompt,completion\na,b\nc\n"}),
    Case(52, r"rows\.jsonl\.gz is of no known kind(.|\n)*unpack it first", put("rows.jsonl", "./rows.jsonl.gz"), files={"rows.jsonl.gz": b"\x1f\x8b\x08"}),
]  # fmt: skip

ENDLESS = "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}"
# These need a tokenizer or the tiny model.
TOKENISED = [
    Case(11, r"adapter\.rank 1000000000 is above every layer of the model: the largest, .*, is 64 x 64, so that rank 64", rank("rank: 1000000000")),
    Case(11, r"adapter\.rank 65 is above every layer", rank("rank: 8\n  rank_pattern: {q_proj: 65}")),
    Case(14, r"adapter\.target_modules: no module is called 'q_porj'\.\n +did you mean q_proj", rank("target_modules: [q_porj]")),
    Case(15, r"the output head lm_head takes no adapter; list it in modules_to_save", rank("target_modules: [lm_head]")),
    data(41, r"no supervised token in any of the training rows, the first are rows\.jsonl:1: nothing would be learned\.", CHAT.replace("assistant", "user"), "chat"),
    Case(42, r"no supervised token in any of the training rows, the first are rows\.jsonl:1, rows\.jsonl:2, rows\.jsonl:3: nothing", put("completion", "chat"), CHAT.replace('"two."', '"two.", "weight": 0') * 4),
    Case(43, r"rows\.jsonl:1: \d+ tokens, data\.max_seq_len is 8\.\n +raise it, or set data\.overlength to drop or truncate", put("max_seq_len: 64", "max_seq_len: 8\n  overlength: error")),
    Case(43, r"none of the training rows fits into data\.max_seq_len = 8 tokens, the first are rows\.jsonl:1\.", put("max_seq_len: 64", "max_seq_len: 8")),
    Case(44, r"none of the training rows keeps a supervised token in data\.max_seq_len = 8 tokens", put("max_seq_len: 64", "max_seq_len: 8\n  overlength: truncate"), ROW.replace("1 + 1", "1 + 1 + 1 + 1")),
    Case(48, r"no supervised token in any of the validation rows", put("max_seq_len: 64", "validation: {path: v.jsonl}").replace("completion", "chat"), CHAT, files={"v.jsonl": CHAT.replace("assistant", "user")}),
    Case(48, r"data\.validation holds out 1 row of 1: nothing is left to train on", put("max_seq_len: 64", "validation: {rows: 1}")),
    Case(53, r"data\.chat_template t\.jinja cannot be used: unexpected '\}' \(line 2 of the template\)", put("max_seq_len: 64", "chat_template: t.jinja").replace("completion", "chat"), CHAT, files={"t.jinja": "{# one #}\n{{ messages }\n"}),
    Case(53, r"rows\.jsonl:1: the chat template cannot render the turns \(user, assistant\): roles must alternate \(line 1 of the template\)", put("max_seq_len: 64", "chat_template: \"{{ raise_exception('roles must alternate') }}\"").replace("completion", "chat"), CHAT),
    Case(53, r"data\.chat_template cannot be used: it takes more than (2 seconds|256 MiB)", put("max_seq_len: 64", f'chat_template: "{ENDLESS}"').replace("completion", "chat"), CHAT),
]  # fmt: skip

# Said in a line, and no mistake.
REMARKS = [
    (9, rate("5e-2"), "optimizer.learning_rate 0.05 is unusually large: most runs diverge above 0.01"),
    (22, rate("1e-3\n  warmup_steps: 9"), "optimizer.warmup_steps 9 is not below training.max_steps 1: the learning rate never reaches its peak"),
    (23, put("max_steps: 1", "max_steps: 1, save_every: 5"), "training.save_every 5 is above training.max_steps 1: the only checkpoint is at the end"),
    (26, put("tiny:llama", "someone/model"), "not checked: someone/model (a model of the hub)"),
]  # fmt: skip

ELSEWHERE = {
    16: "any even number of inputs can be stored as NF4; tests/oracle/test_nf4_against_bitsandbytes.py has rows of no whole block",
    18: "a paged optimizer without a GPU is one printed line, asked and using: tests/training/test_loop.py",
    19: "bfloat16 without the hardware computes, slowly; model.dtype: auto takes float32 there",
    28: "a branch is resolved at the start and the run records the commit",
    45: "test_a_tokenizer_of_another_model below",
    47: "rows have no ids; an overlap of training and validation rows is a note: tests/data/test_tokens.py",
    49: "the last batch of an epoch may be short, so that no number of rows is too few",
    50: "tests/data/test_sources.py",
}

_RUN_ALL = """
import contextlib, io, json, os, sys, time
from dorakit.cli.app import main
answers = []
for directory, argv in json.load(sys.stdin):
    os.chdir(directory)
    sys.argv = ["dorakit", *argv]
    out, err, code, began = io.StringIO(), io.StringIO(), 0, time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
    answers.append([code, out.getvalue(), err.getvalue(), time.perf_counter() - began, "torch" in sys.modules])
json.dump(answers, sys.__stdout__)
"""


def names(cases: list[Case]) -> list[str]:
    return [f"{case.entry}-{number}" for number, case in enumerate(cases)]


def holds(case: Case, code: int, out: str, err: str) -> None:
    assert re.search(case.said, err, re.MULTILINE), err
    assert code == case.code
    assert "Traceback" not in err and "bug in dorakit" not in err
    assert out == ""
    assert not case.never or case.never not in err
    assert len(err) < 3000


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Case], list[object]]]:
    """What a fresh interpreter says to all cases that need no torch."""
    cases = RECIPES + PLAIN_ROWS
    places = [case.write(tmp_path_factory.mktemp(f"case{case.entry}-")) for case in cases]
    asked = [(str(place), case.argv) for place, case in zip(places, cases, strict=True)]
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    yield lambda case: said[cases.index(case)]
    assert not [place for place in places if (place / "owned").exists()], "a recipe ran a command"


@pytest.mark.parametrize("case", RECIPES + PLAIN_ROWS, ids=names(RECIPES + PLAIN_ROWS))
def test_without_torch(case: Case, answers: Callable[[Case], list[object]]) -> None:
    code, out, err, seconds, imported = answers(case)
    holds(case, code, out, err)
    assert not imported
    assert seconds < 2


@pytest.mark.parametrize("case", TOKENISED, ids=names(TOKENISED))
def test_with_a_tokenizer(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dorakit.cli import app

    monkeypatch.chdir(case.write(tmp_path))
    monkeypatch.setattr("sys.argv", ["dorakit", *case.argv])
    with pytest.raises(SystemExit) as leaving:
        app.main()
    out, err = capsys.readouterr()
    holds(case, int(str(leaving.value.code)), out, err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("case", [RECIPES[0], RECIPES[-1], PLAIN_ROWS[4]], ids=["key", "foreign", "rows"])
def test_as_typed(case: Case, tmp_path: Path) -> None:
    """A real process, in which importing torch is an error, answers at once."""
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "torch.py").write_text("raise SystemExit('torch was imported')")
    paths = [str(poison), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-m", "dorakit", *case.argv],
        cwd=case.write(tmp_path),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    holds(case, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("entry", "recipe", "said"), REMARKS, ids=[f"{row[0]}" for row in REMARKS])
def test_remarks(entry: int, recipe: str, said: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from dorakit.cli.app import app

    place = Case(entry, said, recipe).write(tmp_path)
    result = CliRunner().invoke(app, ["validate", str(place / "r.yaml")])
    assert result.exit_code == 0
    assert said in result.stdout


def test_json_is_a_recipe_too(tmp_path: Path) -> None:
    """Entry 34: what looks like JSON is YAML, and is read as such."""
    from dorakit.recipe.loader import load_recipe

    text = '{"version": 1, "model": {"base": "tiny:llama"}, "adapter": {"mode": "lora"}, "optimizer": {"learning_rate": 1e-3}, '
    (tmp_path / "r.json").write_text(text + '"data": {"train": [{"path": "rows.jsonl", "format": "text"}]}}')
    assert load_recipe(str(tmp_path / "r.json"), []).adapter.mode == "lora"


def test_a_tokenizer_of_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Entry 45, and its padding."""
    from dorakit.cli import app
    from dorakit.model.tiny import tiny_model, tiny_tokenizer

    case = Case(45, r"rows\.jsonl:2: token id 259, and the model's embedding has 259 rows: the tokenizer is another model's\n +use the tokenizer", put("tiny:llama", "./base"), ROW + ROW.replace(" 2", " zwei"))  # fmt: skip
    monkeypatch.chdir(case.write(tmp_path))
    tokenizer = tiny_tokenizer()
    tiny_model("llama").save_pretrained("base")
    for padding, said in (
        (tokenizer.pad_token, case.said),
        ("zwei", r"\./base|/base: the tokenizer pads with token 259"),
    ):
        tokenizer.add_tokens(["zwei"])
        tokenizer.pad_token = padding
        tokenizer.save_pretrained("base")
        monkeypatch.setattr("sys.argv", ["dorakit", *case.argv])
        with pytest.raises(SystemExit) as leaving:
            app.main()
        out, err = capsys.readouterr()
        assert re.search(said, err), err
        holds(case if padding != "zwei" else Case(45, said), int(str(leaving.value.code)), out, err)


def test_every_entry_has_its_place() -> None:
    here = {case.entry for case in RECIPES + PLAIN_ROWS + TOKENISED} | {row[0] for row in REMARKS}
    assert here | set(ELSEWHERE) == set(range(1, 54))
    assert not here & set(ELSEWHERE)


def test_rows_are_read_before_a_base_is_loaded(
    trained: Callable[[str], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of `eval`; test_without_torch holds it of `train` and `data`."""
    from dorakit.cli import app
    from dorakit.evaluation import task

    (tmp_path / "rows.jsonl").write_text(ROW + "{\n")
    monkeypatch.setattr(task, "open_target", None)
    target = str(trained("lora").path)  # type: ignore[attr-defined]
    monkeypatch.setattr("sys.argv", ["dorakit", "eval", target, "--data", str(tmp_path / "rows.jsonl"), "--quiet"])
    with pytest.raises(SystemExit) as leaving:
        app.main()
    assert leaving.value.code == 2
    assert "rows.jsonl:2: not JSON: Expecting property name" in capsys.readouterr().err
