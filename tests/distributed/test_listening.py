"""Who can reach the processes of `--nproc`: nobody from another address."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ELSEWHERE = "127.0.0.2"  # on Linux an address of this machine, and another one than 127.0.0.1


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    children = [Path(f"/proc/{pid}/task/{task}/children") for task in os.listdir(f"/proc/{pid}/task")]
    return [pid, *(one for file in children for child in file.read_text().split() for one in family(int(child)))]


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """The (address in hexadecimal, port) on which these processes accept connections, from /proc/net."""
    files = [Path(f"/proc/{pid}/fd", name) for pid in pids for name in os.listdir(f"/proc/{pid}/fd")]
    sockets = {os.readlink(file) for file in files if file.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                address, port = local.split(":")
                found.add((address, int(port, 16)))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nobody_connects_from_another_address(site, tmp_path):
    """Also where the environment names a network card. Planted bug caught: ranks that are not told to use loopback."""
    site.recipe.write_text(site.recipe.read_text().replace("max_steps: 12", "max_steps: 3000"))
    command = [sys.executable, "-m", "dorakit", "train", str(site.recipe), "--nproc", "2", "-q"]
    card = next((name for _, name in socket.if_nameindex() if name != "lo"), "lo")
    environment = os.environ | {"TMPDIR": str(tmp_path), "GLOO_SOCKET_IFNAME": card}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    log = site.run / "metrics.jsonl"
    try:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 1):
            time.sleep(0.05)
        found = listening(family(process.pid))
        assert found, "the ranks have no sockets at all"
        assert {address for address, _ in found} == {"0100007F"}, found
        for _, port in found:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((ELSEWHERE, port), timeout=5)
        (private,) = tmp_path.glob("dorakit-*")
        assert private.stat().st_mode & 0o777 == 0o700
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 143 and not private.exists()
