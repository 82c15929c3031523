"""A command under the rights of an ordinary user, also where the tests run as root: `python unprivileged.py [--uid N] COMMAND`.

Root keeps its uid without what lets it pass over permission bits; with `--uid` it becomes another user, who may read
everything (the interpreter may lie in root's home directory) and write what permission bits allow.
"""

import ctypes
import os
import struct
import sys

_OVERRIDE, _READ, _OWNER = 1, 2, 3  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
_KEEP_CAPABILITIES, _DROP_FOR_EVER, _AMBIENT, _RAISE = 8, 24, 47, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _become(uid: int) -> None:
    _checked(_LIBC.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0))
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    head, mask = struct.pack("Ii", 0x20080522, 0), 1 << _READ
    _checked(_LIBC.capset(head, struct.pack("6I", mask, mask, mask, 0, 0, 0)))
    _checked(_LIBC.prctl(_AMBIENT, _RAISE, _READ, 0, 0))


if __name__ == "__main__":
    command = sys.argv[1:]
    uid = int(command[1]) if command[0] == "--uid" else None
    if os.getuid() == 0:
        if uid is None:
            for capability in (_OVERRIDE, _READ, _OWNER):
                _checked(_LIBC.prctl(_DROP_FOR_EVER, capability, 0, 0, 0))
        else:
            _become(uid)
    command = command if uid is None else command[2:]
    os.execvp(command[0], command)
