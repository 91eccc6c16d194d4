"""One choice of an answer: tokens in, text out, until something ends it."""

from __future__ import annotations

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
    """What one delta adds to a choice. ``stop_reason``: the stop string or token that ended it."""

    text: str
    tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    @property
    def silent(self) -> bool:
        """Nothing a client could see."""
        return not (self.text or self.logprobs or self.finish_reason)


class ChoiceText:
    """Detokenises and looks for stop strings, which count only after ``min_tokens``."""

    def __init__(self, job: Job, index: int) -> None:
        request = job.requests[index]
        self._min_tokens = request.params.min_tokens
        self._tokens = 0
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
        return Piece(text, len(delta.tokens), delta.logprobs, delta.finish_reason, delta.stop_token)

    def _push_matching(self, delta: TokenDelta, matcher: StopMatcher) -> Piece:
        """Token by token: what comes after the stop string in the same delta does not count."""
        shown = []
        for taken, token in enumerate(delta.tokens, 1):
            self._tokens += 1
            text = self._detokenizer.push((token,))
            if self._tokens <= self._min_tokens:
                shown.append(text)
                continue
            shown.append(matcher.push(text))
            if matcher.matched is not None:
                logprobs = delta.logprobs[:taken]
                return Piece("".join(shown), taken, logprobs, "stop", matcher.matched)
        reason: str | None = delta.finish_reason
        stop: str | int | None = delta.stop_token
        if reason:
            shown.append(matcher.push(self._detokenizer.finish()))
            if matcher.matched is not None:
                reason, stop = "stop", matcher.matched
            else:
                shown.append(matcher.finish())
        return Piece("".join(shown), len(delta.tokens), delta.logprobs, reason, stop)
