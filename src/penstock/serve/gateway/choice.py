"""One choice of an answer: tokens in, text out, until something ends it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from penstock.serve.gateway.job import Job
from penstock.serve.protocol import (
    ServeError,
    TokenDelta,
    TokenLogprobs,
    Unavailable,
)
from penstock.serve.text import Detokenizer, StopMatcher


@dataclass(frozen=True, slots=True)
class Piece:
    """What one delta adds to a choice. ``stop_reason``: the stop string or token that ended it.

    ``token_ids`` are set where the client asked for them.
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: tuple[int, ...] = ()

    @property
    def silent(self) -> bool:
        """Nothing a client could see."""
        return not (self.text or self.logprobs or self.finish_reason or self.token_ids)


class ChoiceText:
    """Detokenises and looks for stop strings, which count only after ``min_tokens``."""

    def __init__(self, job: Job, index: int) -> None:
        request = job.requests[index]
        self._min_tokens = request.params.min_tokens
        self._shows_ids = job.return_token_ids
        self._tokens = 0
        # Characters so far, and log probabilities of tokens whose text may be held back, with
        # the character where each ends.
        self._seen = 0
        self._shown = 0
        self._waiting: deque[tuple[int, TokenLogprobs]] = deque()
        self._detokenizer = Detokenizer(
            job.tokenizer,
            context=request.prompt,
            skip_special_tokens=job.skip_special_tokens,
        )
        self._matcher = StopMatcher(job.stops, include=job.include_stop) if job.stops else None

    def push(self, delta: TokenDelta) -> Piece:
        """Raises ``ServeError`` where the runtime gave the request up."""
        if delta.finish_reason == "abort":
            raise Unavailable("the server gave the request up")
        if delta.finish_reason == "error":
            raise ServeError("the server failed in the middle of the request")
        if self._matcher is not None:
            return self._push_matching(delta, self._matcher)
        self._tokens += len(delta.tokens)
        text = self._detokenizer.push(delta.tokens)
        if delta.finish_reason:
            text += self._detokenizer.finish()
        return Piece(
            text,
            len(delta.tokens),
            delta.logprobs,
            delta.finish_reason,
            delta.stop_token,
            self._ids(delta, len(delta.tokens)),
        )

    def _ids(self, delta: TokenDelta, count: int) -> tuple[int, ...]:
        return delta.tokens[:count] if self._shows_ids else ()

    def _push_matching(self, delta: TokenDelta, matcher: StopMatcher) -> Piece:
        """Token by token: what comes after the stop string in the same delta does not count."""
        shown = []
        logprobs: list[TokenLogprobs] = []
        for taken, token in enumerate(delta.tokens, 1):
            self._tokens += 1
            text = self._detokenizer.push((token,))
            self._seen += len(text)
            if delta.logprobs:
                self._waiting.append((self._seen, delta.logprobs[taken - 1]))
            shown.append(matcher.push(text) if self._tokens > self._min_tokens else text)
            logprobs += self._released(shown[-1])
            if matcher.matched is not None:
                ids = self._ids(delta, taken)
                return Piece("".join(shown), taken, tuple(logprobs), "stop", matcher.matched, ids)
        reason: str | None = delta.finish_reason
        stop: str | int | None = delta.stop_token
        if reason:
            shown.append(matcher.push(self._detokenizer.finish()))
            if matcher.matched is not None:
                reason, stop = "stop", matcher.matched
            else:
                shown.append(matcher.finish())
                logprobs += [entry for _, entry in self._waiting]
        count = len(delta.tokens)
        ids = self._ids(delta, count)
        return Piece("".join(shown), count, tuple(logprobs), reason, stop, ids)

    def _released(self, text: str) -> list[TokenLogprobs]:
        """Log probabilities of the tokens that are shown once ``text`` is: they wait with it."""
        self._shown += len(text)
        released = []
        while self._waiting and self._waiting[0][0] <= self._shown:
            released.append(self._waiting.popleft()[1])
        return released
