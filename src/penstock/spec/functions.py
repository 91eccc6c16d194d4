"""Azure Functions traces as arrivals of models, by AlpaServe's rules.

Functions are mapped to models; each interval of a model's arrivals becomes a Gamma process of a
rate and a coefficient of variation, which scale.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.spec.arrivals import IntervalArrivals
from penstock.spec.traces import opened

FloatArray = NDArray[np.float64]
Mapping = Literal["stripe", "block"]

MINUTE_S = 60.0
FIT_INTERVAL_S = 5400.0
_FIT_LIMIT = 5.0
"""Times the empirical rate beyond which a fitted rate is not believed."""
_COUNT_COLUMNS = ("HashOwner", "HashApp", "HashFunction", "Trigger")
_INVOCATION_COLUMNS = ("app", "func", "end_timestamp", "duration")


def model_of(function: int, functions: int, models: int, mapping: Mapping) -> int:
    """``stripe``: function i belongs to model i mod ``models``; ``block``: runs of neighbours."""
    return function % models if mapping == "stripe" else function * models // functions


def spread(
    functions: Sequence[FloatArray], models: int, mapping: Mapping = "stripe"
) -> tuple[FloatArray, ...]:
    """Counts per minute of each model: the sum over its functions. All have one length."""
    _check_enough(len(functions), models)
    total = [np.zeros_like(functions[0]) for _ in range(models)]
    for index, counts in enumerate(functions):
        model = model_of(index, len(functions), models, mapping)
        total[model] = total[model] + counts
    return tuple(total)


def gather(
    functions: Sequence[FloatArray], models: int, mapping: Mapping = "stripe"
) -> tuple[FloatArray, ...]:
    """Arrivals of each model, ascending: those of its functions together."""
    _check_enough(len(functions), models)
    each: list[list[FloatArray]] = [[] for _ in range(models)]
    for index, times in enumerate(functions):
        each[model_of(index, len(functions), models, mapping)].append(times)
    return tuple(np.sort(np.concatenate(own)) for own in each)


def _check_enough(functions: int, models: int) -> None:
    if models < 1 or functions < models:
        raise SpecError(
            f"there are {functions} functions", key="models", value=models, fix="name fewer models"
        )


def from_counts(counts: FloatArray, rate_scale: float, cv_scale: float) -> IntervalArrivals:
    """Arrivals of one model from its counts per minute (the 2019 trace): the CV is ``cv_scale``."""
    rates = tuple(float(rate_scale * count / MINUTE_S) for count in counts)
    return IntervalArrivals(rates, (cv_scale,) * len(rates), MINUTE_S)


def from_invocations(
    arrival_s: FloatArray, length_s: float, rate_scale: float, cv_scale: float
) -> IntervalArrivals:
    """Arrivals of one model from single invocations (the 2021 trace) over ``length_s``.

    A Gamma process is fitted by moments every 90 min. A fit above five times the empirical rate
    is reset to the empirical rate and CV 1. Intervals of fewer than three invocations have no CV
    of their own: it is 1.
    """
    rates, cvs = [], []
    for index in range(max(1, int(np.ceil(length_s / FIT_INTERVAL_S)))):
        start_s = index * FIT_INTERVAL_S
        end_s = min(start_s + FIT_INTERVAL_S, length_s)
        inside = arrival_s[(arrival_s >= start_s) & (arrival_s < end_s)]
        rate, cv = _moments(inside, end_s - start_s)
        rates.append(rate_scale * rate)
        cvs.append(cv_scale * cv)
    return IntervalArrivals(tuple(rates), tuple(cvs), FIT_INTERVAL_S)


def _moments(times: FloatArray, length_s: float) -> tuple[float, float]:
    empirical = len(times) / length_s
    gaps = np.diff(times)
    if len(gaps) < 2 or gaps.mean() == 0:
        return empirical, 1.0
    rate, cv = 1 / float(gaps.mean()), float(gaps.std() / gaps.mean())
    if rate > _FIT_LIMIT * empirical or cv == 0:
        return empirical, 1.0
    return rate, cv


def read_counts(path: str | Path) -> tuple[FloatArray, ...]:
    """Counts per minute of each function, in the order of the file (2019: one day a file)."""
    functions: dict[tuple[str, ...], FloatArray] = {}
    rows = _rows(Path(path), _COUNT_COLUMNS)
    header = next(rows)[1]
    minutes = [i for i, name in enumerate(header) if name.isdigit()]
    if not minutes:
        raise SpecError("has no columns 1, 2, ... of counts per minute", source=path)
    for line, row in rows:
        name = tuple(row[header.index(column)] for column in _COUNT_COLUMNS)
        counts = _numbers(path, line, [row[i] or "0" for i in minutes])
        functions[name] = functions[name] + counts if name in functions else counts
    return _some(path, functions)


def read_invocations(path: str | Path) -> tuple[FloatArray, ...]:
    """Seconds at which each function was called, in the order of first mention (2021)."""
    times: dict[tuple[str, ...], list[float]] = {}
    rows = _rows(Path(path), _INVOCATION_COLUMNS)
    header = next(rows)[1]
    app, function, end, duration = (header.index(name) for name in _INVOCATION_COLUMNS)
    for line, row in rows:
        ended, took = _numbers(path, line, [row[end], row[duration]])
        times.setdefault((row[app], row[function]), []).append(max(0.0, float(ended - took)))
    return _some(path, {name: np.sort(np.array(own)) for name, own in times.items()})


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells): the header, then every row."""
    with opened(path) as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in needed if name not in header]
        if missing:
            raise SpecError("column is missing", source=path, key=missing[0])
        yield 1, header
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise SpecError(
                    f"{len(row)} values for {len(header)} columns",
                    source=f"{path}:{reader.line_num}",
                )
            yield reader.line_num, row


def _numbers(path: str | Path, line: int, cells: Sequence[str]) -> FloatArray:
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise SpecError(f"not a number: {error}", source=f"{path}:{line}") from None
    if not (np.isfinite(values) & (values >= 0)).all():
        raise SpecError("must be finite numbers, 0 or more", source=f"{path}:{line}")
    return values


def _some(path: str | Path, functions: dict[tuple[str, ...], FloatArray]) -> tuple[FloatArray, ...]:
    if not functions:
        raise SpecError("the trace is empty", source=path, fix="give a file with functions")
    return tuple(functions.values())
