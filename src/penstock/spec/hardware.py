"""Accelerators and the nodes that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Interconnect = Literal["nvlink", "pcie", "infinity-fabric", "none"]


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU type, with the figures of its datasheet.

    ``flops_per_s`` holds dense (not sparse) peaks by dtype: fp32, fp16, bf16, fp8, int8, fp4, int4.
    A dtype that is absent is not accelerated. ``interconnect_bytes_per_s`` is the one-way
    bandwidth between two GPUs of one node.
    """

    name: str
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    interconnect: Interconnect
    interconnect_bytes_per_s: float
    price_per_hour: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: ``count`` accelerators of one type that work as one tensor-parallel group.

    ``machine_type`` names the profile table that describes the node (``"A100"``, ``"T4x4"``).
    """

    name: str
    accelerator: Accelerator
    count: int
    machine_type: str
    region: str
    nic_in_bytes_per_s: float
    nic_out_bytes_per_s: float
    disk_bytes_per_s: float
    memory_bytes: int
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Coordinator:
    """The CPU machine that receives requests; first and last hop of every route."""

    region: str
    nic_in_bytes_per_s: float
    nic_out_bytes_per_s: float
