"""Null workers in one process under virtual time: order, batching, memory, death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from worker_factory import GREEDY, Listener, decode_over_stages, hops, node, stage

from penstock.cost.base import BatchLimits
from penstock.errors import InputError
from penstock.serve.inline import InlinePool
from penstock.serve.pool import WorkerSpec
from penstock.serve.virtual_time import VirtualTimeLoop
from penstock.serve.wire import (
    Begin,
    Free,
    Hop,
    Item,
    KVReceived,
    Ping,
    PushKV,
    Release,
    Step,
    StepDone,
)
from penstock.serve.worker.executor import node_timer
from penstock.serve.worker.null_executor import null_token


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


class Timed(Listener):
    """Notes when the last stage of a path or an engine reports."""

    def __init__(self, pool: InlinePool) -> None:
        super().__init__(pool)
        self.times: list[tuple[float, int, tuple[int, ...]]] = []

    def _message(self, message: Any) -> None:
        if isinstance(message, StepDone):
            now = asyncio.get_running_loop().time()
            self.times.append((now, message.number, message.seqs))
        super()._message(message)


def item(seq: int, tokens: int, context: int = 0, **changes: Any) -> Item:
    return Item(seq, context, (1,) * tokens, True, context == 0, **changes)


def test_steps_overlap_in_the_pipeline_of_an_engine() -> None:
    """Three steps over two stages of 2 s and 1 s end at 3, 5 and 7 s, not at 3, 6 and 9."""

    async def main() -> list[tuple[float, int]]:
        pool = InlinePool(strict=True)
        listener = Timed(pool)
        specs = stage("a", 0, 2), stage("b", 2, 4)
        for spec in specs:
            await pool.start(spec)
        for number in (1, 2, 3):
            pool.send("a", Step(number, (item(number, 3),), (), hops(*specs), null_s=(2.0, 1.0)))
        await listener.done(3)
        await pool.close()
        return [(time_s, number) for time_s, number, _ in listener.times]

    assert run(main) == [(3.0, 1), (5.0, 2), (7.0, 3)]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_null_tokens_do_not_depend_on_chunks(chunk: int) -> None:
    """A token is a function of its sequence and position; a prompt in chunks draws only once."""

    async def main() -> list[int]:
        pool = InlinePool(strict=True)
        listener = Listener(pool)
        await pool.start(stage())
        return await decode_over_stages(pool, listener, hops(stage()), 3, (1,) * 7, 4, chunk=chunk)

    assert run(main) == [null_token(3, position) for position in range(7, 11)]


async def _paths(specs: tuple[WorkerSpec, ...], second_s: float = 1.0) -> tuple[InlinePool, Timed]:
    """A node takes ``second_s`` per layer, whatever the batch."""
    timers = {spec.name: node_timer(lambda prefill, decodes, context: second_s) for spec in specs}
    pool = InlinePool(timers, strict=True)
    listener = Timed(pool)
    for spec in specs:
        await pool.start(spec)
    return pool, listener


def test_iterations_of_a_path_run_the_layers_of_their_hops_and_batch_on_the_way() -> None:
    """Two requests enter different nodes and meet in one batch on the third."""
    a, b, c = node("a", 0, 2), node("b", 0, 3), node("c", 2, 4, entry_layers=(2, 3))
    via_a = (Hop("a", 0, 2), Hop("c", 2, 4))
    via_b = (Hop("b", 0, 3), Hop("c", 3, 4))

    async def main() -> tuple[Any, Any, Any]:
        pool, listener = await _paths((a, b, c))
        pool.send("a", Step(0, (item(1, 5, hops=via_a),), (Begin(1, GREEDY),)))
        pool.send("b", Step(0, (item(2, 4, hops=via_b),), (Begin(2, GREEDY),)))
        (first,) = await listener.done(1)
        # The second reached c at 3 s, while the first was running there from 2 to 4 s.
        pool.send("a", Step(0, (item(1, 1, 5, hops=via_a),)))
        (second,) = await listener.done(1)
        (third,) = await listener.done(1)
        batches = [(b.worker, b.seqs, b.prefill_tokens, b.decode_seqs) for b in listener.batches]
        await pool.close()
        return listener.times, batches, (first.drawn, second.drawn, third.drawn)

    times, batches, drawn = run(main)
    assert [(time_s, seqs) for time_s, _, seqs in times] == [(4.0, (1,)), (5.0, (2,)), (8.0, (1,))]
    assert batches == [
        ("a", (1,), 5, 0),
        ("b", (2,), 4, 0),
        ("c", (1,), 5, 0),
        ("c", (2,), 4, 0),
        ("a", (1,), 0, 1),
        ("c", (1,), 0, 1),
    ]
    tokens = [[(d.seq, d.tokens) for d in one] for one in drawn]
    assert tokens == [
        [(1, (null_token(1, 5),))],
        [(2, (null_token(2, 4),))],
        [(1, (null_token(1, 6),))],
    ]


def test_what_waits_together_runs_together_and_leaves_by_next_hop() -> None:
    """Items of one batch with the same next hop travel in one message, in order."""
    a, b, c = node("a", 0, 2), node("b", 2, 4), node("c", 2, 4)

    async def main() -> list[tuple[str, tuple[int, ...], int]]:
        pool, listener = await _paths((a, b, c))
        items = tuple(
            item(seq, 2, hops=(Hop("a", 0, 2), Hop("bc"[seq % 2], 2, 4))) for seq in range(5)
        )
        pool.send("a", Step(0, items, tuple(Begin(seq, GREEDY) for seq in range(5))))
        await listener.done(2)
        await pool.close()
        return [(batch.worker, batch.seqs, batch.queued_first) for batch in listener.batches]

    assert run(main) == [("a", (0, 1, 2, 3, 4), 0), ("b", (0, 2, 4), 0), ("c", (1, 3), 0)]


def test_reports_count_what_waits_for_the_next_batch() -> None:
    """Prompts beyond the limit and those that came meanwhile are queued."""
    limits = BatchLimits(2, 512, 32, 100_000)
    a = node("a", 0, 4)

    async def main() -> list[int]:
        pool, listener = await _paths((replace(a, limits=limits),))
        path = (Hop("a", 0, 4),)
        pool.send("a", Step(0, tuple(item(seq, 2, hops=path) for seq in range(3)), ()))
        await asyncio.sleep(1.0)
        pool.send("a", Step(0, (item(3, 2, hops=path),), ()))
        await listener.done(2)
        await pool.close()
        return [batch.queued_first for batch in listener.batches]

    assert run(main) == [2, 0]


def test_arrivals_of_a_moment_join_the_batch_that_is_formed_then() -> None:
    """Whatever the order of messages within a moment, batches form after all of them."""
    a, b, c = node("a", 0, 2), node("b", 0, 2), node("c", 2, 4)

    async def main() -> list[tuple[int, ...]]:
        pool, listener = await _paths((a, b, c))
        pool.send("a", Step(0, (item(1, 2, hops=(Hop("a", 0, 2), Hop("c", 2, 4))),)))
        pool.send("b", Step(0, (item(2, 2, hops=(Hop("b", 0, 2), Hop("c", 2, 4))),)))
        await listener.done(1)
        await pool.close()
        return [batch.seqs for batch in listener.batches if batch.worker == "c"]

    assert run(main) == [(1, 2)]


def test_a_batch_waits_for_pages_that_are_being_released() -> None:
    """Nothing fails while the coordinator frees what the batch needs."""
    a = node("a", 0, 4, num_pages=8)
    path = (Hop("a", 0, 4),)

    async def main() -> tuple[list[Any], Any]:
        pool, listener = await _paths((a,))
        pool.send("a", Step(0, (item(1, 8, hops=path),)))
        await listener.done(1)
        pool.send("a", Step(0, (item(2, 4, hops=path),)))
        await asyncio.sleep(100.0)
        assert len(listener.times) == 1
        pool.send("a", Release((1,)))
        await listener.done(1)
        pool.send("a", Ping(1))
        return listener.times, await listener.pong()

    times, pong = run(main)
    assert [(time_s, seqs) for time_s, _, seqs in times] == [(4.0, (1,)), (108.0, (2,))]
    assert (pong.pages_used, pong.pages_cached) == (4, 0)


def test_iterations_of_released_sequences_are_dropped_early_and_late() -> None:
    """Neither what waits nor what arrives after the release takes memory again."""
    a = node("a", 0, 4)
    path = (Hop("a", 0, 4),)

    async def main() -> Any:
        pool, listener = await _paths((a,))
        pool.send("a", Step(0, (item(1, 8, hops=path),)))
        pool.send("a", Step(0, (item(2, 8, hops=path),)))
        pool.send("a", Release((2,)))
        pool.send("a", Step(0, (item(2, 8, hops=path),), (Begin(2, GREEDY),)))
        await listener.done(1)
        await asyncio.sleep(100.0)
        pool.send("a", Ping(1))
        return listener.times, await listener.pong()

    times, pong = run(main)
    assert [seqs for _, _, seqs in times] == [(1,)]
    assert pong.pages_used == 2 * 4


def test_kv_goes_to_engines_that_cut_the_layers_otherwise() -> None:
    """Two stages push to three; every receiver confirms once, the receivers hold the pages."""
    source = stage("a", 0, 2), stage("b", 2, 4)
    target = stage("x", 0, 1), stage("y", 1, 3), stage("z", 3, 4)

    async def main() -> tuple[list[KVReceived], list[tuple[int, int]]]:
        pool = InlinePool(strict=True)
        listener = Listener(pool)
        for spec in source + target:
            await pool.start(spec)
        await decode_over_stages(pool, listener, hops(*source), 1, (1,) * 9, 1)
        pool.send("a", PushKV(5, 1, 1, 9, (Hop("x", 0, 1), Hop("y", 1, 2))))
        pool.send("b", PushKV(5, 1, 1, 9, (Hop("y", 2, 3), Hop("z", 3, 4))))
        await listener.wait(lambda: len(listener.of(KVReceived)) == 3)
        held = await listener.pages(pool, *"xyz")
        pool.send("x", Step(0, (), (Free(1),), hops(*target)))
        return listener.of(KVReceived), held + await listener.pages(pool, *"xyz")

    received, used = run(main)
    assert sorted((m.worker, m.problem) for m in received) == [("x", ""), ("y", ""), ("z", "")]
    assert used == [(3, 0), (6, 0), (3, 0), (0, 0), (0, 0), (0, 0)]


def test_kv_that_comes_after_its_sequence_was_freed_takes_no_memory() -> None:
    """A sender that goes on after the transfer was given up leaves nothing behind."""
    specs = stage("a", 0, 2), stage("b", 2, 4), stage("x", 0, 4)

    async def main() -> tuple[Any, Any, Any]:
        pool = InlinePool(strict=True)
        listener = Listener(pool)
        for spec in specs:
            await pool.start(spec)
        await decode_over_stages(pool, listener, hops(*specs[:2]), 1, (1,) * 9, 1)
        pool.send("a", PushKV(5, 1, 1, 9, (Hop("x", 0, 2),)))
        await asyncio.sleep(1.0)
        before = await listener.pages(pool, "x")
        pool.send("x", Step(0, (), (Free(1),), hops(specs[2])))
        pool.send("b", PushKV(5, 1, 1, 9, (Hop("x", 2, 4),)))
        await asyncio.sleep(1.0)
        return before, await listener.pages(pool, "x"), listener.of(KVReceived)

    assert run(main) == ([(12, 0)], [(0, 0)], [])


def test_a_killed_worker_is_reported_once_and_can_start_anew() -> None:
    """What it held is lost, and messages to it are dropped meanwhile."""

    async def main() -> tuple[list[tuple[str, str]], Any]:
        pool = InlinePool()
        listener = Listener(pool)
        await pool.start(stage())
        await decode_over_stages(pool, listener, hops(stage()), 1, (1,) * 9, 1)
        pool.kill("w")
        pool.send("w", Ping(1))
        await pool.start(stage())
        pool.send("w", Ping(2))
        return listener.deaths, await listener.pong()

    deaths, pong = run(main)
    assert deaths == [("w", "killed")]
    assert (pong.number, pong.pages_used) == (2, 0)


def test_a_fault_ends_the_worker_with_its_reason() -> None:
    """An item for layers the node does not hold is a disagreement, not something to repair."""

    async def main() -> list[tuple[str, str]]:
        pool, listener = await _paths((node("a", 0, 2),))
        pool.send("a", Step(0, (item(1, 1, hops=(Hop("a", 0, 4),)),)))
        await listener.wait(lambda: listener.deaths)
        return listener.deaths

    assert run(main) == [("a", "WorkerFault: layers up to 4 of a are not here")]


def test_a_node_of_paths_needs_limits() -> None:
    """The user is told, before anything runs."""

    async def main() -> None:
        with pytest.raises(InputError, match="no limits"):
            await InlinePool().start(stage(batches=True))

    run(main)
