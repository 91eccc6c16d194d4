"""What happened to one request: its times and tokens, for metrics, the live page and the log."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from penstock.serve.gateway.choice import Piece
from penstock.serve.gateway.formats import Usage
from penstock.serve.gateway.job import Job
from penstock.serve.gateway.metrics import Metrics
from penstock.serve.gateway.window import Window
from penstock.serve.protocol import TokenDelta

_MOST_RECENT = 50


class Journal:
    """Everything that records look into, shared by all requests of an app."""

    def __init__(self, metrics: Metrics, window_s: float) -> None:
        self.metrics = metrics
        self.ttft_s = Window(window_s)
        self.itl_s = Window(window_s)
        self.recent: deque[dict[str, object]] = deque(maxlen=_MOST_RECENT)


@dataclass(slots=True)
class _Times:
    first_s: float | None = None
    last_s: float = 0.0
    queued_s: float | None = None
    tokens: int = 0
    finish_reason: str | None = None


class Record:
    """Times are of one clock that never goes back, in seconds."""

    def __init__(self, journal: Journal, job: Job, arrival_s: float) -> None:
        self._journal = journal
        self._series = journal.metrics.model(job.card.name)
        self._job = job
        self._arrival_s = arrival_s
        self._choices = [_Times() for _ in job.requests]
        self.usage = Usage(job.prompt_tokens)

    def observe(self, index: int, delta: TokenDelta, piece: Piece, now_s: float) -> None:
        """Take what choice ``index`` received at ``now_s``."""
        times = self._choices[index]
        if delta.queued_s is not None:
            times.queued_s = delta.queued_s
        self.usage.cached_tokens = max(self.usage.cached_tokens, delta.cached_prompt_tokens)
        if piece.tokens:
            self._observe_tokens(times, index, piece.tokens, now_s)
        if piece.finish_reason:
            self._observe_end(times, piece.finish_reason, now_s)

    def _observe_tokens(self, times: _Times, index: int, tokens: int, now_s: float) -> None:
        """A step of k tokens counts as k equal gaps: their sum and their number stay true."""
        journal, series, gaps = self._journal, self._series, tokens
        if times.first_s is None:
            times.first_s = now_s
            gaps -= 1
            ttft_s = now_s - self._arrival_s
            series.ttft_s.observe(ttft_s)
            journal.ttft_s.add(ttft_s, now_s)
            prompt_tokens = len(self._job.requests[index].prompt)
            series.prompt_tokens.inc(prompt_tokens)
            series.request_prompt_tokens.observe(prompt_tokens)
            gap_s = 0.0
        else:
            gap_s = (now_s - times.last_s) / tokens
        for _ in range(gaps):
            series.itl_s.observe(gap_s)
            journal.itl_s.add(gap_s, now_s)
        times.last_s = now_s
        times.tokens += tokens
        self.usage.completion_tokens += tokens
        series.generation_tokens.inc(tokens)

    def _observe_end(self, times: _Times, reason: str, now_s: float) -> None:
        series = self._series
        times.finish_reason = reason
        e2e_s = now_s - self._arrival_s
        series.e2e_s.observe(e2e_s)
        series.request_generation_tokens.observe(times.tokens)
        model = self._job.card.name
        self._journal.metrics.success.labels(model, reason).inc()
        first_s = now_s if times.first_s is None else times.first_s
        series.decode_s.observe(now_s - first_s)
        if times.tokens > 1:
            series.tpot_s.observe((times.last_s - first_s) / (times.tokens - 1))
        if times.queued_s is not None:
            series.queue_s.observe(times.queued_s)
            series.prefill_s.observe(max(0.0, first_s - self._arrival_s - times.queued_s))
            series.inference_s.observe(max(0.0, e2e_s - times.queued_s))

    def close(self, outcome: str, now_s: float) -> dict[str, object]:
        """The request is over; returns its facts.

        ``outcome`` is "ok", "aborted" or the code of an error.
        """
        firsts = [times.first_s for times in self._choices if times.first_s is not None]
        reasons = {times.finish_reason or outcome for times in self._choices}
        if outcome == "aborted":
            left = sum(times.finish_reason is None for times in self._choices)
            self._journal.metrics.success.labels(self._job.card.name, "abort").inc(left)
        facts: dict[str, object] = {
            "id": self._job.id,
            "model": self._job.card.name,
            "class": self._job.requests[0].class_name,
            "outcome": outcome,
            "finish_reason": ",".join(sorted(reasons)),
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "cached_tokens": self.usage.cached_tokens,
            "ttft_s": round(min(firsts) - self._arrival_s, 6) if firsts else None,
            "e2e_s": round(now_s - self._arrival_s, 6),
        }
        self._journal.recent.append(facts)
        return facts
