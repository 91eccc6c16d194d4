"""Rates of one accelerator: datasheet peaks times fitted shares."""

from __future__ import annotations

from typing import Any

from penstock.cost.step_arithmetic import (
    ACTIVATION_BYTES,
    ExpertRates,
    ProductRates,
    weight_bytes,
)
from penstock.cost.step_coefficients import Architecture, Chip
from penstock.errors import SpecError
from penstock.spec.hardware import Accelerator


def figures_name(accelerator: Accelerator, dtype: str) -> str:
    """Format whose figures price ``dtype``: 4-bit weights that are widened are priced as int4."""
    if is_narrow(accelerator, dtype) or dtype in ("int8", "int4"):
        return dtype
    return "int4" if dtype == "fp4" else "bf16"


def is_narrow(accelerator: Accelerator, dtype: str) -> bool:
    """Whether products run in this narrow format; int8 and int4 weights are always widened."""
    return dtype in ("fp8", "fp4") and dtype in accelerator.flops_per_s


def peak_flops_per_s(accelerator: Accelerator, dtype: str) -> float:
    """Dense peak of the units a weight format runs on: what is not accelerated is widened."""
    peaks = accelerator.flops_per_s
    for name in (dtype if is_narrow(accelerator, dtype) else "bf16", "bf16", "fp16", "fp32"):
        if name in peaks:
            return peaks[name]
    return max(peaks.values())


def product_rates(
    dtype: str,
    *,
    kernel_s: float,
    compute: float,
    memory: float,
    quantise: float,
    peak: Any,
    bandwidth: Any,
    narrow: bool,
) -> ProductRates:
    """Rates of one format; ``peak`` and ``bandwidth`` are floats or one value per row.

    Quantised activations are read in bf16 and written in the narrow format before the product.
    """
    width = weight_bytes(dtype)
    values = (ACTIVATION_BYTES + width) / (bandwidth * quantise) if narrow else 0.0 * bandwidth
    return ProductRates(
        kernel_s=kernel_s,
        s_per_flop=1.0 / (peak * compute),
        s_per_byte=1.0 / (bandwidth * memory),
        weight_bytes=width,
        input_bytes=width if narrow else ACTIVATION_BYTES,
        quantise_s_per_value=values,
    )


class AcceleratorRates:
    """Rates of one accelerator, by weight format."""

    def __init__(
        self,
        accelerator: Accelerator,
        arch: Architecture,
        chip: Chip | None,
        *,
        kernel_share: float = 1.0,
    ) -> None:
        self._accelerator, self._arch = accelerator, arch
        self._kernel_share = kernel_share
        self._compute = chip.compute if chip else 1.0
        self.bandwidth = accelerator.memory_bandwidth_bytes_per_s * (chip.memory if chip else 1.0)
        self.peak_s_per_byte = 1.0 / self.bandwidth
        self.s_per_byte = 1.0 / (self.bandwidth * arch.memory)
        self.peak_s_per_flop = 1.0 / (peak_flops_per_s(accelerator, "bf16") * self._compute)
        self._products: dict[str, ProductRates] = {}
        self._experts: dict[str, ExpertRates] = {}

    def product(self, dtype: str) -> ProductRates:
        found = self._products.get(dtype)
        if found is None:
            arch = self._arch
            name = figures_name(self._accelerator, dtype)
            share = arch.products.get(name) or arch.products["bf16"]
            found = self._products[dtype] = product_rates(
                dtype,
                kernel_s=share.kernel_s * self._kernel_share,
                compute=share.compute,
                memory=arch.memory,
                quantise=arch.quantise,
                peak=peak_flops_per_s(self._accelerator, dtype) * self._compute,
                bandwidth=self.bandwidth,
                narrow=is_narrow(self._accelerator, dtype),
            )
        return found

    def experts(self, dtype: str) -> ExpertRates:
        found = self._experts.get(dtype)
        if found is None:
            share = self._arch.experts
            name = figures_name(self._accelerator, dtype)
            compute = share.compute.get(name, share.compute["bf16"])
            memory = share.memory.get(name, share.memory["bf16"])
            peak = peak_flops_per_s(self._accelerator, dtype) * self._compute
            found = self._experts[dtype] = ExpertRates(
                kernel_s=share.kernel_s * self._kernel_share,
                s_per_flop=1.0 / (peak * compute),
                s_per_byte=1.0 / (self.bandwidth * memory),
                weight_bytes=weight_bytes(dtype),
                route_s_per_token=share.route_s,
                padding=share.padding,
            )
        return found


def link_bytes_per_s(accelerator: Accelerator, members: int) -> float:
    """One-way bandwidth of a GPU to the others of its group.

    The catalogue states Infinity Fabric by peer: a mesh uses all links at once.
    """
    speed = accelerator.interconnect_bytes_per_s
    if speed <= 0:
        raise SpecError(
            f"{members} accelerators share no interconnect",
            key=f"{accelerator.name}.interconnect_bandwidth",
            value=speed,
            fix="state its bandwidth or use engines of one accelerator",
        )
    return speed * (members - 1) if accelerator.interconnect == "infinity-fabric" else speed
