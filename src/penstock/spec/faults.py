"""A schedule of failures, recoveries and slow-downs of nodes and links.

As a file::

    faults:
      - {at: 120 s, node: t4-3, kind: fail}
      - {at: 300 s, node: t4-3, kind: recover}
      - {at: 200 s, link: [a100-0, l4-1], kind: slow, factor: 4}

``at`` counts from the start of the workload. A link is one direction; ``coordinator`` names the
coordinator. ``factor`` is how many times longer work takes (2 = half speed). ``recover`` ends a
failure or a slow-down; a node that recovers has its weights loaded but no KV.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.errors import SpecError
from penstock.spec.cluster import COORDINATOR
from penstock.spec.files import read_yaml
from penstock.spec.names import did_you_mean
from penstock.spec.units import parse_duration

FaultKind = Literal["fail", "recover", "slow"]
_KEYS = ("at", "node", "link", "kind", "factor")


@dataclass(frozen=True, slots=True)
class Fault:
    """One change at ``at_s`` seconds after the start of the workload, to a node or to a link."""

    at_s: float
    kind: FaultKind
    node: str | None = None
    link: tuple[str, str] | None = None
    factor: float = 1.0

    @property
    def target(self) -> str:
        return self.node if self.node is not None else " -> ".join(self.link or ())


@dataclass(frozen=True, slots=True)
class FaultSchedule:
    """Faults in the order of their times; equal times keep the order of the file."""

    faults: tuple[Fault, ...] = ()
    source: str = ""

    def check_names(self, nodes: Iterable[str], links: Iterable[tuple[str, str]]) -> None:
        """Raise ``SpecError`` where a fault names a node or link that does not exist."""
        known, pairs = set(nodes), set(links)
        for i, fault in enumerate(self.faults):
            key = f"faults[{i}]"
            if fault.node is not None and fault.node not in known:
                fix = did_you_mean(fault.node, sorted(known))
                raise SpecError(
                    "no such node",
                    source=self.source or None,
                    key=f"{key}.node",
                    value=fault.node,
                    fix=fix,
                )
            if fault.link is not None and fault.link not in pairs:
                raise SpecError(
                    "no such link",
                    source=self.source or None,
                    key=f"{key}.link",
                    value=list(fault.link),
                    fix="name a leg of the plan as [from, to]",
                )


def load_faults(path: Path | str) -> FaultSchedule:
    """Read a schedule file. Raises ``SpecError`` with the file, the key and the fix."""
    document = read_yaml(Path(path))
    try:
        schedule = faults_from_dict(document)
    except SpecError as error:
        raise error.at(path) from None
    return FaultSchedule(schedule.faults, str(path))


def faults_from_dict(document: object) -> FaultSchedule:
    """Build a schedule from plain data, strictly."""
    if not isinstance(document, Mapping) or set(document) != {"faults"}:
        raise SpecError("expected one key 'faults'", fix="write 'faults:' and a list under it")
    entries = document["faults"]
    if not isinstance(entries, list):
        raise SpecError("expected a list", key="faults", value=entries)
    faults = [_fault(entry, f"faults[{i}]") for i, entry in enumerate(entries)]
    return FaultSchedule(tuple(sorted(faults, key=lambda fault: fault.at_s)))


def _fault(entry: object, key: str) -> Fault:
    if not isinstance(entry, Mapping):
        raise SpecError("expected a mapping", key=key, value=entry)
    for name in entry:
        if name not in _KEYS:
            raise SpecError("unknown key", key=f"{key}.{name}", fix=did_you_mean(str(name), _KEYS))
    kind = _kind(entry.get("kind"), key)
    node, link = _target(entry, key)
    return Fault(_seconds(entry, key), kind, node, link, _factor(entry, kind, key))


def _kind(value: object, key: str) -> FaultKind:
    if value == "fail":
        return "fail"
    if value == "recover":
        return "recover"
    if value == "slow":
        return "slow"
    raise SpecError("expected fail, recover or slow", key=f"{key}.kind", value=value)


def _target(entry: Mapping[str, object], key: str) -> tuple[str | None, tuple[str, str] | None]:
    node, link = entry.get("node"), entry.get("link")
    if (node is None) == (link is None):
        raise SpecError("name either a node or a link", key=key)
    if node is not None:
        if not isinstance(node, str) or node == COORDINATOR:
            raise SpecError("expected the name of a node", key=f"{key}.node", value=node)
        return node, None
    if not isinstance(link, list) or len(link) != 2 or not all(isinstance(x, str) for x in link):
        raise SpecError("expected [from, to]", key=f"{key}.link", value=link)
    return None, (link[0], link[1])


def _seconds(entry: Mapping[str, object], key: str) -> float:
    if "at" not in entry:
        raise SpecError("missing", key=f"{key}.at", fix="say when, for example 'at: 120 s'")
    try:
        return parse_duration(entry["at"])
    except SpecError as error:
        raise SpecError(error.problem, key=f"{key}.at", value=entry["at"], fix=error.fix) from None


def _factor(entry: Mapping[str, object], kind: FaultKind, key: str) -> float:
    factor = entry.get("factor")
    if kind != "slow":
        if factor is not None:
            raise SpecError("only 'slow' takes a factor", key=f"{key}.factor", value=factor)
        return 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise SpecError(
            "expected a number above 0", key=f"{key}.factor", value=factor, fix="2 = half speed"
        )
    if not math.isfinite(factor) or factor <= 0:
        raise SpecError("expected a number above 0", key=f"{key}.factor", value=factor)
    return float(factor)
