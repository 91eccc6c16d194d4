"""Who drafts how much, and what of it is verified: the seam between engine and policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from penstock.policy.speculation.latency import LatencyTable
from penstock.policy.speculation.selection import (
    Selection,
    SelectionRules,
    select,
    select_all,
)
from penstock.policy.speculation.shape import AdaptiveShape
from penstock.policy.speculation.slo import required_gain
from penstock.policy.speculation.trees import CandidateTrees, Floats, Ints, Mask


@dataclass(frozen=True)
class DecodeView:
    """What an engine knows of its decoding requests before a step; arrays ``[n]``.

    decode_s        seconds since the first decode step of the request (l)
    tokens          generated so far, the prompt's token included (o)
    tpot_s          limit, inf = best effort
    relative        whether the limit is a multiple of the baseline
    kind            index of its class, for what is learned by class
    prefill_tokens  prompt tokens that share the coming step
    occupancy       share of the engine's slots that are taken
    """

    decode_s: Floats
    tokens: Ints
    tpot_s: Floats
    relative: Mask
    kind: Ints
    prefill_tokens: int = 0
    occupancy: float = 0.0

    @property
    def requests(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class DraftPlan:
    """``depth`` draft passes of ``width`` nodes a request.

    ``joins`` ``[n]`` says who takes part in the step at all; None = everybody.
    """

    depth: int
    width: int
    joins: Mask | None = None


class Speculator(Protocol):
    """Pure: no clock, no I/O. ``plan``, ``choose``, ``observe`` are called once a step each.

    A step without drafts may end with ``plan``.

    ``choose`` and ``observe`` get the view of the requests that join the step.
    """

    def plan(self, view: DecodeView) -> DraftPlan: ...

    def choose(self, view: DecodeView, trees: CandidateTrees) -> Selection: ...

    def observe(
        self, view: DecodeView, trees: CandidateTrees, selection: Selection, path: Ints
    ) -> None:
        """Learn from the verdict: ``path`` holds the columns that were accepted, -1 = none."""
        ...


class ChainSpeculator:
    """``length`` draft tokens for every request in every step (vLLM); 0 = plain decoding."""

    def __init__(self, length: int) -> None:
        self._plan = DraftPlan(length, 1)

    def plan(self, view: DecodeView) -> DraftPlan:
        return self._plan

    def choose(self, view: DecodeView, trees: CandidateTrees) -> Selection:
        return select_all(trees)

    def observe(
        self, view: DecodeView, trees: CandidateTrees, selection: Selection, path: Ints
    ) -> None:
        return


@dataclass(frozen=True, slots=True)
class AdaServeSettings:
    """``verify_budget`` tokens a step, roots included; the rest estimates t_spec.

    t_spec = ``draft_estimate_s`` + ``verify_estimate`` at the budget (AdaServe section 6).
    """

    shape: AdaptiveShape
    verify_budget: int
    draft_estimate_s: float
    verify_estimate: LatencyTable
    rules: SelectionRules = field(default_factory=SelectionRules)


class AdaServeSpeculator:
    """AdaServe, Algorithm 2: adaptive trees, SLO-customised, then throughput-optimised."""

    def __init__(self, settings: AdaServeSettings) -> None:
        self._settings = settings
        self._step_s = settings.draft_estimate_s + settings.verify_estimate.at(
            settings.verify_budget
        )

    def plan(self, view: DecodeView) -> DraftPlan:
        shape = self._settings.shape
        n = view.requests
        return DraftPlan(shape.depth(n), shape.width(n))

    def choose(self, view: DecodeView, trees: CandidateTrees) -> Selection:
        rules = self._settings.rules
        required = required_gain(
            view.decode_s,
            view.tokens.astype(np.float64),
            view.tpot_s,
            self._step_s,
            margin=rules.margin,
            margin_on_step_only=rules.margin_on_step_only,
        )
        eligible = ~np.isinf(view.tpot_s)
        if rules.skip_absolute:
            eligible &= view.relative
        budget = max(0, self._settings.verify_budget - view.requests)
        return select(trees, required, budget, rules, eligible=eligible)

    def observe(
        self, view: DecodeView, trees: CandidateTrees, selection: Selection, path: Ints
    ) -> None:
        return
