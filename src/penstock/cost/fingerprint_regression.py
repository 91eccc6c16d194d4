"""Non-negative regression on relative errors, robust to outliers; NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_ROUNDS = 15
_SWEEPS = 400
# A sweep that moves every coefficient by less than this share of the largest is the last.
_STILL = 1e-10
# Relative errors below this weigh alike.
_FLOOR = 0.02


def fit_relative(rows: FloatArray, values: FloatArray) -> FloatArray:
    """Coefficients of 0 or more that make ``rows @ x / values`` near 1.

    Iteratively reweighted least squares: between least squares (errors below 2 %) and least
    absolute errors (above). ``rows`` has shape (samples, terms); ``values`` are above 0.
    """
    relative = rows / values[:, None]
    weights = np.ones(len(values))
    found = np.zeros(rows.shape[1])
    for _ in range(_ROUNDS):
        found = non_negative(relative * weights[:, None], weights, start=found)
        error = np.abs(relative @ found - 1)
        weights = 1 / np.sqrt(np.maximum(error, _FLOOR))
    return found


def non_negative(
    rows: FloatArray, values: FloatArray, *, sweeps: int = _SWEEPS, start: FloatArray | None = None
) -> FloatArray:
    """Least squares with coefficients of 0 or more, by coordinate descent on scaled columns."""
    scale = np.sqrt((rows * rows).sum(axis=0))
    scale[scale == 0] = 1.0
    scaled = rows / scale
    gram, target = scaled.T @ scaled, scaled.T @ values
    found = np.zeros(len(target)) if start is None else start * scale
    used = [i for i in range(len(target)) if gram[i, i] > 0]
    for _ in range(sweeps):
        moved = 0.0
        for i in used:
            step = max(-found[i], (target[i] - gram[i] @ found) / gram[i, i])
            found[i] += step
            moved = max(moved, abs(step))
        if moved <= _STILL * max(1e-300, float(found.max())):
            break
    result: FloatArray = found / scale
    return result
