"""Penstock's own speculation: every draft token pays for the time it takes from all.

Time is what the requests of a step share. With weights w_i that say how much a token of request
i matters now, a step of t seconds is worth

    sum_i w_i gain_i - price * t

and depth, nodes and the requests that take part are chosen to maximise that. The price of a
second is what it can yield elsewhere: the best weighted tokens per second of any depth
(Dinkelbach's ratio), or, where that is more, what the schedules of all requests lose in it,
sum_i w_i / TPOT_i. The weights are the feedback: a request's weight rises as it runs out of lead,
so that depth and budget follow the load and a request far ahead sits steps out; when the slots
fill up everyone's tokens count, as only finished requests make room. Path probabilities are
corrected by observed acceptance first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.policy.speculation.calibration import AcceptanceCalibration
from penstock.policy.speculation.latency import StepLatency
from penstock.policy.speculation.selection import Selection
from penstock.policy.speculation.speculator import DecodeView, DraftPlan
from penstock.policy.speculation.trees import CandidateTrees, Floats, Ints, Mask


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """``latency`` is the engine's profile.

    max_depth, max_width, draft_tokens  bounds of the draft; width = draft_tokens / requests
    lead_tokens, lead_scale             lead at which the weight is half way, and how steep
    floor                               weight of a token of a request far ahead
    crowded                             share of taken slots from which the floor rises to 1
    best_effort_tpot_s                  what stands in for the limit of best effort
    calibrate, skip                     use observed acceptance; let requests sit steps out
    prior, by_rank                      of the calibration (``AcceptanceCalibration``)
    memory                              share of what a layer promised that a step leaves
    probe_steps                         steps without drafts after which one layer is drafted to
                                        see what it is worth now; None = never
    """

    latency: StepLatency
    max_depth: int = 8
    max_width: int = 3
    draft_tokens: int = 96
    lead_tokens: float = 8.0
    lead_scale: float = 4.0
    floor: float = 0.1
    crowded: float = 0.7
    best_effort_tpot_s: float = 1.0
    calibrate: bool = True
    skip: bool = True
    prior: float = 200.0
    by_rank: bool = False
    memory: float = 0.98
    probe_steps: int | None = None


class PricedSpeculator:
    """The controller of the module's head. ``weights`` and ``price`` are open to inspection."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self._calibration = AcceptanceCalibration(prior=settings.prior, by_rank=settings.by_rank)
        self._survival = Survival(settings.max_depth, settings.memory)
        self._calibrated: CandidateTrees | None = None
        self._price = 0.0
        self._plain_steps = 0
        self._probing = False

    def weights(self, view: DecodeView) -> Floats:
        """Worth of a token of each request ``[n]``, between ``floor`` and 1."""
        settings = self._settings
        lead = view.tokens - view.decode_s / self._tpot(view)
        urgent = _sigmoid((settings.lead_tokens - lead) / settings.lead_scale)
        crowd = max(0.0, view.occupancy - settings.crowded) / (1.0 - settings.crowded)
        floor = settings.floor + (1.0 - settings.floor) * min(1.0, crowd)
        weight: Floats = floor + (1.0 - floor) * urgent
        return weight

    def plan(self, view: DecodeView) -> DraftPlan:
        settings = self._settings
        latency = settings.latency
        n = view.requests
        weight = self.weights(view)
        survival = weight[:, None] * self._survival.of(view.kind)
        depths = np.arange(settings.max_depth + 1)
        width = max(1, min(settings.max_width, settings.draft_tokens // n))
        pass_s = latency.pass_s(n * width)
        tokens = view.prefill_tokens + n * (1 + depths)
        seconds = latency.overhead_s + depths * pass_s + _target_s(latency, tokens)
        value = weight.sum() + np.concatenate([[0.0], np.cumsum(survival.sum(axis=0))])
        best = float((value / seconds).max())
        self._price = price = max(best, float((weight / self._tpot(view)).sum()))
        node = price * latency.verify.marginal_s(float(tokens[(value / seconds).argmax()]))
        joins: Mask | None = None
        if settings.skip:
            joins = weight >= node
            if not joins.any():
                joins = weight >= weight.max()
            survival = survival[joins]
            n = len(survival)
        layer = np.maximum(0.0, survival - node).sum(axis=0) - price * pass_s
        depth = int(np.concatenate([[0.0], np.cumsum(layer)]).argmax())
        width = max(1, min(settings.max_width, settings.draft_tokens // n))
        self._plain_steps = 0 if depth else self._plain_steps + 1
        self._probing = self._plain_steps == settings.probe_steps
        if self._probing:
            self._plain_steps = 0
            return DraftPlan(1, 1, joins)
        return DraftPlan(depth, width, joins)

    def choose(self, view: DecodeView, trees: CandidateTrees) -> Selection:
        if self._settings.calibrate:
            trees = self._calibration.apply(trees, view.kind)
        self._calibrated = trees
        value = trees.path_probability
        worth = (self.weights(view)[:, None] * value).ravel()
        order = np.argsort(-worth, kind="stable")
        tokens = view.prefill_tokens + view.requests + np.arange(len(order) + 1)
        profit = np.concatenate([[0.0], np.cumsum(worth[order])])
        profit -= self._price * _target_s(self._settings.latency, tokens)
        chosen = np.zeros(len(order), bool)
        chosen[order[: int(profit.argmax())]] = True
        selected = (chosen.reshape(value.shape) | self._probing) & (value > 0)
        gain = 1.0 + np.where(selected, value, 0.0).sum(axis=1)
        return Selection(selected, np.zeros(view.requests, np.int64), gain)

    def observe(
        self, view: DecodeView, trees: CandidateTrees, selection: Selection, path: Ints
    ) -> None:
        if trees.depth == 0 or self._calibrated is None:
            return
        if self._settings.calibrate:
            self._calibration.observe(trees, selection, path, view.kind)
        self._survival.observe(self._calibrated, view.kind)

    def _tpot(self, view: DecodeView) -> Floats:
        return np.where(np.isinf(view.tpot_s), self._settings.best_effort_tpot_s, view.tpot_s)


class Survival:
    """Path probability of the best candidate of each layer, by class: what a layer promises."""

    FIRST_GUESS = 0.8

    def __init__(self, depth: int, memory: float = 0.98) -> None:
        self._memory = memory
        self._guess = self.FIRST_GUESS ** np.arange(1, depth + 1)
        self._table = np.zeros((0, depth))

    def of(self, kind: Ints) -> Floats:
        """``[n, depth]`` for requests of classes ``kind`` ``[n]``."""
        self._grow(int(kind.max()) + 1)
        rows: Floats = self._table[kind]
        return rows

    def observe(self, trees: CandidateTrees, kind: Ints) -> None:
        self._grow(int(kind.max()) + 1)
        depth = trees.depth
        best = trees.path_probability.reshape(len(kind), depth, trees.width).max(axis=2)
        for number in np.unique(kind):
            seen = best[kind == number]
            keep = self._memory ** len(seen)
            row = self._table[number]
            row[:depth] = keep * row[:depth] + (1 - keep) * seen.mean(axis=0)
            self._extend(row, depth)

    @staticmethod
    def _extend(row: Floats, depth: int) -> None:
        """Layers that were not drafted follow the ratio of the last two that were."""
        if depth >= len(row):
            return
        before = row[depth - 2] if depth > 1 else 1.0
        ratio = min(1.0, row[depth - 1] / max(before, 1e-9))
        row[depth:] = row[depth - 1] * ratio ** np.arange(1, len(row) - depth + 1)

    def _grow(self, kinds: int) -> None:
        missing = kinds - len(self._table)
        if missing > 0:
            self._table = np.concatenate([self._table, np.tile(self._guess, (missing, 1))])


def _sigmoid(x: Floats) -> Floats:
    value: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -50.0, 50.0)))
    return value


def _target_s(latency: StepLatency, tokens: Ints) -> Floats:
    """The verification table at many token counts at once."""
    table = latency.verify
    slope = table.marginal_s(table.tokens[-1])
    inside: Floats = np.interp(tokens, table.tokens, table.seconds)
    beyond: Floats = slope * np.maximum(0.0, tokens - table.tokens[-1])
    return inside + beyond
