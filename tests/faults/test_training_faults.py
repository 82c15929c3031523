"""The rows of the fault matrix that happen to a training: whatever happens, the resumed run ends with the same bytes."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
from hashlib import sha256
from itertools import zip_longest

import pytest
from dying_runs import STEPS, Site, digest, dorakit, make_site

from dorakit.data.order import VALIDATION, shuffled
from dorakit.run import Run
from dorakit.training import prepare

KILLED = -signal.SIGKILL


def ends_alike(site: Site, unbroken: Site, *arguments: str) -> str:
    """Resume, and compare weights and logged lines with the unbroken run's; what was printed."""
    ended = site.resume(*arguments)
    assert ended.code == 0, ended.err
    assert digest(site.run) == digest(unbroken.run)
    assert site.metrics() == unbroken.metrics()
    assert not list(site.run.rglob(".tmp-*")) and not list(site.run.rglob(".trash-*"))
    return ended.err


KILLS = [
    *((1, f"step:{k}") for k in range(1, STEPS + 1)),
    *((2, f"micro:{k}") for k in (1, 4, 9, 23)),
    *((3, f"checkpoint.file:{k}") for k in (1, 4, 5, 6, 7, 8, 21, 24)),
    *((3, f"checkpoint.{part}:{k}") for part in ("written", "synced", "renamed") for k in (1, 2, 6)),
    *((4, f"prune:{k}") for k in (1, 4)),
    *((5, f"result.{part}:1") for part in ("file", "written", "synced", "renamed")),
]


@pytest.mark.parametrize(("row", "place"), KILLS, ids=[place for _, place in KILLS])
def test_kill_at_any_instant(site, unbroken, matrix, row, place):
    """Dies if a staging directory can pass for a checkpoint, or something older goes before the new one is whole."""
    ended = site.train(failpoint=f"{place}=kill9")
    assert ended.code == KILLED, ended.err
    said = ends_alike(site, unbroken)
    assert "vanished: killed, or out of memory" in said and "training.micro_batch_size=1" in said
    matrix(row, f"kill -9 at {place}", "resumes, same bytes", "same bytes and metrics")


def test_the_line_that_goes_on_can_be_typed(tmp_path):
    """Dies if a blank in the path makes two words of it, after one signal or two."""
    site = make_site(tmp_path / "my runs")
    for failpoint in ("micro:1=sigterm", "micro:1=sigterm,micro:2=sigterm"):
        ended = site.train(failpoint=failpoint)
        assert ended.code == 143
        line = ended.err.rstrip().splitlines()[-1]
        assert shlex.split(line[line.index("dorakit ") :]) == ["dorakit", "train", "--resume", str(site.run)]
        shutil.rmtree(site.run)


def test_stop_at_the_next_boundary(site, unbroken, matrix):
    """Row 6. Dies if a save happens inside accumulation, or if the step under way is lost."""
    ended = site.train(failpoint="micro:5=sigterm")
    assert ended.code == 143
    assert f"dorakit train --resume {site.run}" in ended.err
    assert [path.name for path in site.checkpoints()] == ["step-000000002", "step-000000003"]
    assert "vanished" not in ends_alike(site, unbroken)
    matrix(6, "SIGTERM inside a step", "saved at its end, 143, same bytes", "143, same bytes")


@pytest.mark.parametrize(("first", "second", "code"), [("sigint", "sigint", 130), ("sigterm", "sigterm", 143)])
def test_twice_is_at_once(site, unbroken, matrix, first, second, code):
    """Row 7. Dies if a second signal waits for the boundary too, or leaves something that cannot be resumed."""
    once = site.train(failpoint=f"micro:5={first}")
    assert once.code == code and len(site.checkpoints()) == 2
    shutil.rmtree(site.run)
    twice = site.train(failpoint=f"micro:5={first},micro:6={second}")
    assert twice.code == code and "stopped at once" in twice.err
    assert twice.err.rstrip().endswith(f"dorakit train --resume {site.run}")
    assert [path.name for path in site.checkpoints()] == ["step-000000002"]
    ends_alike(site, unbroken)
    matrix(7, f"{first} once / twice", f"saved, {code} / at once, {code}", "both resumed to the same bytes")


@pytest.mark.parametrize(("name", "code"), [("sigint", 130), ("sigterm", 143)])
def test_a_signal_outside_the_steps(site, unbroken, matrix, name, code):
    """Row 7. Dies if it ends the run without a word, or if the run is said to have vanished."""

    def while_the_base_loads():
        prepare.build_model = lambda *_, **__: signal.raise_signal(getattr(signal, name.upper()))

    ended = site.train(before=while_the_base_loads)
    assert (ended.code, ended.err) == (code, "stopped before the run began: nothing is left of it\n")
    assert not site.run.exists()
    ended = site.train(failpoint=f"result.file:1={name}")
    assert ended.code == code and ended.err.rstrip().endswith(f"dorakit train --resume {site.run}")
    assert not (site.run / "adapter").exists()
    assert "vanished" not in ends_alike(site, unbroken)
    matrix(7, f"{name} while the base loads / in the export", f"at once, said, {code}", f"{code}, same bytes after")


@pytest.mark.parametrize("place", [f"step:{STEPS}", "checkpoint.file:24"])
def test_a_signal_at_the_last_step(site, unbroken, matrix, place):
    """Row 8. Dies if a run that is done is stopped before its result is written."""
    ended = site.train(failpoint=f"{place}=sigterm")
    assert ended.code == 0 and site.facts()["state"] == "finished", ended.err
    assert digest(site.run) == digest(unbroken.run)
    matrix(8, f"SIGTERM at {place}, the last", "finished, 0", "finished, 0")


@pytest.mark.parametrize("place", ["checkpoint.file:1", "checkpoint.written:1", "checkpoint.renamed:1"])
def test_a_signal_while_saving(site, unbroken, matrix, place):
    """Row 8. Dies if a signal can break a save, or waits for another step."""
    ended = site.train(failpoint=f"{place}=sigterm")
    assert ended.code == 143 and [path.name for path in site.checkpoints()] == ["step-000000002"]
    ends_alike(site, unbroken)
    matrix(8, f"SIGTERM at {place}", "save is finished, 143", "143, same bytes")


@pytest.mark.parametrize(
    "place", ["checkpoint.file:5", "checkpoint.file:8", "checkpoint.written:2", "checkpoint.synced:2"]
)
def test_a_full_disk(site, unbroken, matrix, place):
    """Row 9. Dies if a half-written checkpoint stays, the one before it goes, or the message has no numbers."""
    ended = site.train(failpoint=f"{place}=enospc")
    assert ended.code == 4, ended.err
    assert "No space left on device; it needs" in ended.err and "step-000000002 is whole" in ended.err
    assert "Traceback" not in ended.err and f"dorakit train --resume {site.run}" in ended.err
    assert [path.name for path in (site.run / "checkpoints").iterdir()] == ["step-000000002"]
    ends_alike(site, unbroken)
    matrix(9, f"ENOSPC at {place}", "exit 4, nothing half, numbers", "exit 4, same bytes after")


@pytest.mark.parametrize("place", ["directory.written:2", "result.file:1", "result.synced:1"])
def test_a_full_disk_for_best_weights_and_the_result(site, matrix, place):
    """Row 9. Dies if they go without numbers, or without the line that goes on."""
    ended = site.train("--set", "training.keep_best=true", failpoint=f"{place}=enospc")
    assert ended.code == 4, ended.err
    assert re.search(r"it needs [\d,]+ bytes, [\d,]+ are free; step-\d+ is whole", ended.err)
    assert "Traceback" not in ended.err and f"dorakit train --resume {site.run}" in ended.err
    assert not list(site.run.rglob(".tmp-*")) and not (site.run / "adapter").exists()
    assert site.resume().code == 0
    matrix(9, f"ENOSPC at {place}, best weights or result", "exit 4, numbers", "exit 4, resumes")


def test_a_real_limit_on_files(site, unbroken, matrix):
    """Row 9 without a failpoint. Dies if only ENOSPC is known, or what safetensors says is not understood."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    ended = site.train(before=limited)
    assert ended.code == 4, ended.err
    assert "File too large; it needs" in ended.err and not site.checkpoints()
    ends_alike(site, unbroken)
    matrix(9, "RLIMIT_FSIZE", "exit 4, nothing half", "exit 4, same bytes after")


def test_no_room_is_said_before_training(site, monkeypatch, matrix):
    """Row 9 at the start. Dies if it is only found out at the first checkpoint."""
    usage = shutil.disk_usage(site.place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    ended = site.train()
    assert ended.code == 4 and "3 checkpoints and the result need" in ended.err
    assert not site.checkpoints() and "step 1/" not in ended.err
    matrix(9, "1,000 bytes free at the start", "exit 4 before the first step", "exit 4, no step")


def loads_nothing():
    """End the process, with a code that nothing else has, where a base would be loaded."""
    prepare.build_model = lambda *_, **__: os._exit(99)


def test_a_run_that_may_not_be_written(half_done, matrix):
    """Row 10. Dies if the model is loaded first, or the path is not named."""
    assert half_done.resume(before=loads_nothing).code == 99
    ended = half_done.resume(failpoint="lock:1=eacces", before=loads_nothing)
    assert ended.code == 3 and str(half_done.run) in ended.err and "Permission denied" in ended.err
    matrix(10, "EACCES in the run directory", "exit 3, nothing loaded", "exit 3, path named")


def damage(file, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "half":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how.endswith("less"):
        content = content[: -1 if how.startswith("one") else -2]
    else:
        content[{"first bit": 8, "last bit": -1}[how]] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["half", "empty", "one byte less", "first bit", "last bit"])
@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over(half_done, unbroken, matrix, name, how):
    """Rows 11 and 12. Dies if anything parses a file before its hash is compared, or if nothing is said."""
    newest = half_done.checkpoints()[-1]
    if (name, how) == ("manifest.json", "one byte less"):
        how = "two bytes less"  # the last one is a line's end, which nothing hangs on
    damage(newest / name, how)
    said = ends_alike(half_done, unbroken)
    assert "passed over" in said and f"{newest.name}/{name}" in said.replace("\n", "")
    matrix(11 if "bit" not in how else 12, f"{name}: {how}", "named, the one before is used", "named, same bytes")


@pytest.mark.parametrize("how", ["missing", "newer", "extra", "outside", "huge"])
def test_a_manifest_that_cannot_be_one(half_done, unbroken, matrix, how):
    """Row 13. Dies if a manifest can name other files than a checkpoint's own."""
    newest = half_done.checkpoints()[-1]
    file = newest / "manifest.json"
    stated = json.loads(file.read_text())
    if how == "missing":
        file.unlink()
    elif how == "huge":
        file.write_text(" " * (1 << 17) + json.dumps(stated))
    else:
        if how == "newer":
            stated["schema"] = 99
        else:
            stated["files"]["../../rows.jsonl" if how == "outside" else "more.safetensors"] = {
                "bytes": 1,
                "sha256": "0",
            }
        file.write_text(json.dumps(stated))
    said = ends_alike(half_done, unbroken)
    assert {"newer": "schema 99", "extra": "'more.safetensors'", "outside": "'../../rows.jsonl'"}.get(
        how, "passed over"
    ) in said
    matrix(13, f"manifest {how}", "named, the one before is used", "named, same bytes")


def test_no_checkpoint_left(half_done, matrix):
    """Row 14. Dies if a run begins again in silence."""
    for path in half_done.checkpoints():
        damage(path / "adapter.safetensors", "last bit")
    ended = half_done.resume()
    assert ended.code == 3 and ended.err.count("is damaged") == 2 and "step 1/" not in ended.err
    matrix(14, "all checkpoints damaged", "exit 3", "exit 3, both named")


def test_a_checkpoint_by_name(half_done, unbroken, matrix):
    """Row 15. Dies if another checkpoint is taken, or if pruning counts those that are set aside."""
    four, six = half_done.checkpoints()
    damage(six / "state.json", "last bit")
    ended = dorakit("train", "--resume", six)
    assert ended.code == 3 and f"{six.name}/state.json is damaged" in ended.err
    damage(six / "state.json", "last bit")  # as it was
    absent = dorakit("train", "--resume", six.with_name("step-000000999"))
    assert absent.code == 3 and "step-000000004, step-000000006" in absent.err
    ended = dorakit("train", "--resume", four)
    assert ended.code == 0 and digest(half_done.run) == digest(unbroken.run)
    assert "going on after step 4" in ended.err and (six.with_name(f"aside-{six.name}")).is_dir()
    matrix(15, "the named checkpoint is damaged / absent", "exit 3", "exit 3; an older one by name: same bytes")


def trained_rows(rows: list[str]) -> list[str]:
    """Those that are not held out: 8 of them are, drawn from their number and the seed."""
    held_out = set(shuffled(len(rows), 42, VALIDATION)[:8].tolist())
    return [row for index, row in enumerate(rows) if index not in held_out]


@pytest.mark.parametrize("how", ["edited", "added", "removed", "reordered"])
def test_rows_that_changed(half_done, unbroken, matrix, how):
    """Row 16. Dies if the first row that changed is another one than is said."""
    file = half_done.place / "rows.jsonl"
    rows = file.read_text().splitlines()
    before = list(rows)
    if how == "edited":
        rows[40] = rows[40].replace("Say 40", "Say 41")
    elif how == "added":
        rows.append(rows[0].replace("Say 0", "Say 99"))
    elif how == "removed":
        del rows[30]
    else:
        rows[20], rows[21] = rows[21], rows[20]
    file.write_text("\n".join(rows) + "\n")
    ended = half_done.resume()
    assert ended.code == 3, ended.err
    assert "--accept-change data" in ended.err
    then, now = trained_rows(before), trained_rows(rows)
    place = next(place for place, (one, other) in enumerate(zip_longest(then, now)) if one != other)
    told = f"train row {place + 1} is the first that changed, now "
    assert told in ended.err
    assert f"rows.jsonl:{rows.index(now[place]) + 1} ({len(then)} rows then, {len(now)} now)" in ended.err
    accepted = half_done.resume("--accept-change", "data")
    assert accepted.code == 0 and "changed, accepted: data" in accepted.err
    assert any("changed, accepted: data" in note for note in half_done.facts()["notes"])
    matrix(16, f"a row {how}", "exit 3, first row named", f"exit 3, row {place + 1} named")


def test_digests_of_rows_that_are_damaged(half_done, matrix):
    """Row 16. Dies if one bit of what only tells which row changed is called a bug in dorakit."""
    (digests,) = (half_done.run / "rows").iterdir()
    content = bytearray(digests.read_bytes())
    content[content.index(b'"train"') + 3] ^= 1
    digests.write_bytes(content)
    rows = half_done.place / "rows.jsonl"
    rows.write_text(rows.read_text().replace("Third", "Fourth"))
    ended = half_done.resume()
    assert ended.code == 3 and f"{digests.name} is damaged" in ended.err and "--accept-change data" in ended.err
    matrix(16, "one bit of the rows' digests, and rows changed", "exit 3, said", "exit 3, said")


def test_a_recipe_that_changed(half_done, unbroken, matrix):
    """Row 17. Dies if a learning rate can change in silence, or a log interval not at all."""
    ended = half_done.resume("--set", "optimizer.learning_rate=2e-2", "--set", "adapter.dropout=0.0")
    assert ended.code == 3
    assert "optimizer.learning_rate: 0.01 then, 0.02 now" in ended.err and "adapter.dropout: 0.1 then" in ended.err
    assert "--accept-change adapter.dropout --accept-change optimizer.learning_rate" in ended.err
    wrong = half_done.resume("--accept-change", "optimizer.eps")
    assert wrong.code == 2 and "did not change" in wrong.err
    free = half_done.resume("--set", "training.log_every=3")
    assert free.code == 0 and "training.log_every: 1 then, 3 now" in free.err and "(bitwise)" in free.err
    assert digest(half_done.run) == digest(unbroken.run)
    assert "log_every: 3" in (half_done.run / "recipe.resolved.yaml").read_text()
    matrix(17, "learning rate / log interval changed", "exit 3 with both values / goes on", "as expected, same bytes")


@pytest.mark.parametrize("what", ["an absent checkpoint", "a changed setting", "no checkpoint that can be used"])
def test_what_needs_no_base_is_refused_before_it_is_loaded(half_done, matrix, what):
    """Rows 14, 15 and 17. Dies if minutes are spent on loading first, or if what may go on is refused."""
    arguments, said = ["--resume", half_done.run], "no checkpoint of "
    if what == "an absent checkpoint":
        arguments, said = (
            ["--resume", half_done.run / "checkpoints" / "step-000000099"],
            "step-000000004, step-000000006",
        )
    elif what == "a changed setting":
        arguments, said = (
            [*arguments, "--set", "optimizer.learning_rate=1"],
            "optimizer.learning_rate: 0.01 then, 1.0 now",
        )
        for passing in (["--accept-change", "optimizer.learning_rate"], ["--set", "optimizer.learning_rate=0.01"]):
            assert dorakit("train", *arguments, *passing, before=loads_nothing).code == 99
    else:
        for path in half_done.checkpoints():
            damage(path / "adapter.safetensors", "last bit")
    ended = dorakit("train", *arguments, before=loads_nothing)
    assert ended.code == 3 and said in ended.err, ended.err
    matrix(15, what, "exit 3, nothing loaded", "exit 3, nothing loaded")


def test_the_settings_of_a_damaged_checkpoint_are_not_asked(half_done):
    """Row 17. Dies if it refuses what the checkpoint before, which will be used, does not."""
    state = half_done.checkpoints()[-1] / "state.json"
    state.write_text(state.read_text().replace('"0.01"', '"0.02"'))
    assert half_done.resume(before=loads_nothing).code == 99


def test_an_accepted_change_is_recorded(half_done, unbroken, matrix):
    """Row 17. Dies if an accepted change is not said, not kept, or called bitwise."""
    file = half_done.recipe
    file.write_text(file.read_text().replace("learning_rate: 1e-2", "learning_rate: 2e-2"))
    ended = half_done.train("--resume", str(half_done.run), "--accept-change", "optimizer.learning_rate")
    assert ended.code == 0 and "resumable, not bitwise" in ended.err
    assert digest(half_done.run) != digest(unbroken.run)
    assert Run.open(half_done.run).recipe.optimizer.learning_rate == 2e-2
    matrix(17, "--accept-change optimizer.learning_rate", "goes on, recorded", "goes on, recorded")


@pytest.mark.parametrize("what", ["model.safetensors", "tokenizer.json", "template"])
def test_another_base(tmp_path, matrix, what):
    """Row 18. Dies if weights, tokenizer or template may be others than those of the checkpoint."""
    from dorakit.model.source import resolve

    base = tmp_path / "base"
    shutil.copytree(resolve("tiny:llama").directory, base)
    site = make_site(tmp_path / "site", base=str(base))
    assert site.train(failpoint="step:3=kill9").code == KILLED
    if what == "template":
        config = json.loads((base / "tokenizer_config.json").read_text())
        (base / "chat_template.jinja").unlink(missing_ok=True)
        config["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}{# another #}"
        (base / "tokenizer_config.json").write_text(json.dumps(config))
    elif what == "tokenizer.json":
        (base / what).write_text((base / what).read_text() + "\n")
    else:
        damage(base / what, "last bit")
    ended = site.resume()
    name = "template" if what == "template" else "base"
    assert ended.code == 3 and f"--accept-change {name}" in ended.err and what in ended.err
    matrix(18, f"another {what}", "exit 3, named", "exit 3, named")


def test_another_machine(half_done, matrix):
    """Row 19. Dies if a run is called bitwise that need not be."""
    for path in half_done.checkpoints():
        state, manifest = path / "state.json", path / "manifest.json"
        content = json.loads(state.read_text())
        content["computing"]["threads"] = "64"
        state.write_text(json.dumps(content))
        stated = json.loads(manifest.read_text())
        stated["files"]["state.json"] = {
            "bytes": state.stat().st_size,
            "sha256": sha256(state.read_bytes()).hexdigest(),
        }
        manifest.write_text(json.dumps(stated))
    ended = half_done.resume()
    assert ended.code == 0 and "resumable, not bitwise" in ended.err and "threads was 64" in ended.err
    matrix(19, "another number of threads", "said, goes on", "said, goes on")


def test_two_writers(half_done, unbroken, matrix):
    """Row 20. Dies if the lock is taken after the model is loaded, or not at all."""
    with Run.open(half_done.run).writing():
        ended = half_done.resume(before=loads_nothing)
    assert ended.code == 3 and f"process {os.getpid()} on " in ended.err and "since" in ended.err
    ends_alike(half_done, unbroken)
    matrix(20, "a second process", "exit 3, holder named, nothing loaded", "exit 3, holder named")


def test_a_lock_of_the_dead(half_done, unbroken, matrix):
    """Row 21. Dies if a lock outlives its process."""
    assert "process " in (half_done.run / "run.lock").read_text()
    ends_alike(half_done, unbroken)
    matrix(21, "the lock of a killed process", "taken over", "taken over, same bytes")


def test_not_finite(site, unbroken, matrix):
    """Row 22. Dies if a step is taken, or the rows are not named."""
    ended = site.train(failpoint="loss:6=nan")
    assert ended.code == 5 and "step 3: the loss is not finite" in ended.err and "rows.jsonl:" in ended.err
    assert site.facts()["state"] == "failed" and not site.checkpoints()[1:]
    (entry,) = [json.loads(line) for line in (site.run / "nonfinite.jsonl").read_text().splitlines()]
    assert entry["step"] == 3 and [micro["loss"] == "nan" for micro in entry["micro_batches"]] == [False, True]
    assert all(
        row in entry["micro_batches"][1]["rows"] for row in ended.err.split("rows: ")[1].split("\n")[0].split(", ")
    )
    ends_alike(site, unbroken)
    matrix(22, "NaN in the second micro-batch of step 3", "exit 5, no step, rows named", "exit 5; same bytes after")


def test_not_finite_too_often(site, matrix):
    """Row 23. Dies if a limit is not kept, or not counted across a resume."""
    allowed = ["--set", "training.nonfinite.skip=2"]
    ended = site.train(*allowed, failpoint="loss:3=nan,loss:5=nan,loss:9=nan")
    assert ended.code == 5 and "2 steps were passed over before" in ended.err
    shutil.rmtree(site.run)
    assert site.train(*allowed, failpoint="loss:3=nan,step:3=kill9").code == KILLED
    ended = site.resume(failpoint="loss:1=nan,loss:3=nan")
    assert ended.code == 5 and "step 4: the loss is not finite" in ended.err
    shutil.rmtree(site.run)
    ended = site.train(*allowed, failpoint="loss:3=nan,loss:5=nan")
    assert ended.code == 0 and site.facts()["skipped_steps"] == 2 and "passed over, 2 of at most 2" in ended.err
    matrix(23, "the third NaN with skip: 2", "exit 5", "exit 5; twice goes on")


def test_a_bad_row_far_down(site, matrix):
    """Row 32. Dies if it is found out in the middle of a run."""
    with open(site.place / "rows.jsonl", "a") as file:
        file.write('{"prompt": "no end\n')
    ended = site.train()
    assert ended.code == 2 and "rows.jsonl:61" in ended.err and not site.run.exists()
    matrix(32, "a bad row at the end of the file", "exit 2, file:line, no run", "exit 2, no run")


@pytest.mark.parametrize("how", ["moved", "linked"])
def test_another_place(half_done, unbroken, matrix, how):
    """Row 33. Dies if a run directory holds a path of its own."""
    other = half_done.place / "elsewhere" / "renamed"
    other.parent.mkdir()
    half_done.run.rename(other)
    if how == "linked":
        half_done.run.symlink_to(other)
    ended = dorakit("train", "--resume", half_done.run if how == "linked" else other)
    assert ended.code == 0, ended.err
    assert digest(other) == digest(unbroken.run)
    matrix(33, f"the run directory {how}", "resumes", "same bytes")


def test_clocks_say_nothing(half_done, unbroken, matrix):
    """Row 34. Dies if the newest checkpoint is the one with the latest time."""
    four, six = half_done.checkpoints()
    os.utime(four, (4e9, 4e9))
    os.utime(six, (1, 1))
    assert "going on after step 6" in ends_alike(half_done, unbroken)
    matrix(34, "times of checkpoints reversed", "order by step", "step 6, same bytes")


def test_out_of_memory(site, unbroken, matrix):
    """Row 35. Dies if it is called a bug, or nothing is said that shrinks it."""
    ended = site.train(failpoint="micro:9=memory")
    assert ended.code == 4 and "out of memory" in ended.err and "--set training.micro_batch_size=1" in ended.err
    ends_alike(site, unbroken)
    matrix(35, "MemoryError in step 5", "exit 4, says what shrinks it", "exit 4, same bytes after")


def test_smaller_passes_on_resume(half_done, unbroken, matrix):
    """Row 35: what the message advises can be done. Dies if it needs --accept-change."""
    ended = half_done.resume("--set", "training.micro_batch_size=1", "--set", "training.gradient_checkpointing=true")
    assert (
        ended.code == 0
        and "resumable, not bitwise" in ended.err
        and "training.micro_batch_size: 4 then, 1 now" in ended.err
    )
    matrix(35, "resumed with smaller passes", "goes on, said", "goes on, not called bitwise")


def test_nobody_reads(site, unbroken, matrix):
    """Row 36. Dies if a closed pipe ends the training."""

    def deaf():
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 2)
        os.dup2(writing, 1)

    ended = site.train(before=deaf)
    assert ended.code == 0 and digest(site.run) == digest(unbroken.run)
    matrix(36, "nobody reads stdout and stderr", "training goes on, exit 0", "exit 0, same bytes")


@pytest.mark.parametrize("terminal", [False, True])
def test_no_room_for_stderr(site, unbroken, matrix, terminal):
    """Row 36. Dies if a line, or the bar, that cannot be shown ends the training; or an error its exit code."""

    def full():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        sys.stderr.isatty = lambda: terminal

    ended = site.train(before=full)
    assert ended.code == 0 and digest(site.run) == digest(unbroken.run)
    assert site.resume(before=full).code == 3  # it is finished
    matrix(
        36, f"no room for stderr{', a terminal' if terminal else ''}", "training goes on, exit 0", "exit 0, same bytes"
    )


def test_no_room_for_logs(site, unbroken, matrix):
    """Row 36. Dies if a log ends a training."""

    def full():
        from dorakit.training import metrics

        metrics.open = lambda *_, **options: open("/dev/full", "a", **options)

    ended = site.train(before=full)
    assert ended.code == 0, ended.err
    assert digest(site.run) == digest(unbroken.run) and ended.err.count("lines are lost") == 1
    matrix(36, "no room for logs", "said once, training goes on", "exit 0, same bytes")


@pytest.mark.parametrize(
    ("looking", "settings"),
    [
        ("validated after each step", ["--set", "training.eval_every=1"]),
        ("saved after each step", ["--set", "training.save_every=1"]),
        ("--json --quiet", ["--json", "--quiet"]),
        (
            "logged rarely, with samples",
            ["--set", "training.log_every=5", "--set", 'training.sample_prompts=["Say 3: "]'],
        ),
        ("validation rows answered", ["--set", "training.sample_rows=3"]),
    ],
)
def test_looking_moves_no_byte(site, unbroken, matrix, looking, settings):
    """Row 30. Dies if evaluating repacks a weight or draws a number, or if saving does."""
    ended = site.train(*settings)
    assert ended.code == 0, ended.err
    assert digest(site.run) == digest(unbroken.run)
    assert ("{" in ended.out) == ("--json" in settings)
    matrix(30, looking, "same bytes", "same bytes")


def test_recomputed_activations_draw_the_same(site, unbroken, matrix):
    """Row 31. Dies if dropout is drawn anew when a layer is computed again."""
    ended = site.train("--set", "training.gradient_checkpointing=true")
    assert ended.code == 0, ended.err
    assert digest(site.run) == digest(unbroken.run)
    matrix(31, "gradient checkpointing with dropout", "same bytes", "same bytes")


def test_a_damaged_newer_checkpoint_pushes_none_out(half_done, unbroken):
    """Dies if pruning counts checkpoints that could not be used."""
    four, six = half_done.checkpoints()
    damage(six / "adapter.safetensors", "last bit")
    assert half_done.resume(failpoint="micro:1=sigterm").code == 143
    assert four.is_dir() and four.with_name("step-000000005").is_dir()
    ends_alike(half_done, unbroken)


def test_a_run_in_a_directory_called_checkpoints(half_done, unbroken):
    """Dies if a run is taken for a checkpoint of the directory above."""
    place = half_done.place / "checkpoints" / "run"
    place.parent.mkdir()
    half_done.run.rename(place)
    assert dorakit("train", "--resume", place).code == 0
    assert digest(place) == digest(unbroken.run)


def test_a_refused_resume_tells_of_the_dead_too(site):
    """Row 21. Dies if only a resume that succeeds says that the writer before it vanished."""
    assert site.train(failpoint="step:5=kill9").code == KILLED
    ended = site.resume("--set", "optimizer.learning_rate=1")
    assert ended.code == 3 and "vanished: killed, or out of memory" in ended.err
    assert any("vanished" in note for note in site.facts()["notes"])


def test_a_refused_resume_leaves_the_recipe(half_done):
    """Dies if a recipe that the checkpoint does not fit is recorded before it is tried."""
    file = half_done.run / "recipe.resolved.yaml"
    before = file.read_text()
    ended = half_done.resume("--set", "adapter.rank=8", "--accept-change", "adapter.rank")
    assert ended.code == 3 and "does not fit the model" in ended.err
    assert file.read_text() == before
