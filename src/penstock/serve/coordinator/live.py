"""One request while it is served, and what its client reads."""

from __future__ import annotations

import asyncio
from math import nan

from penstock.policy.speculation.slo import TpotLimit
from penstock.serve.protocol import (
    FinishReason,
    GenerationRequest,
    ServeError,
    TokenDelta,
    TokenLogprobs,
)
from penstock.serve.wire import Drawn, Sampling

BEST_EFFORT = TpotLimit()


class Live:
    """``tokens`` are prompt and output so far. Whoever serves it calls ``take``.

    ``row`` numbers requests in order of arrival. ``class_index`` and ``tpot`` are resolved from
    the SLO classes of the server.
    """

    __slots__ = (
        "_error",
        "_logprobs",
        "_pending",
        "_reader",
        "_stop",
        "_told",
        "admitted_s",
        "arrival_s",
        "attempts",
        "cached_tokens",
        "class_index",
        "finish_reason",
        "first_token_s",
        "hashes",
        "last_token_s",
        "place",
        "preemptions",
        "prompt_tokens",
        "request",
        "row",
        "seed",
        "stop_token",
        "token_s",
        "tokens",
        "tpot",
    )

    def __init__(
        self,
        row: int,
        request: GenerationRequest,
        arrival_s: float,
        *,
        stop: frozenset[int],
        seed: int,
        class_index: int = 0,
        tpot: TpotLimit = BEST_EFFORT,
        hashes: tuple[int, ...] = (),
    ) -> None:
        self.row = row
        self.request = request
        self.arrival_s = arrival_s
        self.tokens = list(request.prompt)
        self.prompt_tokens = len(request.prompt)
        self.seed = seed
        self.class_index = class_index
        self.tpot = tpot
        self.hashes = hashes
        self.place = ""
        self.admitted_s = self.first_token_s = self.last_token_s = nan
        self.token_s: list[float] = []
        self.preemptions = 0
        self.attempts = 0
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_token: int | None = None
        self._stop = stop
        self._pending: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._error: ServeError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._told = False

    # -- what the server knows ----------------------------------------------------------------

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def left(self) -> int:
        """Tokens it may still produce."""
        return self.request.params.max_tokens - self.output_tokens

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None

    def sampling(self) -> Sampling:
        """The sampling state that lets a worker go on from here."""
        params = self.request.params
        prompt: tuple[int, ...] = ()
        output: tuple[int, ...] = ()
        if params.penalised:
            prompt = self.request.prompt
            output = tuple(self.tokens[self.prompt_tokens :])
        return Sampling(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            seed=self.seed,
            logprobs=params.logprobs,
            min_tokens=params.min_tokens,
            stop=tuple(sorted(self._stop)),
            position=self.output_tokens,
            prompt=prompt,
            output=output,
        )

    # -- from the engine ----------------------------------------------------------------------

    def take(self, drawn: Drawn, now: float) -> bool:
        """Book new tokens; True when the request has ended. Tokens past the end are dropped."""
        if self.ended:
            return True
        params = self.request.params
        for i, token in enumerate(drawn.tokens):
            if token in self._stop and self.output_tokens >= params.min_tokens:
                self.stop_token = token
                self._end("stop", now)
                break
            self.tokens.append(token)
            self.token_s.append(now)
            self._pending.append(token)
            if i < len(drawn.logprobs):
                logprob, top = drawn.logprobs[i]
                self._logprobs.append(TokenLogprobs(token, logprob, top))
            if self.left <= 0:
                self._end("length", now)
                break
        if self.token_s:
            self.last_token_s = self.token_s[-1]
            if self.first_token_s != self.first_token_s:
                self.first_token_s = self.token_s[0]
        self._wake()
        return self.ended

    def _end(self, reason: FinishReason, now: float) -> None:
        self.finish_reason = reason
        if self.last_token_s != self.last_token_s:
            self.first_token_s = self.last_token_s = now

    def finish(self, reason: FinishReason, now: float, stop_token: int | None = None) -> None:
        """End where another server says that it has."""
        if not self.ended:
            self.stop_token = stop_token
            self._end(reason, now)
            self._wake()

    def fail(self, error: ServeError) -> None:
        """End with an answer that is not tokens."""
        if not self.ended:
            self.finish_reason = "error"
            self._error = error
            self._wake()

    def cancel(self) -> None:
        """The client has gone."""
        if not self.ended:
            self.finish_reason = "abort"
            self._wake()

    # -- to the client ------------------------------------------------------------------------

    async def next(self) -> TokenDelta:
        """All tokens since the last call, as soon as there is one. Raises ``ServeError``."""
        while not self._pending and not self.ended:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        if self._error is not None and not self._pending:
            raise self._error
        queued_s = None
        if not self._told and self.admitted_s == self.admitted_s:
            queued_s = self.admitted_s - self.arrival_s
        self._told = True
        delta = TokenDelta(
            tuple(self._pending),
            tuple(self._logprobs),
            None if self._error is not None else self.finish_reason,
            self.stop_token,
            self.cached_tokens,
            queued_s,
        )
        self._pending.clear()
        self._logprobs.clear()
        return delta

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
