"""The fitted efficiencies of the roofline, read from ``coefficients.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path

import yaml

from penstock.spec.hardware import Interconnect

BUNDLED = Path(__file__).with_name("coefficients.yaml")


@dataclass(frozen=True, slots=True)
class Chip:
    """Share of the datasheet peak one accelerator reaches.

    prefill_compute   of the matrix peak, in batches of prompt tokens
    decode_compute    the same in batches of decode sequences (small, skinny products)
    memory            of the memory bandwidth
    """

    prefill_compute: float
    decode_compute: float
    memory: float


@dataclass(frozen=True, slots=True)
class Group:
    """All-reduce between the accelerators of one node, by kind of interconnect.

    bandwidth   share of the interconnect bandwidth reached
    latency_s   of a small all-reduce between two; grows with the root of the group's size,
                which follows nccl-tests from 2 to 8 members
    """

    bandwidth: float
    latency_s: float

    def latency_of(self, members: int) -> float:
        return self.latency_s * sqrt(members / 2)


@dataclass(frozen=True, slots=True)
class Shared:
    """Coefficients of all accelerators.

    launch_s       host and kernel launch time of one layer, per step
    hidden_passes  times the hidden state goes through memory outside matrix products
    usable_memory  share of the printed memory an engine sees
    """

    launch_s: float
    hidden_passes: float
    usable_memory: float


@dataclass(frozen=True)
class Coefficients:
    """Efficiencies by chip family, the stand-in for all others, and where they come from."""

    chips: Mapping[str, Chip]
    other: Chip
    shared: Shared
    pcie: Group
    nvlink: Group
    source: str
    error: str
    domain: str
    notes: tuple[str, ...]

    def chip(self, accelerator: str) -> tuple[Chip, bool]:
        """(efficiencies, fitted) of an accelerator: by family (``A100-80GB`` is an ``A100``)."""
        family = accelerator.replace("_", "-").split("-")[0].upper()
        found = self.chips.get(family)
        return (self.other, False) if found is None else (found, True)

    def group(self, interconnect: Interconnect) -> Group:
        """All-reduce figures; Infinity Fabric counts as NVLink, a bare board as PCIe."""
        return self.nvlink if interconnect in ("nvlink", "infinity-fabric") else self.pcie


@cache
def bundled_coefficients() -> Coefficients:
    """The coefficients that come with the package, read once."""
    return read_coefficients(BUNDLED)


def read_coefficients(path: Path) -> Coefficients:
    """Read a file written by ``python -m penstock.cost.fit``."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Coefficients(
        chips={name: Chip(**values) for name, values in raw["chips"].items()},
        other=Chip(**raw["other_chips"]),
        shared=Shared(**raw["shared"]),
        pcie=Group(**raw["all_reduce"]["pcie"]),
        nvlink=Group(**raw["all_reduce"]["nvlink"]),
        source=raw["source"],
        error=raw["error"],
        domain=raw["domain"],
        notes=tuple(raw["notes"]),
    )
