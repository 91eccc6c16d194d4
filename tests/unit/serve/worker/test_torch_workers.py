"""Workers with a real model: pipelines, paths and transfers give the tokens of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker_factory import GREEDY, Listener, decode_over_stages, hops, real, stage

from penstock.serve.inline import InlinePool
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import (
    Begin,
    Command,
    Evict,
    Free,
    Hop,
    Item,
    KVLayer,
    KVReceived,
    PushKV,
    Release,
    Sampling,
    Share,
    Step,
    Store,
)
from penstock.serve.worker.build import build_executor
from penstock.serve.worker.executor import Executor, Job, Work, WorkerFault

PROMPT = (5, 17, 42, 99, 3, 71, 8, 120, 33, 64, 2, 9)


async def _start(pool: InlinePool, *specs: WorkerSpec) -> Listener:
    listener = Listener(pool)
    for spec in specs:
        await pool.start(spec)
    return listener


@pytest.mark.parametrize("chunk", [5, 100])
async def test_two_stages_equal_the_whole_model(
    checkpoint: tuple[str, Any], expected: Callable[..., list[int]], chunk: int
) -> None:
    """Hidden states that cross the wire change no token, in whole prompts or chunks."""
    pool = InlinePool(strict=True)
    specs = real(checkpoint, "a", 0, 1), real(checkpoint, "b", 1, 4)
    listener = await _start(pool, *specs)
    tokens = await decode_over_stages(pool, listener, hops(*specs), 1, PROMPT, 12, chunk=chunk)
    await pool.close()
    assert tokens == expected(PROMPT, 12)


async def test_many_sequences_share_steps(
    checkpoint: tuple[str, Any], expected: Callable[..., list[int]]
) -> None:
    """Prompts of some and decodes of others in the same steps, some freed on the way."""
    pool = InlinePool(strict=True)
    specs = real(checkpoint, "a", 0, 2), real(checkpoint, "b", 2, 4)
    listener = await _start(pool, *specs)
    prompts = {seq: tuple((7 * seq + 11 * i) % 150 for i in range(3 + 4 * seq)) for seq in range(5)}
    tokens = {seq: list(prompt) for seq, prompt in prompts.items()}
    commands: list[Command] = []
    for number in range(14):
        items = []
        for seq, prompt in prompts.items():
            if number < seq or len(tokens[seq]) >= len(prompt) + 6:
                continue
            if number == seq:
                commands.append(Begin(seq, GREEDY))
                items.append(Item(seq, 0, prompt, True, True))
            else:
                items.append(Item(seq, len(tokens[seq]) - 1, (tokens[seq][-1],), True))
        if not items:
            break
        pool.send("a", Step(number, tuple(items), tuple(commands), hops(*specs)))
        commands = []
        (done,) = await listener.done()
        for drawn in done.drawn:
            tokens[drawn.seq].extend(drawn.tokens)
            if len(tokens[drawn.seq]) == len(prompts[drawn.seq]) + 6:
                commands.append(Free(drawn.seq))
    pool.send("a", Step(0, (), tuple(commands), hops(*specs)))
    assert await listener.pages(pool, "a", "b") == [(0, 0), (0, 0)]
    for seq, prompt in prompts.items():
        assert tokens[seq][len(prompt) :] == expected(prompt, 6)
    await pool.close()


async def test_paths_over_five_overlapping_nodes(
    checkpoint: tuple[str, Any], expected: Callable[..., list[int]]
) -> None:
    """Requests over different paths meet in batches and enter nodes part way."""
    specs = [
        real(checkpoint, name, start, end, paths=True, entry_layers=entries)
        for name, start, end, entries in (
            ("a", 0, 2, (0,)),
            ("b", 0, 3, (0,)),
            ("c", 1, 4, (2, 3)),
            ("d", 2, 3, (2,)),
            ("e", 2, 4, (2, 3)),
        )
    ]
    paths = [
        (Hop("a", 0, 2), Hop("c", 2, 4)),
        (Hop("b", 0, 3), Hop("c", 3, 4)),
        (Hop("a", 0, 2), Hop("d", 2, 3), Hop("e", 3, 4)),
        (Hop("b", 0, 3), Hop("e", 3, 4)),
        (Hop("a", 0, 2), Hop("e", 2, 4)),
    ]
    pool = InlinePool(strict=True)
    listener = await _start(pool, *specs)
    prompts = [tuple((13 * seq + 5 * i) % 150 for i in range(4 + 3 * seq)) for seq in range(10)]
    tokens = [list(prompt) for prompt in prompts]
    for seq, prompt in enumerate(prompts):
        path = paths[seq % 5]
        entry = Item(seq, 0, prompt, True, True, path)
        pool.send(path[0].worker, Step(0, (entry,), (Begin(seq, GREEDY),)))
    left = dict.fromkeys(range(10), 6)
    while left:
        for done in await listener.done(1):
            for drawn in done.drawn:
                seq = drawn.seq
                tokens[seq].extend(drawn.tokens)
                left[seq] -= 1
                path = paths[seq % 5]
                if not left[seq]:
                    del left[seq]
                    for hop in path:
                        pool.send(hop.worker, Release((seq,)))
                    continue
                again = Item(seq, len(tokens[seq]) - 1, (tokens[seq][-1],), True, False, path)
                pool.send(path[0].worker, Step(0, (again,)))
    for seq, prompt in enumerate(prompts):
        assert tokens[seq][len(prompt) :] == expected(prompt, 6), f"sequence {seq}"
    assert any(len(batch.seqs) > 1 for batch in listener.batches)
    assert await listener.pages(pool, *"abcde") == [(0, 0)] * 5
    await pool.close()


async def test_a_prompt_is_decoded_elsewhere_after_its_kv_was_pushed(
    checkpoint: tuple[str, Any], expected: Callable[..., list[int]]
) -> None:
    """A prefill engine of one stage, a decode engine of two, under another number."""
    pool = InlinePool(strict=True)
    source = real(checkpoint, "p", 0, 4)
    target = real(checkpoint, "x", 0, 3), real(checkpoint, "y", 3, 4)
    listener = await _start(pool, source, *target)
    (first,) = await decode_over_stages(pool, listener, hops(source), 1, PROMPT, 1)
    pool.send("p", PushKV(7, 1, 21, len(PROMPT), hops(*target)))
    await listener.wait(lambda: len(listener.of(KVReceived)) == 2)
    assert {message.problem for message in listener.of(KVReceived)} == {""}
    tokens = [first]
    commands: tuple[Command, ...] = (Begin(21, _replace(GREEDY, position=1)),)
    for number in range(5):
        entry = Item(21, len(PROMPT) + number, (tokens[-1],), True)
        pool.send("x", Step(number, (entry,), commands, hops(*target)))
        (done,) = await listener.done()
        tokens.extend(done.drawn[0].tokens)
        commands = ()
    assert tokens == expected(PROMPT, 6)
    await pool.close()


def _replace(sampling: Sampling, **changes: Any) -> Sampling:
    return msgspec.structs.replace(sampling, **changes)


async def test_damaged_or_foreign_kv_is_refused_and_leaves_no_page(
    checkpoint: tuple[str, Any],
) -> None:
    """One wrong byte, or another layout, is told once; the other layers are ignored."""
    pool = InlinePool(strict=True)
    listener = await _start(pool, real(checkpoint, "p", 0, 4), real(checkpoint, "x", 0, 4))
    await decode_over_stages(pool, listener, hops(stage("p")), 1, PROMPT, 1)
    executor = pool.worker("p").executor
    layers = [executor.export_layer(1, layer, len(PROMPT)) for layer in range(4)]

    def send(transfer: int, layer: int, content: Any, crc: int, layout: str) -> None:
        message = KVLayer(transfer, transfer, layer, len(PROMPT), layout, crc)
        pool._post("x", message, content)

    for layer, content in enumerate(layers):
        sent = bytearray(content)
        if layer == 2:
            sent[100] ^= 1
        send(5, layer, sent, crc32(content), executor.layout)
        send(6, layer, content, crc32(content), executor.layout.replace("float32", "bfloat16"))
        send(7, layer, content, crc32(content), executor.layout)
    await listener.wait(lambda: len(listener.of(KVReceived)) == 3)
    assert await listener.pages(pool, "x") == [(4 * 3, 0)]
    problems = {message.transfer: message.problem for message in listener.of(KVReceived)}
    assert "layer 2 were damaged" in problems[5]
    assert "bfloat16" in problems[6]
    assert "float32" in problems[6]
    assert problems[7] == ""
    assert len(listener.of(KVReceived)) == 3
    await pool.close()


async def test_a_shared_prompt_is_not_computed_again(
    checkpoint: tuple[str, Any], expected: Callable[..., list[int]]
) -> None:
    """Pages of a stored piece serve another sequence, after its owner has gone too."""
    pool = InlinePool(strict=True)
    specs = real(checkpoint, "a", 0, 1), real(checkpoint, "b", 1, 4)
    listener = await _start(pool, *specs)
    await decode_over_stages(pool, listener, hops(*specs), 1, PROMPT, 2)
    commands = (Store(1, 0, 77), Free(1), Share(2, (77,)), Begin(2, GREEDY))
    other = (*PROMPT[:8], 50, 60, 70)
    pool.send("a", Step(3, (Item(2, 8, other[8:], True, True),), commands, hops(*specs)))
    (done,) = await listener.done()
    assert list(done.drawn[0].tokens) == expected(other, 1)
    # A layer of b holds a page for the rest of the prompt beside the two of the piece.
    assert await listener.pages(pool, "a", "b") == [(1, 2), (3, 6)]
    pool.send("a", Step(4, (), (Free(2), Evict(77)), hops(*specs)))
    assert await listener.pages(pool, "a", "b") == [(0, 0), (0, 0)]
    await pool.close()


async def test_seeded_draws_go_on_where_another_worker_stopped(
    checkpoint: tuple[str, Any],
) -> None:
    """Draws depend on seed and position: recomputed on a new worker they continue the same."""
    hot = _replace(
        GREEDY,
        temperature=1.3,
        top_p=0.95,
        seed=1234,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        logprobs=2,
        prompt=PROMPT,
    )

    async def draw(start: int, output: tuple[int, ...], steps: int) -> list[Any]:
        pool = InlinePool(strict=True)
        spec = real(checkpoint, "w", 0, 4)
        listener = await _start(pool, spec)
        begin = Begin(1, _replace(hot, position=start, output=output))
        fed, context, found = (*PROMPT, *output), 0, []
        for number in range(steps):
            entry = Item(1, context, fed, True, number == 0)
            pool.send("w", Step(number, (entry,), (begin,) if not number else (), hops(spec)))
            (done,) = await listener.done()
            found.append(done.drawn[0])
            context, fed = context + len(fed), done.drawn[0].tokens
        await pool.close()
        return found

    whole = await draw(0, (), 8)
    tokens = tuple(token for drawn in whole for token in drawn.tokens)
    again = await draw(3, tokens[:3], 5)
    assert [drawn.tokens for drawn in again] == [drawn.tokens for drawn in whole[3:]]
    assert len(set(tokens)) > 2
    logprob, top = whole[0].logprobs[0]
    assert len(top) == 2
    assert logprob <= top[0][1] < 0


def test_a_draw_without_a_beginning_is_a_fault(checkpoint: tuple[str, Any]) -> None:
    """The coordinator must say how tokens are drawn."""
    executor = build_executor(real(checkpoint, "w", 0, 4))
    with pytest.raises(WorkerFault, match="before it has begun"):
        executor.run(Work([Job(1, 0, (1, 2), 0, 4, True)]))


class PageCommands:
    """A random life of sequences and pieces, applied to any executor."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.length: dict[int, int] = {}
        self.stored: dict[int, set[int]] = {}
        self.pieces: list[int] = []
        self.numbers = 0

    def do(self, what: str, pick: int) -> None:
        seqs = sorted(self.length)
        seq = seqs[pick % len(seqs)] if seqs else None
        if what == "begin" and len(seqs) < 6:
            self.numbers += 1
            shared = tuple(self.pieces[: pick % 3])
            if shared:
                self.executor.apply(Share(self.numbers, shared))
            self.stored[self.numbers] = set(range(len(shared)))
            self.length[self.numbers] = 8 * len(shared)
        elif what == "run" and seq is not None:
            job = Job(seq, self.length[seq], (1,) * (1 + pick % 7), 0, 4, False)
            if self.length[seq] + 7 < 64 and self.executor.pages_missing([job]) <= 0:
                self.executor.run(Work([job]))
                self.length[seq] += len(job.tokens)
        elif what == "store" and seq is not None:
            index = pick % 3
            if self.length[seq] >= 8 * (index + 1) and index not in self.stored[seq]:
                self.numbers += 1
                self.executor.apply(Store(seq, index, self.numbers))
                self.stored[seq].add(index)
                self.pieces.append(self.numbers)
        elif what == "free" and seq is not None:
            self.executor.apply(Free(seq))
            del self.length[seq], self.stored[seq]
        elif what == "evict" and self.pieces and not self.length:
            self.executor.apply(Evict(self.pieces.pop()))


lives = st.lists(
    st.tuples(
        st.sampled_from(["begin", "run", "run", "run", "store", "free", "evict"]),
        st.integers(0, 20),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives)
def test_null_and_real_executors_count_the_same_pages(
    checkpoint: tuple[str, Any], life: list[tuple[str, int]]
) -> None:
    """Two independent accounts, by counts and by page ids, agree after every command."""
    spec = stage(num_pages=160)
    null = PageCommands(build_executor(spec))
    torch_ = PageCommands(build_executor(real(checkpoint, "w", 0, 4, num_pages=160)))
    for what, pick in life:
        null.do(what, pick)
        torch_.do(what, pick)
        assert null.executor.pages() == torch_.executor.pages()
