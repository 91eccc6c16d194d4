"""A worker process: ``python -m penstock.serve.worker``, told what it is over stdin.

It ends when stdin ends, so that no worker outlives its parent. Ranks above 0 go on to read calls
from it. With ``--warm`` it imports torch before it asks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from io import RawIOBase
from struct import unpack

from penstock.serve.worker.run import FAULT, decode_boot, run_worker

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Read the boot message, then work until told to stop."""
    _die_with_parent()
    if "--warm" in sys.argv:
        import penstock.serve.worker.torch_executor  # noqa: F401, PLC0415 - takes seconds
    # Unbuffered: a thread that waits in a buffer would hold its lock when the process ends.
    stdin = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - open to the end
    (size,) = unpack("!I", _read(stdin, 4))
    boot = decode_boot(_read(stdin, size))
    if not boot.rank:
        threading.Thread(target=_end_with, args=(stdin,), daemon=True).start()
    if boot.rank:
        from penstock.serve.worker.ranks import follow  # noqa: PLC0415 - needs torch

        follow(boot, stdin)
        return 0
    return 0 if run_worker(boot) else FAULT


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent, even where Python cannot run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(stdin: RawIOBase, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stdin.read(size - len(data))
        if not part:
            sys.exit("the parent has gone")
        data += part
    return data


def _end_with(stdin: RawIOBase) -> None:
    stdin.read(1)
    os._exit(0)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # All sockets are closed; taking torch apart would only delay the end.
    os._exit(status)
