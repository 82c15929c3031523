"""One rank fails: every rank ends soon, with one exit code and one message, and the run can go on."""

import signal

import pytest
from dying_runs import digest
from groups import dorakit_group, other_weights

from dorakit import build

SOON = 45  # seconds, of which a training takes some ten


def check(ended, code: int, said: str) -> None:
    assert ended.codes == [code] * len(ended.codes), ended.ranks
    told = [rank.err for rank in ended.ranks if said in rank.err]
    assert len(told) == 1 and len(ended.errors) <= 1, ended.ranks
    assert ended.seconds < SOON


def check_goes_on(site, unbroken) -> None:
    assert dorakit_group(2, "train", "--resume", site.run).codes == [0, 0]
    assert digest(site.run) == digest(unbroken.run)


def test_the_disk_of_the_writer_is_full(site, unbroken):
    ended = dorakit_group(2, "train", site.recipe, failpoints_of={0: "checkpoint.file:6=enospc"})
    check(ended, 4, "could not be written")
    check_goes_on(site, unbroken)


def test_no_memory_on_the_other(site, unbroken):
    ended = dorakit_group(2, "train", site.recipe, failpoints_of={1: "micro:9=memory"})
    check(ended, 4, "out of memory")
    check_goes_on(site, unbroken)


def test_nan_on_the_other(site):
    """The rows of the other rank's micro-batch are named."""
    ended = dorakit_group(2, "train", site.recipe, failpoints_of={1: "loss:5=nan"})
    check(ended, 5, "the loss is not finite")
    assert (site.run / "nonfinite.jsonl").read_text().count('"loss": "nan"') == 1


def test_nan_passed_over(site):
    ended = dorakit_group(
        2, "train", site.recipe, "--set", "training.nonfinite={skip: 1}", failpoints_of={1: "loss:5=nan"}
    )
    assert ended.codes == [0, 0], ended.ranks
    assert site.facts()["skipped_steps"] == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one(site, unbroken, rank):
    ended = dorakit_group(2, "train", site.recipe, failpoints_of={rank: "micro:9=sigterm"})
    check(ended, 143, "a checkpoint is saved")
    assert site.checkpoints()[-1].name == "step-000000005"  # that of the step in which it came, which the message names
    check_goes_on(site, unbroken)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_is_killed(site, unbroken, rank):
    ended = dorakit_group(2, "train", site.recipe, failpoints_of={rank: "micro:9=kill9"})
    assert ended.codes[rank] == -signal.SIGKILL and ended.codes[1 - rank] == 3, ended.ranks
    assert "gone without a word" in ended.ranks[1 - rank].err and ended.seconds < SOON
    check_goes_on(site, unbroken)


def test_other_rows_on_one(site):
    def other(rank):
        if rank:
            from dorakit.data import tokens

            tokens._fingerprint = lambda train, validation: "other"

    check(dorakit_group(2, "train", site.recipe, before=other), 3, "the rows: rank 1 has")
    assert not list((site.run / "checkpoints").glob("step-*"))


def test_another_base_on_one(site):
    def other(rank):
        if rank:
            other_weights(build, "load_weights")

    check(dorakit_group(2, "train", site.recipe, before=other), 3, "the base in memory: rank 1 has")


def test_a_typo_is_said_once(site):
    ended = dorakit_group(2, "train", site.recipe, "--set", "training.batchsize=3")
    check(ended, 2, "batchsize")


def test_one_never_comes(site):
    """A rank whose peers do not come says so, in the time that the recipe gives."""
    import os

    def absent(rank):
        if rank:
            os._exit(0)

    ended = dorakit_group(2, "train", site.recipe, "--set", "parallel.timeout_minutes=0.1", before=absent)
    assert ended.codes == [3, 0] and "did not find the others" in ended.ranks[0].err, ended.ranks
