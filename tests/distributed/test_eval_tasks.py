"""Tasks shared out over ranks: the result of one process, its files, and going on after a failure.

Batches are those of one process, and so every bit of what comes of them; but where an evaluation by likelihood goes on, what is
left makes other batches than the whole did, which moves the last digits of float32: those are compared to a relative 1e-5.
"""

import errno
import json
import os
import signal
from dataclasses import replace

import pytest
import torch.distributed as dist
from groups import dorakit_group, other_weights
from made_tasks import LETTERS, write_letters, write_task
from test_one_fails import check
from tiny_runs import tiny_run

from dorakit.evaluation import task as rows_of_recipe
from dorakit.evaluation.tasks import answering, measure, table
from dorakit.model.logits import Logits

# As LETTERS, by the protocol of the math tasks.
SUMS = replace(table.TASKS["AddSub"], name="sums", prompt="{instruction} :", max_new_tokens=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"), "dora", ("optimizer.learning_rate=3e-3",))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Rows of the tasks below. By two rows, sums fill the batches and the rounds of two ranks, the others do not."""
    monkeypatch.setitem(table.TASKS, "letters", LETTERS)
    monkeypatch.setitem(table.TASKS, "sums", SUMS)
    write_letters(tmp_path, "8B8D8F8H8J8")
    write_task(tmp_path, "ARC-Easy", 7)
    write_task(tmp_path, "boolq", 9)
    sums = [{"instruction": f"{'x' * (i % 3)} {i * i} +", "answer": "7.0"} for i in range(8)]
    (tmp_path / "sums.test.json").write_text(json.dumps(sums))
    return tmp_path


def measured(size, run, data, file, task, *more, **options):
    """How the group ended."""
    command = ["eval", run.path, "--task", task, "--data", data, "--output", file, "--batch-size", 2, *more]
    return dorakit_group(size, *command, **options)


def content(file):
    """Result and answers, without times and places."""
    result = json.loads(file.read_text())
    answers = {}
    for part in result["tasks"]:
        answers[part["task"]] = [json.loads(line) for line in open(part["predictions"], encoding="utf-8")]
        for moving in ("seconds", "predictions"):
            del part[moving]
        for line in answers[part["task"]]:
            del line["seconds"]
    del result["seconds"], result["output"]
    return result, answers


def calls(place):
    """For `before`: each rank counts the rows that it generates for or reads, in a file of its own."""

    def count(rank):
        generate, read = answering.generate_ids, Logits.at

        def note(rows):
            with open(place / f"calls-{rank}", "a") as file:
                file.write("x" * len(rows))

        def generating(*given, **options):
            note(given[2])
            return generate(*given, **options)

        def reading(self, *given):
            note(given[0]["input_ids"])
            return read(self, *given)

        answering.generate_ids, Logits.at = generating, reading

    return count


def counted(place):
    return sorted(len(file.read_text()) for file in place.glob("calls-*"))


def at_second_batch(rank, act):
    """For `before`: one rank acts when it begins its second batch."""

    def arm(own):
        generate, begun = answering.generate_ids, []

        def doomed(*given, **options):
            begun.append(1)
            if own == rank and len(begun) == 2:
                act()
            return generate(*given, **options)

        answering.generate_ids = doomed

    return arm


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("task", "more"),
    [("letters", []), ("sums", []), ("boolq,ARC-Easy", ["--scoring", "logprob"])],
    ids=["beam", "math", "logprob"],
)
def test_as_one_process(run, data, task, more):
    """Planted bugs caught: the first batch of a round on every rank; the batches of a round mixed up; ranks that all write,
    or speak."""
    found = []
    for size in (1, 2, 3):
        ended = measured(size, run, data, data / f"{size}.json", task, *more, "--json")
        assert ended.codes == [0] * size, ended.ranks
        assert all(rank.out == rank.err == "" for rank in ended.ranks[1:])
        assert not list(data.glob("*.unfinished.jsonl"))
        found.append(content(data / f"{size}.json"))
    assert found[0] == found[1] == found[2]
    assert all(0 < part["correct"] < part["rows"] for part in found[0][0]["tasks"])


@pytest.mark.parametrize("rank", [0, 1])
def test_one_is_killed_and_another_number_goes_on(run, data, rank):
    """Planted bugs caught: answers that wait in a buffer; what is there already, known to the first rank alone."""
    measured(1, run, data, data / "whole.json", "letters")
    ended = measured(
        2,
        run,
        data,
        data / "r.json",
        "letters",
        before=at_second_batch(rank, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    )
    assert ended.codes[rank] == -signal.SIGKILL and ended.codes[1 - rank] == 3, ended.ranks
    assert "gone without a word" in ended.ranks[1 - rank].err and "the same command" in ended.ranks[1 - rank].err
    assert not (data / "r.json").exists()
    assert (data / "r.unfinished.jsonl").read_text().count("\n") == 4
    ended = measured(3, run, data, data / "r.json", "letters", before=calls(data))
    assert ended.codes == [0, 0, 0] and "letters: 4 of 11 answers are there already" in ended.ranks[0].err, ended.ranks
    assert counted(data) == [2, 2, 3]
    (result, answers), (whole, alone) = content(data / "r.json"), content(data / "whole.json")
    assert result["tasks"][0].pop("answered_before") == 4 and whole["tasks"][0].pop("answered_before") == 0
    assert (result, answers) == (whole, alone)
    ended = measured(2, run, data, data / "r.json", "letters", before=calls(data))
    assert ended.codes == [0, 0] and content(data / "r.json")[1] == alone
    assert counted(data) == [2, 2, 3]


def test_a_likelihood_goes_on_with_another_number(run, data):
    """Planted bug caught: every rank reads everything. Of three, one finds no batch left."""
    measured(1, run, data, data / "whole.json", "ARC-Easy", "--scoring", "logprob")
    _, whole = content(data / "whole.json")
    lines = (data / "whole.predictions.jsonl").read_text().splitlines(keepends=True)
    (data / "r.unfinished.jsonl").write_text("".join(lines[number] for number in (5, 0, 2)))
    ended = measured(3, run, data, data / "r.json", "ARC-Easy", "--scoring", "logprob", before=calls(data))
    assert ended.codes == [0, 0, 0] and counted(data) == [2, 2], ended.ranks
    result, answers = content(data / "r.json")
    assert result["tasks"][0]["answered_before"] == 3
    for line, alone in zip(answers["ARC-Easy"], whole["ARC-Easy"], strict=True):
        assert line.pop("log_likelihoods") == pytest.approx(alone.pop("log_likelihoods"), rel=1e-5)
        assert line == alone


def test_no_memory_on_the_other(run, data):
    """Planted bug caught: every rank tells of it."""
    ended = measured(2, run, data, data / "r.json", "letters", before=at_second_batch(1, lambda: fail(MemoryError())))
    check(ended, 4, "out of memory")
    assert (data / "r.unfinished.jsonl").read_text().count("\n") == 4


def test_ctrl_c_on_the_other(run, data):
    """Planted bug caught: a rank that goes without telling the others."""
    ended = measured(
        2, run, data, data / "r.json", "letters", before=at_second_batch(1, lambda: signal.raise_signal(signal.SIGINT))
    )
    check(ended, 130, "stopped")


def test_the_disk_of_the_writer_is_full(run, data):
    """Planted bugs caught: others that end well before the first one writes, or with another exit code."""

    def full(rank):
        measure.finish = lambda *given: fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "r.json"))

    check(measured(2, run, data, data / "r.json", "letters", before=full), 4, "No space left")
    assert not (data / "r.json").exists() and (data / "r.unfinished.jsonl").read_text().count("\n") == 11


@pytest.mark.parametrize(
    ("what", "said"), [("rows", "rows and settings of letters: rank 1 has"), ("weights", "the weights: rank 1 has")]
)
def test_other_rows_or_weights_on_one(run, data, what, said):
    """Planted bug caught: ranks that are not compared, measure different things, or wait for batches that never come."""

    def other(rank):
        if not rank:
            return
        if what == "rows":
            own = measure.read_tasks
            measure.read_tasks = lambda *given, **options: own(*given, **{**options, "limit": 3})
        else:
            other_weights(measure, "open_target")

    check(measured(2, run, data, data / "r.json", "letters", before=other), 3, said)


@pytest.mark.parametrize("more", [[], ["--task", "letters"]], ids=["rows", "task"])
def test_the_group_meets_before_a_model_is_loaded(run, data, more):
    """On GPUs, meeting gives each rank its own. Planted bug caught: all models on the first GPU."""

    def watch(rank):
        for module in (rows_of_recipe, measure):

            def watched(*given, own=module.open_target, **options):
                assert dist.is_initialized()
                return own(*given, **options)

            module.open_target = watched

    ended = dorakit_group(
        2, "eval", run.path, *more, "--output", data / "r.json", *(["--data", data] if more else []), before=watch
    )
    assert ended.codes == [0, 0], ended.ranks


def test_the_harness_is_for_one_process(run):
    """Planted bug caught: every rank measures all of it."""
    check(dorakit_group(2, "eval", run.path, "--task", "lm-eval:arc_easy"), 2, "measured by one process")
