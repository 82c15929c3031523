"""What was written is read back before anything older goes, and before a run is called finished."""

import signal

from dying_runs import make_site


def test_a_disk_that_keeps_something_else(tmp_path, matrix):
    """A disk that says yes and keeps another byte. Dies if the older checkpoints go before the new one is read back."""
    site = make_site(tmp_path)
    assert site.train(failpoint="step:7=kill9").code == -signal.SIGKILL
    before = [path.name for path in site.checkpoints()]

    def forgetful():
        from dorakit import files

        honest = files.sync

        def sync(path):
            honest(path)
            if path.name == "optimizer.safetensors":
                content = bytearray(path.read_bytes())
                content[-1] ^= 1
                path.write_bytes(content)

        files.sync = sync

    ended = site.resume(before=forgetful)
    assert ended.code == 3 and "optimizer.safetensors is damaged" in ended.err
    assert [path.name for path in site.checkpoints()][:2] == before
    assert site.resume().code == 0
    matrix(
        12, "the disk keeps another byte than was written", "exit 3, older checkpoints stay", "exit 3, resumed after"
    )


def test_an_adapter_that_reads_back_as_another(tmp_path):
    """Dies if what lies on the disk is not compared with what was trained."""
    site = make_site(tmp_path, steps=2)

    def careless():
        from dorakit.adapters import peft_format

        honest = peft_format.save_file

        def save_file(tensors, path, **options):
            name = sorted(tensors)[0]
            honest({**tensors, name: tensors[name] * 1.0001}, path, **options)

        peft_format.save_file = save_file

    ended = site.train(before=careless)
    assert ended.code != 0 and "reads back as something else" in ended.err
    assert not (site.run / "adapter").exists() and site.facts()["state"] == "training"
    assert site.resume().code == 0


def test_an_adapter_that_moved_nowhere(tmp_path):
    """Dies if the base is handed out as a trained adapter."""
    site = make_site(tmp_path, steps=2)

    def idle():
        from dorakit.training.optim import Updater

        Updater.step = lambda self, rate: None

    ended = site.train(before=idle)
    assert ended.code == 5 and "adapters moved" in ended.err and not (site.run / "adapter").exists()
