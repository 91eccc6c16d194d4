"""The runtime behind the gateway: one plan, its workers, and the requests it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from hashlib import blake2b
from itertools import count

from penstock.cost.steps import StepCostModel
from penstock.errors import InputError
from penstock.measure.run import Run
from penstock.plan.plan import Plan
from penstock.policy.blocks import chain_hashes
from penstock.policy.speculation.slo import TpotLimit, limit_of_slo
from penstock.serve.coordinator.domain import Domain, make_domain
from penstock.serve.coordinator.live import Live
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.record import Ledger
from penstock.serve.pool import WorkerPool
from penstock.serve.protocol import (
    DeadlineExceeded,
    EngineStatus,
    GenerationRequest,
    ModelCard,
    Overloaded,
    RequestTooLong,
    TokenDelta,
    UnknownModel,
)
from penstock.serve.wire import Failed, ToCoordinator
from penstock.spec.workload import SLOClass


class Runtime:
    """Implements ``protocol.Generator`` over a pool of workers.

    ``eos`` are the token ids that end a request. ``classes`` are the SLO classes of the workload
    the server was started for. ``cost`` tells null executors how long steps take.
    ``piece_tokens`` of prompts are hashed at a time where engines that come later cache prefixes.
    """

    def __init__(
        self,
        plan: Plan,
        pool: WorkerPool,
        card: ModelCard,
        options: ServeOptions | None = None,
        *,
        eos: tuple[int, ...] = (),
        classes: tuple[SLOClass, ...] = (),
        cost: StepCostModel | None = None,
        clock: Callable[[], float] | None = None,
        piece_tokens: int | None = None,
    ) -> None:
        self.options = options or ServeOptions()
        self._plan, self._pool, self._card = plan, pool, card
        self._eos = frozenset(eos)
        self._clock = clock or asyncio.get_running_loop().time
        self._classes = {entry.name: entry for entry in classes}
        self._class_names = list(self._classes)
        self._rows = count()
        self.ledger = Ledger(self._clock(), self._class_names, keep=self.options.record)
        self.domain: Domain = make_domain(
            plan,
            pool,
            self.options,
            classes=self._classes,
            ended=self._ended,
            clock=self._clock,
            cost=cost,
        )
        self.piece_tokens = _piece_tokens(plan) if piece_tokens is None else piece_tokens
        pool.listen(self._receive, self._died)

    async def start(self) -> None:
        """Start all workers. Raises ``InputError`` where one cannot be built."""
        await self.domain.start()

    async def close(self) -> None:
        """End everything; requests under way end with an error."""
        await self.domain.close()
        await self._pool.close()

    async def end_requests(self) -> None:
        """Let no request wait any longer: all end with an error."""
        await self.domain.close()

    async def drain(self, seconds: float) -> None:
        """Wait until nothing runs, for ``seconds`` at most."""
        end_s = self._clock() + seconds
        while self.domain.outstanding and self._clock() < end_s:
            await asyncio.sleep(0.02)

    # -- requests -----------------------------------------------------------------------------

    def models(self) -> tuple[ModelCard, ...]:
        return (self._card,)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """See ``protocol.Generator``."""
        live = self._admit(request)
        expiry: asyncio.TimerHandle | None = None
        if request.deadline_s is not None:
            loop = asyncio.get_running_loop()
            expiry = loop.call_later(request.deadline_s, self._expire, live)
        try:
            while True:
                delta = await live.next()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            if expiry is not None:
                expiry.cancel()
            if not live.ended:
                live.cancel()
                self.domain.cancel(live)
                self.ledger.ended(live)

    def _admit(self, request: GenerationRequest) -> Live:
        """Check a request and give it to the engines. Raises ``ServeError``."""
        card = self._card
        if request.model and request.model != card.name:
            raise UnknownModel(f"the model {request.model!r} is not served; {card.name!r} is")
        length = len(request.prompt) + request.params.max_tokens
        if not request.prompt:
            raise RequestTooLong("the prompt is empty")
        if length > card.max_model_len:
            raise RequestTooLong(
                f"{len(request.prompt)} prompt tokens and {request.params.max_tokens} output "
                f"tokens exceed the context length of {card.max_model_len} tokens"
            )
        if self.domain.num_waiting >= self.options.max_waiting:
            raise Overloaded(f"{self.domain.num_waiting} requests wait already")
        live = self._live(request)
        self.domain.submit(live)
        return live

    def _live(self, request: GenerationRequest) -> Live:
        row = next(self._rows)
        params = request.params
        entry = self._classes.get(request.class_name)
        tpot = TpotLimit(limit_s=request.tpot_s)
        if request.tpot_s is None and entry is not None:
            tpot = limit_of_slo(entry.slo)
        stop = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop |= self._eos
        return Live(
            row,
            request,
            self._clock(),
            stop=stop,
            seed=_seed(self.options.seed, row) if params.seed is None else params.seed,
            class_index=self._class_names.index(request.class_name) if entry is not None else 0,
            tpot=tpot,
            hashes=self._hashes(request.prompt),
        )

    def _hashes(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        size = self.piece_tokens
        if not size:
            return ()
        pieces = [prompt[i : i + size] for i in range(0, len(prompt) - size + 1, size)]
        return chain_hashes(pieces)

    def _expire(self, live: Live) -> None:
        if not live.ended:
            self.domain.cancel(live)
            live.fail(DeadlineExceeded("the deadline of the request has passed"))
            self.ledger.ended(live)

    def _ended(self, live: Live) -> None:
        self.ledger.ended(live)

    # -- messages -----------------------------------------------------------------------------

    def _receive(self, message: ToCoordinator) -> None:
        if isinstance(message, Failed):
            self._died(message.worker, message.problem)
        else:
            self.domain.receive(message)

    def _died(self, worker: str, why: str) -> None:
        self.ledger.note(self._clock(), "fail", f"{worker}: {why}")
        self.domain.died(worker, why)

    # -- for the gateway ----------------------------------------------------------------------

    def engines(self) -> tuple[EngineStatus, ...]:
        return self.domain.status()

    def ready(self) -> bool:
        return self.domain.ready()

    def counters(self) -> Mapping[str, float]:
        ledger = self.ledger
        return {
            "requests_finished": ledger.counts["finished"],
            "requests_aborted": ledger.counts["dropped"],
            "requests_failed": ledger.counts["failed"],
            "prompt_tokens": ledger.prompt_tokens,
            "generation_tokens": ledger.generated_tokens,
            "preemptions": ledger.preemptions,
            "outstanding": self.domain.outstanding,
            "waiting": self.domain.num_waiting,
            **self.domain.counters(),
        }

    def model_counters(self) -> Mapping[str, Mapping[str, float]]:
        return {self._card.name: self.counters()}

    async def administer(self, action: str, body: Mapping[str, object]) -> Mapping[str, object]:
        if action.startswith(("models.", "pool.")):
            raise InputError(
                "this server holds one model for good; start it with --model NAME=DIR, --deploy or "
                "a pool plan, and models may come and go"
            )
        result = await self.domain.administer(action, body)
        self.ledger.note(self._clock(), action, ", ".join(f"{k} {v}" for k, v in result.items()))
        return result

    def run(self, name: str, header: Mapping[str, object]) -> Run:
        """What was served so far (``ServeOptions.record``), in the one schema."""
        return self.ledger.run(name, header, self.engines(), self._clock())


def _seed(base: int, row: int) -> int:
    """A seed for a request that names none: the same for the same server seed and order."""
    return int.from_bytes(blake2b(f"{base}/{row}".encode(), digest_size=8).digest(), "big") >> 1


def _piece_tokens(plan: Plan) -> int:
    """Tokens of a prompt piece where some engine caches prefixes, else 0."""
    sizes = {
        engine.scheduler.prefix_piece_tokens
        for engine in plan.engines
        if engine.scheduler is not None and engine.scheduler.enable_prefix_caching
    }
    if len(sizes) > 1:
        raise InputError("engines with prefix caches need one prefix_piece_tokens")
    return sizes.pop() if sizes else 0
