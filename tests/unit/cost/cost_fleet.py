"""Hand-built clusters and models of the published experiments."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.spec.cluster import Cluster, Link
from penstock.spec.hardware import Accelerator, Coordinator, Interconnect, Node
from penstock.spec.model import ModelSpec

LLAMA2_70B = ModelSpec("llama2-70b", 80, 8192, 64, 8, 128, 28672, 32000, 4096, dtype="fp16")
LLAMA_30B = ModelSpec("llama-30b", 60, 6656, 52, 52, 128, 17920, 32000, 2048, dtype="fp16")

# name: (GB, bytes/s, fp16 flop/s, interconnect, bytes/s between two GPUs), from the datasheets.
_GPUS: Mapping[str, tuple[float, float, float, Interconnect, float]] = {
    "A100": (40, 1555e9, 312e12, "nvlink", 300e9),
    "V100": (16, 900e9, 125e12, "nvlink", 150e9),
    "L4": (24, 300e9, 121e12, "pcie", 32e9),
    "T4": (16, 300e9, 65e12, "pcie", 16e9),
    "H100": (80, 3350e9, 989e12, "nvlink", 450e9),
}
COMPOSITIONS: Mapping[str, Mapping[str, int]] = {
    "single24_or_distributed24": {"A100": 4, "L4": 8, "T4": 12},
    "het42": {"A100": 4, "V100": 6, "L4": 8, "L4x2": 4, "T4": 10, "T4x2": 6, "T4x4": 4},
    "A100x4_only": {"A100": 4},
    "L4x8_only": {"L4": 8},
    "T4x12_only": {"T4": 12},
    "quality10": {"L4": 4, "T4": 6},
}


def accelerator(name: str) -> Accelerator:
    memory, bandwidth, fp16, interconnect, between = _GPUS[name]
    flops = {"fp16": fp16, "fp32": fp16 / 16}
    if name in ("A100", "L4", "H100"):
        flops["bf16"] = fp16
    return Accelerator(
        name, int(memory * 1e9), bandwidth, flops, interconnect, between, None, "datasheet"
    )


def node(machine_type: str, number: int = 0, region: str = "here") -> Node:
    """A node of the published fleets: ``L4x2`` is two L4 in one machine."""
    gpu, _, count = machine_type.partition("x")
    gpus = int(count or 1)
    chip = accelerator(gpu)
    return Node(
        name=f"{machine_type}-{number}",
        accelerator=chip,
        count=gpus,
        machine_type=machine_type,
        region=region,
        nic_in_bytes_per_s=10e9,
        nic_out_bytes_per_s=10e9,
        disk_bytes_per_s=1e9,
        memory_bytes=gpus * chip.memory_bytes,
    )


def cluster(counts: Mapping[str, int], *, regions: tuple[str, ...] = ("here",)) -> Cluster:
    """Nodes dealt to regions in turn; 1 GB/s, 1 ms inside one, 12.5 MB/s, 50 ms apart."""
    names = [machine for machine, count in counts.items() for _ in range(count)]
    nodes = tuple(node(name, i, regions[i % len(regions)]) for i, name in enumerate(names))
    near, far = Link(1e9, 1e-3), Link(12.5e6, 50e-3)
    links = {(a, b): near if a == b else far for a in regions for b in regions}
    return Cluster("fleet", nodes, Coordinator(regions[0], 10e9, 10e9), links, {})
