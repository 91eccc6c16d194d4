"""Tensor parallel stages: several processes are one worker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from worker_factory import GREEDY, Listener, decode_over_stages, hops, real

from penstock.errors import InputError
from penstock.serve.processes import ProcessHandle, ProcessPool
from penstock.serve.wire import Begin, Item, KVReceived, PushKV, Step

PROMPT = (5, 17, 42, 99, 3, 71, 8, 120, 33, 64, 2, 9)


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    pool = ProcessPool()
    yield pool
    await pool.close()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def pid_of(pool: ProcessPool, worker: str) -> int:
    handle = pool._peers[worker].handle
    assert isinstance(handle, ProcessHandle)
    return handle.pid


async def test_two_ranks_compute_push_and_end_as_one(
    pool: ProcessPool, checkpoint: tuple[str, Any], expected: Callable[..., list[int]]
) -> None:
    """A sharded stage gives the tokens of the whole model, its KV decodes on another sharded
    engine, and the death of any rank is the death of the worker."""
    listener = Listener(pool)
    source = real(checkpoint, "p", 0, 2, tensor_parallel_size=2), real(checkpoint, "q", 2, 4)
    target = real(checkpoint, "x", 0, 2, tensor_parallel_size=2)
    await asyncio.gather(*(pool.start(spec) for spec in (*source, target)))
    tokens = await decode_over_stages(pool, listener, hops(*source), 1, PROMPT, 5)
    assert tokens == expected(PROMPT, 5)

    # The first half of a sequence moves to x; q goes on with the second half.
    pool.send("p", PushKV(1, 1, 1, len(PROMPT), (hops(target)[0],)))
    await listener.wait(lambda: listener.of(KVReceived))
    assert listener.of(KVReceived) == [KVReceived(1, "x")]
    path = hops(target, source[1])
    pool.send("x", Step(9, (Item(1, len(PROMPT), (tokens[0],), True),), (Begin(1, GREEDY),), path))
    (done,) = await listener.done()
    assert list(done.drawn[0].tokens) == tokens[1:2]

    pid = pid_of(pool, "x")
    (rank,) = children(pid)
    os.kill(rank, signal.SIGKILL)
    await listener.wait(lambda: listener.deaths)
    assert listener.deaths == [("x", "another rank of its tensor parallel group has ended")]
    (rank,) = children(pid_of(pool, "p"))
    await pool.close()
    assert not Path(f"/proc/{rank}").exists()


async def test_a_shard_that_cannot_be_cut_is_an_input_error(
    pool: ProcessPool, checkpoint: tuple[str, Any]
) -> None:
    """Two KV heads do not divide among three ranks."""
    Listener(pool)
    with pytest.raises(InputError) as error:
        await pool.start(real(checkpoint, "p", 0, 4, tensor_parallel_size=3))
    assert "3" in str(error.value)
    assert "\n" not in str(error.value)
