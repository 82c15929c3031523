"""The rows of the fault matrix that happen to a merge: its output is complete or absent, and what it reads is untouched."""

import hashlib
import json
import shutil
import signal

import pytest
from dying_runs import dorakit, make_site
from safetensors.torch import load_file, save_file
from tiny_runs import forget_digests


def content(directory) -> dict[str, str]:
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name not in ("run.lock", "log.txt")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    site = make_site(tmp_path_factory.mktemp("finished"), steps=4)
    assert site.train().code == 0
    return site.run


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


PLACES = ["shard:1", "directory.written:1", "directory.synced:1"]


@pytest.mark.parametrize("command", ["merge", "quantize"])
@pytest.mark.parametrize("place", PLACES)
def test_killed(run, matrix, command, place):
    """Row 38. Dies if an output that looks finished is left, or what is left stands in the way."""
    before = content(run)
    ended = dorakit(command, run, failpoint=f"{place}=kill9")
    assert ended.code == -signal.SIGKILL, ended.err
    output = run / {"merge": "merged", "quantize": "quantized"}[command]
    assert not output.exists()
    assert {name: digest for name, digest in content(run).items() if not name.startswith(".tmp-")} == before
    ended = dorakit(command, run)
    assert ended.code == 0, ended.err
    assert (output / "config.json").is_file() and not list(run.glob(".tmp-*"))
    matrix(38, f"{command}: kill -9 at {place}", "output absent, inputs untouched", "absent; the next one is whole")


@pytest.mark.parametrize("command", ["merge", "quantize"])
@pytest.mark.parametrize("place", PLACES)
def test_full(run, matrix, command, place):
    """Row 38. Dies if anything is left of an output that the disk did not hold."""
    before = content(run)
    ended = dorakit(command, run, failpoint=f"{place}=enospc")
    assert ended.code == 4 and "No space left on device" in ended.err, ended.err
    assert content(run) == before
    matrix(38, f"{command}: ENOSPC at {place}", "exit 4, nothing left", "exit 4, nothing left")


def test_a_killed_result_keeps_the_one_before(run, matrix):
    """Row 38. Dies if a second merge removes the first before it is whole."""
    assert dorakit("merge", run).code == 0
    before = content(run / "merged")
    assert dorakit("merge", run, failpoint="directory.synced:1=kill9").code == -signal.SIGKILL
    assert content(run / "merged") == before
    matrix(38, "a second merge killed", "the first is whole", "the first is whole")


@pytest.mark.parametrize("how", ["kill9", "enospc"])
def test_a_result_that_is_being_replaced(run, matrix, how):
    """Row 38. Dies if a second merge that ends between its two renames costs the first one."""
    assert dorakit("merge", run).code == 0
    before = content(run)
    ended = dorakit("merge", run, failpoint=f"directory.replacing:1={how}")
    assert ended.code == (-signal.SIGKILL if how == "kill9" else 4)
    if how == "kill9":
        assert not (run / "merged").exists()
        assert dorakit("merge", run, failpoint="shard:1=enospc").code == 4
    assert content(run) == before
    matrix(38, f"a second merge: {how} between its renames", "the first is put back", "the first is put back")


@pytest.mark.parametrize("how", ["no magnitude", "another rank", "another base"])
def test_an_adapter_that_does_not_fit(run, matrix, how):
    """Row 39. Dies if a DoRA without its magnitude is merged as a LoRA, or onto weights that it was not trained on."""
    file, config = run / "adapter" / "adapter_model.safetensors", run / "adapter" / "adapter_config.json"
    tensors = load_file(file)
    forget_digests(run / "adapter")
    if how == "no magnitude":
        save_file({name: tensor for name, tensor in tensors.items() if "magnitude" not in name}, file)
    elif how == "another rank":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 8}))
    else:
        facts = json.loads((run / "run.json").read_text())
        facts["base"]["files"] = dict.fromkeys(facts["base"]["files"], "0" * 64)
        (run / "run.json").write_text(json.dumps(facts))
    ended = dorakit("merge", run)
    assert ended.code in (2, 3) and not (run / "merged").exists(), ended.err
    said = {"no magnitude": "lora_magnitude_vector", "another rank": "rank", "another base": "sha256"}[how]
    assert said in ended.err and "Traceback" not in ended.err
    matrix(39, f"merge with {how}", "refused, named", f"exit {ended.code}, named")
