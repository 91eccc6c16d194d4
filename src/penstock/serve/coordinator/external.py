"""One whole engine that is another server: each request is a stream over the OpenAI API."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from penstock.errors import InputError, SpecError
from penstock.plan.plan import Engine
from penstock.plan.settings import SchedulerSettings
from penstock.policy.schedulers.sequence import Sequence as Served
from penstock.serve.coordinator.engine import Attempt, EngineDriver
from penstock.serve.coordinator.live import Live
from penstock.serve.coordinator.remote import Gone, Remote
from penstock.serve.protocol import EngineStatus, ServeError, Unavailable
from penstock.serve.text import Tokenizer, load_text
from penstock.serve.wire import Drawn

KEY = "PENSTOCK_EXTERNAL_API_KEY"
"""Environment variable with the key that the servers ask for."""
POLL_S = 1.0
TRIES = 3
"""So often a request may be answered with a fault of the server before it gets it itself."""

_log = logging.getLogger("penstock.serve")


class ExternalDriver(EngineDriver):
    """An ``EngineDriver`` over ``{url}/v1/completions``: at most ``max_num_seqs`` streams.

    ``settled`` is called when requests have ended, ``lost`` when the server is gone. What the
    server holds in KV memory is estimated from the requests it has.
    """

    def __init__(
        self,
        index: int,
        engine: Engine,
        weight: float,
        *,
        model: str,
        checkpoint: str,
        clock: Callable[[], float],
        settled: Callable[[EngineDriver], None],
        lost: Callable[[EngineDriver], None],
    ) -> None:
        place = f"engines.{engine.name}"
        if engine.role != "both" or engine.speculation is not None:
            raise SpecError(
                "an engine of another server has the role both and no speculation of its own",
                key=f"{place}.url",
                value=engine.url,
                fix="remove role and speculation, or the url",
            )
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._capacity_tokens = engine.num_blocks * _block_size(engine)
        super().__init__(
            index,
            _with_scheduler(engine),
            weight,
            model=model,
            stages=(),
            send=lambda _worker, _step: None,
            clock=clock,
        )
        self._checkpoint = checkpoint
        self._settled, self._lost = settled, lost
        self._tokenizer: Tokenizer | None = None
        self._busy_from_s = self._heard_s = clock()
        try:
            self._remote = self._connect()
        except SpecError as error:
            raise SpecError(
                error.problem, key=f"{place}.url", value=engine.url, fix=error.fix
            ) from None

    def _connect(self) -> Remote:
        return Remote(self.engine.url, self.model, os.environ.get(KEY))

    # -- what routers and the fleet ask -------------------------------------------------------

    @property
    def outstanding(self) -> int:
        return len(self.attempts)

    @property
    def num_waiting(self) -> int:
        return len(self.attempts) - len(self._streams)

    @property
    def kv_use(self) -> float:
        held = sum(len(self.attempts[row].live.tokens) for row in self._streams)
        return min(1.0, held / self._capacity_tokens) if self._capacity_tokens else 0.0

    @property
    def idle(self) -> bool:
        return not self.attempts

    @property
    def in_flight(self) -> int:
        return len(self._streams)

    def fits(self, seq: Served) -> bool:
        limits = (self._remote.abilities.max_model_len, self._capacity_tokens)
        return all(seq.total_tokens <= limit for limit in limits if limit)

    # -- the server ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to serve. Raises ``InputError`` where no server answers."""
        await self.close()
        if self._tokenizer is None:
            self._tokenizer = (await asyncio.to_thread(load_text, self._checkpoint)).tokenizer
        self._remote = self._connect()
        try:
            await self._remote.look(self._tokenizer)
        except (Gone, TimeoutError, InputError) as error:
            await self._remote.close()
            raise InputError(
                f"engines.{self.name}.url: no OpenAI server is at {self._remote.place}: {error}"
            ) from None
        self.alive = True
        self._watch = asyncio.get_running_loop().create_task(self._poll())

    async def close(self) -> None:
        """End all streams and let the server go."""
        tasks = [*self._streams.values(), *([self._watch] if self._watch is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.reset()
        await self._remote.close()

    def reset(self) -> None:
        super().reset()
        if self._streams:
            self.busy_s += self._clock() - self._busy_from_s
        for task in self._streams.values():
            task.cancel()
        self._streams.clear()

    async def _poll(self) -> None:
        """Notice a server that is gone while nothing streams from it, or nothing comes."""
        while self.alive:
            await asyncio.sleep(POLL_S)
            asked_s = self._clock()
            try:
                await self._remote.poll()
            except TimeoutError as error:
                # A server that is busy may be slow to answer; while tokens come it is there.
                if self._heard_s < asked_s:
                    self._gone(str(error))
            except Gone as error:
                self._gone(str(error))

    def _gone(self, why: str) -> None:
        if self.alive:
            _log.warning("engine %s: %s is lost: %s", self.name, self._remote.place, why)
            self._lost(self)

    # -- requests -----------------------------------------------------------------------------

    def add(self, attempt: Attempt) -> None:
        attempt.live.place = self.name
        self.attempts[attempt.seq.row] = attempt

    def cancel(self, row: int) -> None:
        """Close its stream, upon which the server stops computing."""
        task = self._streams.get(row)
        self._leave(row)
        if task is not None:
            task.cancel()

    def pump(self) -> None:
        """Open streams for those that wait, first come first served."""
        most = self.scheduler.settings.max_num_seqs
        for row, attempt in self.attempts.items():
            if not self.alive or (most is not None and len(self._streams) >= most):
                return
            if row not in self._streams:
                self._begin_stream(row, attempt.live)

    def _begin_stream(self, row: int, live: Live) -> None:
        now = self._clock()
        if not self._streams:
            self._busy_from_s = now
        if live.admitted_s != live.admitted_s:
            live.admitted_s = now
        self.prompt_tokens += len(live.tokens)
        self._streams[row] = asyncio.get_running_loop().create_task(self._serve(row, live))

    def _leave(self, row: int) -> None:
        del self.attempts[row]
        if self._streams.pop(row, None) is not None and not self._streams:
            self.busy_s += self._clock() - self._busy_from_s

    async def _serve(self, row: int, live: Live) -> None:
        try:
            await self._read(row, live)
        except ServeError as error:
            live.fail(error)
        except Gone as error:
            if not error.answered or live.attempts < TRIES:
                self._gone(str(error))
                return
            live.fail(Unavailable(f"{self.name}: {error}"))
        self._leave(row)
        self.ended.append(live)
        self._settled(self)

    async def _read(self, row: int, live: Live) -> None:
        """Take tokens until the request has ended, and the stream with it."""
        finished = False
        async with aclosing(self._remote.complete(live)) as chunks:
            async for chunk in chunks:
                now = self._heard_s = self._clock()
                before = live.output_tokens
                live.take(Drawn(row, chunk.tokens, chunk.logprobs), now)
                self.generation_tokens += live.output_tokens - before
                if chunk.finish_reason is not None:
                    finished = True
                    live.finish(chunk.finish_reason, now, chunk.stop_token)
                if live.ended and not finished:
                    return
        if not live.ended:
            raise Gone("a stream ended before its end")

    # -- for reports --------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        seen = super().status()
        span_s = max(self._clock() - self._started_s, 1e-9)
        open_s = self._clock() - self._busy_from_s if self._streams else 0.0
        busy = min(1.0, (self.busy_s + open_s) / span_s)
        return replace(seen, nodes=(self._remote.place,), busy_share=busy)


def _block_size(engine: Engine) -> int:
    return 16 if engine.scheduler is None else engine.scheduler.block_size


def _with_scheduler(engine: Engine) -> Engine:
    """A plan need not say how another server batches, nor how much it holds."""
    least = engine.num_layers * _block_size(engine)
    return replace(
        engine,
        scheduler=engine.scheduler or SchedulerSettings(),
        kv_capacity_layer_tokens=max(engine.kv_capacity_layer_tokens, least),
    )
