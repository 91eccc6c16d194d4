"""What a run's header says about its hardware and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from penstock.spec.cluster import Cluster
from penstock.spec.hardware import Node
from penstock.spec.workload import SLO, SLOClass


@dataclass(frozen=True, slots=True)
class Fleet:
    """Provisioned GPUs, used or not, and what they cost; None = unknown."""

    num_gpus: int | None = None
    price_per_hour: float | None = None


def fleet_of(cluster: Cluster) -> Fleet:
    """Count the GPUs of ``cluster`` and add up their prices; no price if one is missing."""
    prices = [_node_price(node) for node in cluster.nodes]
    known = [price for price in prices if price is not None]
    return Fleet(
        num_gpus=sum(node.count for node in cluster.nodes),
        price_per_hour=sum(known) if prices and len(known) == len(prices) else None,
    )


def fleet_of_run(header: Mapping[str, object]) -> Fleet:
    """Read ``header["fleet"]`` = {num_gpus, price_per_hour}; unknown where it is absent."""
    entry = header.get("fleet")
    if not isinstance(entry, Mapping):
        return Fleet()
    gpus, price = entry.get("num_gpus"), entry.get("price_per_hour")
    return Fleet(
        num_gpus=gpus if isinstance(gpus, int) else None,
        price_per_hour=float(price) if isinstance(price, int | float) else None,
    )


def classes_of(header: Mapping[str, object]) -> tuple[SLOClass, ...]:
    """SLO classes of the workload document in ``header``; () where it names none.

    A limit is found under the names of ``SLO``, directly in the class or under ``slo``.
    """
    workload = header.get("workload")
    entries = workload.get("classes") if isinstance(workload, Mapping) else None
    if isinstance(entries, Mapping):
        entries = [
            {"name": name, **entry} for name, entry in entries.items() if isinstance(entry, Mapping)
        ]
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return ()
    return tuple(
        SLOClass(name=str(entry.get("name", "")), slo=_slo(entry))
        for entry in entries
        if isinstance(entry, Mapping)
    )


def _slo(entry: Mapping[str, object]) -> SLO:
    nested = entry.get("slo")
    source = nested if isinstance(nested, Mapping) else entry
    limits = {}
    for field in fields(SLO):
        value = source.get(field.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            limits[field.name] = float(value)
    return SLO(**limits)


def _node_price(node: Node) -> float | None:
    if node.price_per_hour is not None:
        return node.price_per_hour
    per_gpu = node.accelerator.price_per_hour
    return None if per_gpu is None else per_gpu * node.count
