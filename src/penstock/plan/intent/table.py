"""Every configuration of a model with its estimates, as arrays: made once, asked often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.cost.fingerprint import Configuration, Demand, Estimator
from penstock.errors import SpecError
from penstock.spec.variants import Precision, Variant

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ConfigurationTable:
    """Configurations of one model for one demand; all arrays have one entry a configuration.

    ``memory_bytes`` counts all GPUs of the configuration.
    """

    model: str
    layers: int
    configurations: tuple[Configuration, ...]
    latency_s: FloatArray
    memory_bytes: FloatArray
    accuracy: FloatArray
    tensor: NDArray[np.int64]
    pipeline: NDArray[np.int64]

    @property
    def gpus(self) -> NDArray[np.int64]:
        return self.tensor * self.pipeline

    @property
    def layer_bytes(self) -> FloatArray:
        """Bytes of a layer on each GPU of its group: the total spread evenly."""
        return self.memory_bytes / (self.tensor * self.layers)


def configuration_space(
    hidden_size: int, gpus: int, precisions: Sequence[Precision]
) -> tuple[Configuration, ...]:
    """Every (TP, PP, precision): TP divides the hidden size, PP up to what the GPUs allow."""
    shapes = [
        (tensor, pipeline)
        for tensor in range(1, gpus + 1)
        if hidden_size % tensor == 0 and tensor & (tensor - 1) == 0
        for pipeline in range(1, gpus // tensor + 1)
    ]
    return tuple(Configuration(tp, pp, one) for tp, pp in shapes for one in precisions)


def build_table(
    model: str,
    layers: int,
    configurations: Sequence[Configuration],
    *,
    estimator: Estimator,
    demand: Demand,
    variants: Sequence[Variant],
) -> ConfigurationTable:
    """Estimate every configuration. Raises ``SpecError`` where a precision has no accuracy."""
    accuracy: Mapping[Precision, float] = {one.precision: one.accuracy for one in variants}
    if not configurations:
        raise SpecError("has no configuration", key=model, fix="give at least one")
    for one in configurations:
        if one.precision not in accuracy:
            raise SpecError(
                "has no accuracy",
                key=f"{model} {one.precision}",
                fix="add the variant with its accuracy",
            )
    return ConfigurationTable(
        model,
        layers,
        tuple(configurations),
        np.array([estimator.latency_s(one, demand) for one in configurations]),
        np.array([estimator.memory_bytes(one, demand) for one in configurations]),
        np.array([accuracy[one.precision] for one in configurations]),
        np.array([one.tensor_parallel_size for one in configurations]),
        np.array([one.pipeline_parallel_size for one in configurations]),
    )
