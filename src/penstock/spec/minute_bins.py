"""Arrivals of many models from counts per minute: MaverIQ's construction over Azure's counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.spec.workload import Request

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BinRules:
    """How a bin of one minute is replayed.

    A bin lasts ``replay_s``; arrivals lie in its first ``window_s``; each model that loads delays
    everything after it by ``load_s``.
    """

    replay_s: float = 30.0
    window_s: float = 29.9
    load_s: float = 90.0
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 < self.window_s <= self.replay_s < math.inf:
            raise SpecError(
                "must be above 0 and at most replay_s", key="window_s", value=self.window_s
            )
        if not 0 <= self.load_s < math.inf:
            raise SpecError("must be 0 or more", key="load_s", value=self.load_s)


@dataclass(frozen=True, slots=True)
class BinTrace:
    """Arrivals of requests and the moments at which models are asked to load.

    ``arrival_s`` ascends within a bin; ``model`` holds the index of each request's model;
    ``deploy_s`` has one entry a model.
    """

    arrival_s: FloatArray
    model: NDArray[np.int64]
    deploy_s: tuple[float, ...]

    def per_model(self) -> tuple[FloatArray, ...]:
        """The arrivals of every model."""
        return tuple(self.arrival_s[self.model == i] for i in range(len(self.deploy_s)))

    def requests(
        self, names: Sequence[str], prompt_tokens: int, output_tokens: int
    ) -> tuple[Request, ...]:
        """The arrivals as requests of named models, all of one length."""
        if len(names) != len(self.deploy_s):
            raise SpecError(
                f"there are {len(self.deploy_s)} models", key="names", value=list(names)
            )
        return tuple(
            Request(i, at_s, prompt_tokens, output_tokens, model=names[model])
            for i, (at_s, model) in enumerate(
                zip(self.arrival_s.tolist(), self.model.tolist(), strict=True)
            )
        )


def bin_trace(
    counts: Sequence[int], scale: float, load_bins: Sequence[int], rules: BinRules | None = None
) -> BinTrace:
    """Replay ``counts`` x ``scale``, floored; model i loads at bin ``load_bins[i]``.

    Each request goes to any of the models loaded so far, all equally likely. Bins ascend and the
    first is 0. Raises ``SpecError``.
    """
    rules = rules or BinRules()
    _check_bins(counts, scale, load_bins)
    rng = np.random.RandomState(rules.seed)
    at = {first: index for index, first in enumerate(load_bins)}
    times: list[FloatArray] = [np.empty(0)]
    models: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    deploys: list[float] = []
    for index, count in enumerate(counts):
        if index in at:
            # The load is asked for one bin late, except the first: as the published traces do.
            late_s = rules.replay_s if index else 0.0
            deploys.append(rules.replay_s * index + rules.load_s * len(deploys) + late_s)
        start_s = rules.replay_s * index + rules.load_s * len(deploys)
        wanted = int(count * scale)
        times.append(start_s + np.sort(rng.uniform(0, rules.window_s, wanted)))
        models.append(rng.randint(0, len(deploys), wanted).astype(np.int64))
    return BinTrace(np.concatenate(times), np.concatenate(models), tuple(deploys))


def _check_bins(counts: Sequence[int], scale: float, load_bins: Sequence[int]) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise SpecError("must be finite and above 0", key="scale", value=scale)
    if not counts or min(counts) < 0:
        raise SpecError("needs counts of 0 or more", key="counts")
    if not load_bins or load_bins[0] != 0:
        raise SpecError("the first model must load at bin 0", key="load_bins")
    if list(load_bins) != sorted(set(load_bins)):
        raise SpecError("must ascend, one model a bin", key="load_bins", value=list(load_bins))
    if load_bins[-1] >= len(counts):
        raise SpecError(
            f"there are {len(counts)} bins", key="load_bins", value=load_bins[-1], fix="load before"
        )
