"""Arrivals of many models from counts per minute, and from rates per interval.

``bin_trace`` is MaverIQ's construction over the Azure counts. ``interval_arrivals`` and
``spread`` follow AlpaServe's rules for the Azure Functions traces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.spec.workload import Request

FloatArray = NDArray[np.float64]
Mode = Literal["stripe", "block"]

MAF1_INTERVAL_S = 60.0
MAF2_INTERVAL_S = 5400.0
# Counts per interval beyond which a fitted rate is not believed.
_FIT_LIMIT = 5.0


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


def power_law_rates(models: int, total_rate_per_s: float, exponent: float = 0.5) -> FloatArray:
    """Rates proportional to (i + 1) ** -exponent that sum to ``total_rate_per_s``; 0 is uniform."""
    _check_positive("models", models)
    _check_positive("total_rate_per_s", total_rate_per_s)
    shares = np.arange(1, models + 1, dtype=np.float64) ** -exponent
    rates: FloatArray = total_rate_per_s * shares / shares.sum()
    return rates


def spread(
    functions: Mapping[str, FloatArray], models: int, mode: Mode = "stripe"
) -> tuple[FloatArray, ...]:
    """Map the series of functions onto models and add them up.

    ``stripe``: function i belongs to model i mod ``models``; ``block``: runs of neighbours.
    All series have one length.
    """
    _check_positive("models", models)
    if len(functions) < models:
        raise SpecError(
            f"there are {len(functions)} functions", key="models", value=models, fix="use fewer"
        )
    series = list(functions.values())
    total = [np.zeros_like(series[0]) for _ in range(models)]
    for index, one in enumerate(series):
        model = index % models if mode == "stripe" else index * models // len(series)
        total[model] = total[model] + one
    return tuple(total)


def interval_arrivals(
    rates_per_s: Sequence[float], cvs: Sequence[float], interval_s: float, seed: int
) -> FloatArray:
    """Gamma arrivals, one rate and one coefficient of variation an interval.

    Shape 1 / cv^2 and scale cv^2 / rate (AlpaServe); each interval starts anew. Raises
    ``SpecError``.
    """
    if len(rates_per_s) != len(cvs):
        raise SpecError("needs one value a rate", key="cvs", value=len(cvs))
    _check_positive("interval_s", interval_s)
    rng = np.random.default_rng(seed)
    parts: list[FloatArray] = [np.empty(0)]
    for index, (rate, cv) in enumerate(zip(rates_per_s, cvs, strict=True)):
        if rate == 0:
            continue
        _check_positive("rates_per_s", rate)
        _check_positive("cvs", cv)
        parts.append(index * interval_s + _gamma_times(rng, rate, cv, interval_s))
    return np.concatenate(parts)


def _gamma_times(
    rng: np.random.Generator, rate_per_s: float, cv: float, length_s: float
) -> FloatArray:
    parts: list[FloatArray] = []
    end_s = 0.0
    while end_s < length_s:
        wanted = int(1.2 * rate_per_s * (length_s - end_s)) + 16
        gaps = rng.gamma(1 / cv**2, cv**2 / rate_per_s, wanted)
        parts.append(end_s + np.cumsum(gaps))
        end_s = float(parts[-1][-1])
    times = np.concatenate(parts)
    return times[times < length_s]


def functions_2019(
    counts: Sequence[float], rate_scale: float, cv_scale: float, seed: int
) -> FloatArray:
    """Arrivals from Azure Functions 2019 counts per minute: the CV is ``cv_scale`` itself."""
    rates = [rate_scale * count / MAF1_INTERVAL_S for count in counts]
    return interval_arrivals(rates, [cv_scale] * len(rates), MAF1_INTERVAL_S, seed)


def functions_2021(
    arrival_s: FloatArray, rate_scale: float, cv_scale: float, seed: int
) -> FloatArray:
    """Arrivals from Azure Functions 2021 invocations: a Gamma fitted by moments every 90 min.

    A fit above five times the empirical rate is reset to the empirical rate and CV 1. Intervals
    of fewer than three invocations have no CV of their own: it is 1.
    """
    if len(arrival_s) == 0:
        return np.empty(0)
    intervals = int(np.max(arrival_s) // MAF2_INTERVAL_S) + 1
    rates, cvs = [], []
    for index in range(intervals):
        start_s = index * MAF2_INTERVAL_S
        inside = np.sort(
            arrival_s[(arrival_s >= start_s) & (arrival_s < start_s + MAF2_INTERVAL_S)]
        )
        rate, cv = _moments(inside)
        rates.append(rate_scale * rate)
        cvs.append(cv_scale * cv)
    return interval_arrivals(rates, cvs, MAF2_INTERVAL_S, seed)


def _moments(times: FloatArray) -> tuple[float, float]:
    empirical = len(times) / MAF2_INTERVAL_S
    gaps = np.diff(times)
    if len(gaps) < 2 or gaps.mean() == 0:
        return empirical, 1.0
    rate, cv = 1 / float(gaps.mean()), float(gaps.std() / gaps.mean())
    if rate > _FIT_LIMIT * empirical or cv == 0:
        return empirical, 1.0
    return rate, cv


def _check_positive(key: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise SpecError("must be finite and above 0", key=key, value=value)
