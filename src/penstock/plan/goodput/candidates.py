"""Fleets worth a simulation, from what single engines sustain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from math import ceil, floor

from penstock.plan.goodput.fleet import Fleet
from penstock.plan.goodput.question import Capacity, Question, Tried

POOLING = 0.85
"""Several engines behind one router sustain a little more than their sum."""


def by_variant(capacities: Iterable[Capacity]) -> list[list[Capacity]]:
    """Those that sustain any rate, apart by weights and speculation."""
    groups: dict[object, list[Capacity]] = {}
    for one in capacities:
        if one.rate_per_s > 0:
            groups.setdefault(one.choice.variant, []).append(one)
    return list(groups.values())


def for_rate(question: Question, capacities: Sequence[Capacity]) -> list[Fleet]:
    """Fleets whose engines add up to about the rate."""
    found: list[Fleet] = []
    rate = POOLING * question.rate_per_s
    for good in by_variant(capacities):
        together, prompts, decodes = _roles(good)
        found += [Fleet(((one.choice, _count(one, rate)),)) for one in together]
        found += [
            Fleet(((p.choice, _count(p, rate)), (d.choice, _count(d, rate))))
            for p in prompts
            for d in decodes
        ]
        if question.mixed:
            for one, other in combinations(_best_by_type(together), 2):
                found += _mixtures(one, other, rate)
    return found


def for_gpus(question: Question, capacities: Sequence[Capacity]) -> list[tuple[float, Fleet]]:
    """Fleets that use what is on offer, with the rate that their engines add up to; best first."""
    found: list[tuple[float, Fleet]] = []
    limits = {offer.accelerator.name: offer.count or 0 for offer in question.offers}
    for good in by_variant(capacities):
        together, prompts, decodes = _roles(good)
        for one in together:
            count = limits[one.choice.gpu] // one.choice.num_gpus
            found.append((count * one.rate_per_s, Fleet(((one.choice, count),))))
        found += [pair for p in prompts for d in decodes if (pair := _apart(p, d, limits))]
        if question.mixed:
            found += _all_types(together, limits)
    return sorted(found, key=lambda entry: -entry[0])


def offered(question: Question, fleet: Fleet) -> bool:
    limits = {offer.accelerator.name: offer.count for offer in question.offers}
    return all(
        (most := limits[name]) is None or count <= most
        for name, count in fleet.gpus_by_type().items()
    )


def larger(found: Tried) -> list[Fleet]:
    """One engine more: of the phase that binds, or of each kind in a mixture."""
    fleet = found.fleet
    roles = [choice.role for choice, _ in fleet.engines]
    if "prefill" in roles:
        return [fleet.grown(roles.index("decode" if found.binding == "TPOT" else "prefill"))]
    return [fleet.grown(place) for place in range(len(roles))]


def _roles(good: Sequence[Capacity]) -> tuple[list[Capacity], list[Capacity], list[Capacity]]:
    return (
        [one for one in good if one.choice.role == "both"],
        [one for one in good if one.choice.role == "prefill"],
        [one for one in good if one.choice.role == "decode"],
    )


def _count(one: Capacity, rate_per_s: float) -> int:
    return max(1, ceil(rate_per_s / one.rate_per_s))


def _mixtures(one: Capacity, other: Capacity, rate_per_s: float) -> list[Fleet]:
    fleets = []
    for count in range(1, floor(rate_per_s / one.rate_per_s) + 1):
        rest = rate_per_s - count * one.rate_per_s
        if rest > 0:
            engines = ((one.choice, count), (other.choice, ceil(rest / other.rate_per_s)))
            fleets.append(Fleet(engines, (one.rate_per_s, other.rate_per_s)))
    return fleets


def _best_by_type(together: Sequence[Capacity]) -> list[Capacity]:
    """The two kinds of each accelerator with the most requests for a dollar, or for a GPU."""
    by_type: dict[str, list[Capacity]] = {}
    for one in together:
        by_type.setdefault(one.choice.gpu, []).append(one)

    def worth(one: Capacity) -> float:
        return (one.choice.price_per_hour or one.choice.num_gpus) / one.rate_per_s

    return [one for group in by_type.values() for one in sorted(group, key=worth)[:2]]


def _apart(
    prompts: Capacity, decodes: Capacity, limits: Mapping[str, int]
) -> tuple[float, Fleet] | None:
    """The best split of the GPUs between two kinds of engines, if there is room for one each."""
    p, d = prompts.choice, decodes.choice
    best: tuple[float, Fleet] | None = None
    for count in range(1, limits[p.gpu] // p.num_gpus + 1):
        left = limits[d.gpu] - (count * p.num_gpus if p.gpu == d.gpu else 0)
        others = left // d.num_gpus
        if others < 1:
            break
        rate = min(count * prompts.rate_per_s, others * decodes.rate_per_s)
        if best is None or rate > best[0]:
            best = rate, Fleet(((p, count), (d, others)))
    return best


def _all_types(
    together: Sequence[Capacity], limits: Mapping[str, int]
) -> list[tuple[float, Fleet]]:
    """One kind of engine on every type of GPU that has any, all GPUs used."""
    by_type: dict[str, list[Capacity]] = {}
    for one in together:
        by_type.setdefault(one.choice.gpu, []).append(one)
    if len(by_type) < 2:
        return []
    best = [
        sorted(group, key=lambda one: -one.rate_per_s / one.choice.num_gpus)[:2]
        for group in by_type.values()
    ]
    found = []
    for kinds in product(*best):
        counts = [limits[one.choice.gpu] // one.choice.num_gpus for one in kinds]
        engines = tuple((one.choice, count) for one, count in zip(kinds, counts, strict=True))
        rate = sum(one.rate_per_s * count for one, count in zip(kinds, counts, strict=True))
        found.append((rate, Fleet(engines, tuple(one.rate_per_s for one in kinds))))
    return found
