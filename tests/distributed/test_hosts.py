"""Two hosts: network namespaces with a cable between them, a rank in each, found by the address of the first."""

import contextlib
import os
import shutil
import subprocess
import sys
import time

import pytest
from dying_runs import digest

HOSTS = ("dorakit-a", "dorakit-b")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def cable():
    """Two namespaces and a veth pair: 10.77.31.1 and 10.77.31.2."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")
    with contextlib.ExitStack() as made:
        for number, host in enumerate(HOSTS):
            ip("netns", "add", host)
            made.callback(subprocess.run, ["ip", "netns", "del", host])
            if number == 0:
                ip("link", "add", "dk-a", "netns", host, "type", "veth", "peer", "name", "dk-b")
        ip("link", "set", "dk-b", "netns", HOSTS[1])
        for number, host in enumerate(HOSTS):
            ip("-n", host, "addr", "add", f"10.77.31.{number + 1}/24", "dev", f"dk-{'ab'[number]}")
            for device in (f"dk-{'ab'[number]}", "lo"):
                ip("-n", host, "link", "set", device, "up")
        yield


def start(*arguments) -> list[subprocess.Popen]:
    """The same torchrun line on both hosts, but for the number of the host and the name of its network card."""
    processes = []
    for number, host in enumerate(HOSTS):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        where = ["--node-rank", str(number), "--master-addr", "10.77.31.1", "--master-port", "29431"]
        command = ["ip", "netns", "exec", host, *torchrun, *where, "-m", "dorakit", "train", *map(str, arguments)]
        card = {"GLOO_SOCKET_IFNAME": f"dk-{'ab'[number]}"}
        processes.append(
            subprocess.Popen(
                command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ | card
            )
        )
    return processes


def ended(processes) -> list[str]:
    try:
        return [process.communicate(timeout=90)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_hosts(cable, site, unbroken):
    """The bytes of two ranks on one host."""
    processes = start(site.recipe)
    said = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert digest(site.run) == digest(unbroken.run)


def test_the_cable_is_pulled(cable, site):
    """Both hosts stop with a message within the time that the recipe gives, and go on once it is in again."""
    text = site.recipe.read_text().replace("max_steps: 12", "max_steps: 2000")
    site.recipe.write_text(text + "parallel: {timeout_minutes: 0.1}\n")
    processes, log = start(site.recipe), site.run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") > 10) and time.monotonic() < deadline:
        time.sleep(0.05)
    ip("-n", HOSTS[0], "link", "set", "dk-a", "down")
    pulled = time.monotonic()
    said = ended(processes)
    assert time.monotonic() - pulled < 45
    assert all(process.returncode for process in processes)
    assert all(text.count("error: another process of this run is gone without a word") == 1 for text in said), said
    ip("-n", HOSTS[0], "link", "set", "dk-a", "up")
    done = max(int(path.name.removeprefix("step-")) for path in site.checkpoints())
    processes = start(
        "--resume", site.run, "--set", f"training.max_steps={done + 3}", "--accept-change", "training.max_steps"
    )
    said = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert site.facts()["state"] == "finished"
