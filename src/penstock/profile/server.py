"""A server of its own to measure: ``penstock serve`` in a process, and a record of requests."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from penstock.errors import InputError
from penstock.plan.document import write_plan
from penstock.plan.plan import Plan
from penstock.plan.pool_document import write_pool
from penstock.plan.pool_plan import PoolPlan

_READY = re.compile(rb"ready at (\S+)")
_START_S = 180.0
_END_S = 60.0


@asynccontextmanager
async def serving(
    plan: Plan | PoolPlan, folder: Path, *, record: Path | None = None, flags: Sequence[str] = ()
) -> AsyncIterator[str]:
    """Serve ``plan`` with workers as processes; yields the address, ends all of it afterwards.

    ``folder`` takes the plan's file. ``record`` is there once the context has been left. Raises
    ``InputError`` with the server's own words where it does not start.
    """
    path = folder / "plan.yaml"
    if isinstance(plan, PoolPlan):
        write_pool(path, plan)
    else:
        write_plan(plan, path)
    command = [sys.executable, "-m", "penstock", "serve", str(path)]
    command += ["--workers", "processes", "--port", "0", *flags]
    if record is not None:
        command += ["--record", str(record)]
    server = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stderr is not None
    draining: asyncio.Task[bytes] | None = None
    try:
        url = await asyncio.wait_for(_address(server.stderr), _START_S)
        draining = asyncio.ensure_future(server.stderr.read())
        yield url
    except TimeoutError:
        raise InputError(f"the server was not ready within {_START_S:g} s") from None
    finally:
        await _end(server)
        if draining is not None:
            draining.cancel()


async def _address(lines: asyncio.StreamReader) -> str:
    said = b""
    async for line in lines:
        found = _READY.search(line)
        if found:
            return found[1].decode()
        said = line
    raise InputError(f"the server ended at once: {said.decode(errors='replace').strip()}")


async def _end(server: asyncio.subprocess.Process) -> None:
    if server.returncode is None:
        server.send_signal(signal.SIGINT)
    try:
        await asyncio.wait_for(server.wait(), _END_S)
    except TimeoutError:
        server.kill()
        await server.wait()
