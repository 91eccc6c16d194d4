"""The steps of an engine, found again in the token times of its requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from penstock.cost.steps import StepTimer
from penstock.profile.fit import Row

_AT_ONCE_S = 1e-3
"""A prompt that begins so little before the last step has ended begins with the next one."""


@dataclass(frozen=True, slots=True)
class SeenStep:
    """``seqs`` decodes over ``context_tokens``, and the prompts that it completed."""

    seconds: float
    prompt_tokens: int
    seqs: int
    context_tokens: int

    def expected_s(self, timer: StepTimer) -> float:
        prompts = [(self.prompt_tokens, 0)] if self.prompt_tokens else []
        return timer.step_s(prompts, self.seqs, self.context_tokens)


@dataclass(slots=True)
class _Step:
    seqs: int = 0
    context_tokens: int = 0
    prompts: list[Row] = field(default_factory=list)


def seen_steps(rows: Sequence[Row]) -> Iterator[SeenStep]:
    """Steps of one engine that decoded without a break; those with parts of prompts are left out.

    All tokens of a step bear the same time, that of its end. What the host does between two steps
    counts to the later one.
    """
    steps: dict[float, _Step] = {}
    for row in rows:
        for number, time_s in enumerate(row.times_s):
            step = steps.setdefault(time_s, _Step())
            if number:
                step.seqs += 1
                step.context_tokens += row.prompt_tokens + number
            else:
                step.prompts.append(row)
    parts = [(row.begun_s, row.times_s[0]) for row in rows]
    for last_s, end_s in pairwise(sorted(steps)):
        step = steps[end_s]
        begins = min((row.begun_s for row in step.prompts), default=last_s)
        split = any(begun_s < end_s < first_s for begun_s, first_s in parts)
        if step.seqs and begins >= last_s - _AT_ONCE_S and not split:
            tokens = sum(row.prompt_tokens for row in step.prompts)
            yield SeenStep(end_s - last_s, tokens, step.seqs, step.context_tokens)


def mixed_saves_s(rows: Sequence[Row], timer: StepTimer) -> float | None:
    """What a step of prompts and decodes saves against a step of each; the median of all seen.

    None where no such step is among those of ``rows``.
    """
    saved = [
        timer.step_s([(step.prompt_tokens, 0)], 0, 0)
        + timer.decode_s(step.seqs, step.context_tokens)
        - step.seconds
        for step in seen_steps(rows)
        if step.prompt_tokens
    ]
    return max(0.0, median(saved)) if saved else None


def longer_by(engines: Iterable[Sequence[Row]], timer: StepTimer) -> float:
    """By which share the steps of ``engines`` took longer than ``timer`` says, 0 or more."""
    steps = [step for rows in engines for step in seen_steps(rows)]
    expected_s = sum(step.expected_s(timer) for step in steps)
    if not expected_s:
        return 0.0
    return max(0.0, sum(step.seconds for step in steps) / expected_s - 1)
