"""A worker process: ``python -m penstock.serve.worker``, told what it is over stdin.

It ends when stdin ends, so that no worker outlives its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from struct import unpack
from typing import BinaryIO

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Read the boot message, then work until told to stop."""
    _die_with_parent()
    stdin = sys.stdin.buffer
    (size,) = unpack("!I", stdin.read(4))
    data = stdin.read(size)
    threading.Thread(target=_end_with, args=(stdin,), daemon=True).start()
    from penstock.serve.worker.run import FAULT, decode_boot, run_worker  # noqa: PLC0415 - watch first

    boot = decode_boot(data)
    if boot.spec.executor == "torch":
        _limit_threads(boot.spec.threads)
    return 0 if run_worker(boot) else FAULT


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent, even where Python cannot run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with(stdin: BinaryIO) -> None:
    stdin.read(1)
    os._exit(0)


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch  # noqa: PLC0415 - only workers with a model need it

    torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
