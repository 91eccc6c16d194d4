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


def header_entries(cluster: Cluster, classes: Sequence[SLOClass]) -> dict[str, object]:
    """What a driver adds to a run's header, so that the run is measured without its documents.

    ``fleet_of_run`` and ``classes_of`` read it back.
    """
    fleet = fleet_of(cluster)
    return {
        "fleet": {"num_gpus": fleet.num_gpus, "price_per_hour": fleet.price_per_hour},
        "classes": class_entries(classes),
    }


def class_entries(classes: Sequence[SLOClass]) -> list[dict[str, object]]:
    """Classes as ``classes_of`` reads them from a header."""
    return [
        {
            "name": entry.name,
            "slo": {
                field.name: limit
                for field in fields(SLO)
                if (limit := getattr(entry.slo, field.name)) is not None
            },
        }
        for entry in classes
    ]


def measured_entries(classes: Sequence[SLOClass]) -> list[dict[str, object]]:
    """``class_entries`` of a measured run; [] where a limit is relative to a plan it has not."""
    if any(entry.slo.tpot_multiple is not None for entry in classes):
        return []
    return class_entries(classes)


def classes_of(header: Mapping[str, object]) -> tuple[SLOClass, ...]:
    """SLO classes in ``header``, at the top or in its workload document; () where none has limits.

    Each entry has a name and, under ``slo``, limits by the names of ``SLO``.
    """
    workload = header.get("workload")
    nested = workload.get("classes") if isinstance(workload, Mapping) else None
    entries = header.get("classes", nested)
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return ()
    classes = tuple(
        SLOClass(name=str(entry.get("name", "")), slo=_slo(entry))
        for entry in entries
        if isinstance(entry, Mapping)
    )
    return tuple(entry for entry in classes if entry.slo != SLO())


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
