"""Penstock's own speculation: every draft token pays for the time it takes from all.

Time is what the requests of a step share. A step of t seconds costs request i t / TPOT_i tokens
of its schedule; each token it gains pays one back. With weights w_i that say how much a token of
schedule matters now, a step is worth

    sum_i w_i gain_i - L t          L = sum_i w_i / TPOT_i

and depth, nodes and the requests that take part are chosen to maximise that. The weights are the
feedback: they rise as a request runs out of lead, so that depth and budget follow the load, a
request far ahead sits steps out, and one that can no longer make its limit stops costing others
theirs. Path probabilities are corrected by observed acceptance first.
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

    max_depth, max_width, draft_tokens   bounds of the draft; width = draft_tokens / requests
    lead_tokens, lead_scale              lead at which the weight is half way, and how steep
    floor                                weight of a token for a request far ahead, or lost
    lost_scale                           how sharply a request counts as lost
    best_effort_tpot_s                   what stands in for the limit of best effort
    prefill_step_s                       most that prompts may add to a step, in seconds
    """

    latency: StepLatency
    max_depth: int = 8
    max_width: int = 3
    draft_tokens: int = 96
    lead_tokens: float = 8.0
    lead_scale: float = 4.0
    floor: float = 0.1
    lost_scale: float = 0.05
    best_effort_tpot_s: float = 1.0
    prefill_step_s: float = 0.1
    min_prefill_tokens: int = 128
    calibrate: bool = True
    skip: bool = True


class PricedSpeculator:
    """The controller of the module's head."""

    MEMORY = 0.98

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self._calibration = AcceptanceCalibration()
        self._survival = np.zeros((0, settings.max_depth))
        self._calibrated: CandidateTrees | None = None
        self._tokens = 64.0
        self._fastest = 0.0

    # -- weights ------------------------------------------------------------------------------

    def _tpot(self, view: DecodeView) -> Floats:
        return np.where(np.isinf(view.tpot_s), self._settings.best_effort_tpot_s, view.tpot_s)

    def weights(self, view: DecodeView) -> Floats:
        """``[n]``, between ``floor`` and 1."""
        settings = self._settings
        tpot = self._tpot(view)
        lead = view.tokens - view.decode_s / tpot
        urgent = _sigmoid((settings.lead_tokens - lead) / settings.lead_scale)
        # Share of each remaining token's time that catching up would have to save.
        needed = -lead / view.most_tokens
        possible = 1.0 - self._fastest / tpot
        alive = _sigmoid((possible - needed) / settings.lost_scale)
        weight: Floats = settings.floor + (1.0 - settings.floor) * urgent * alive
        return weight

    def prefill_limit(self, view: DecodeView, prompt_tokens: int) -> int | None:
        settings = self._settings
        slope = settings.latency.verify.marginal_s(512)
        return max(settings.min_prefill_tokens, int(settings.prefill_step_s / slope))

    # -- depth --------------------------------------------------------------------------------

    def plan(self, view: DecodeView) -> DraftPlan:
        settings = self._settings
        weight = self.weights(view)
        rate = float((weight / self._tpot(view)).sum())
        price = rate * settings.latency.verify.marginal_s(self._tokens + view.prefill_tokens)
        self._grow(int(view.kind.max()) + 1)
        width = max(1, min(settings.max_width, settings.draft_tokens // view.requests))
        worth = weight[:, None] * self._survival[view.kind]
        joins: Mask | None = None
        if settings.skip:
            joins = weight >= price
            if not joins.any():
                joins = weight >= weight.max()
            worth = worth[joins]
        layer = np.maximum(0.0, worth - price).sum(axis=0) - rate * settings.latency.draft_pass_s
        total = np.concatenate([[0.0], np.cumsum(layer)])
        return DraftPlan(int(total.argmax()), width, None, joins)

    # -- nodes --------------------------------------------------------------------------------

    def choose(self, view: DecodeView, trees: CandidateTrees) -> Selection:
        settings = self._settings
        n = view.requests
        if settings.calibrate:
            trees = self._calibration.apply(trees, view.kind)
        self._calibrated = trees
        value = trees.path_probability
        if not value.size:
            self._note(n)
            return Selection(np.zeros_like(value, dtype=bool), np.zeros(n, np.int64), np.ones(n))
        weight = self.weights(view)
        rate = float((weight / self._tpot(view)).sum())
        worth = (weight[:, None] * value).ravel()
        order = np.argsort(-worth, kind="stable")
        base = view.prefill_tokens + n
        table = settings.latency.verify
        counts = np.arange(len(order) + 1)
        seconds = _interpolate(table.tokens, table.seconds, base + counts)
        profit = np.concatenate([[0.0], np.cumsum(worth[order])]) - rate * seconds
        most = int(profit.argmax())
        chosen = np.zeros(len(order), bool)
        chosen[order[:most]] = True
        selected = chosen.reshape(value.shape) & (value > 0)
        self._note(n + most)
        return Selection(
            selected, np.zeros(n, np.int64), 1.0 + np.where(selected, value, 0.0).sum(axis=1)
        )

    # -- learning -----------------------------------------------------------------------------

    def observe(
        self, view: DecodeView, trees: CandidateTrees, selection: Selection, path: Ints
    ) -> None:
        settings = self._settings
        if trees.depth == 0 or self._calibrated is None:
            return
        if settings.calibrate:
            self._calibration.observe(trees, selection, path, view.kind)
        value = self._calibrated.path_probability.reshape(len(path), trees.depth, trees.width)
        best = value.max(axis=2)
        kinds = len(self._survival)
        count = np.bincount(view.kind, minlength=kinds)
        for kind in np.nonzero(count)[0]:
            seen = best[view.kind == kind].mean(axis=0)
            keep = self.MEMORY ** count[kind]
            row = self._survival[kind]
            row[: trees.depth] = keep * row[: trees.depth] + (1 - keep) * seen
        self._extend(trees.depth)

    def _extend(self, depth: int) -> None:
        """Layers that were not drafted lately follow the last ratio."""
        table = self._survival
        if depth >= table.shape[1]:
            return
        last = table[:, depth - 1]
        before = table[:, depth - 2] if depth > 1 else np.ones(len(table))
        ratio = np.clip(last / np.maximum(before, 1e-9), 0.0, 1.0)
        for layer in range(depth, table.shape[1]):
            last = last * ratio
            table[:, layer] = last

    def _grow(self, kinds: int) -> None:
        missing = kinds - len(self._survival)
        if missing > 0:
            guess = 0.8 ** np.arange(1, self._settings.max_depth + 1)
            self._survival = np.concatenate([self._survival, np.tile(guess, (missing, 1))])

    def _note(self, tokens: int) -> None:
        self._tokens += 0.1 * (tokens - self._tokens)


def _sigmoid(x: Floats) -> Floats:
    value: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -50.0, 50.0)))
    return value


def _interpolate(tokens: tuple[float, ...], seconds: tuple[float, ...], at: Ints) -> Floats:
    slope = (seconds[-1] - seconds[-2]) / (tokens[-1] - tokens[-2])
    inside: Floats = np.interp(at, tokens, seconds)
    return inside + slope * np.maximum(0, at - tokens[-1])
