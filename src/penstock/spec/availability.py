"""Spot GPUs: availability traces (when GPUs go and come) and SDS operations files.

Traces are CSV rows ``milliseconds,add|remove,node`` or a JSON list of ``{time (s), preempted,
resumed}``. An operations file is SDS's JSON list of ``{timestamp (s), operation, params}`` with
``remove [id]``, ``add [role, id]`` and ``change [old role, id, new role, id]``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.errors import SpecError
from penstock.spec.files import is_finite_number, read_json, read_text
from penstock.spec.names import did_you_mean

PoolRole = Literal["prefill", "decode"]
ROLES: dict[str, PoolRole] = {
    "context": "prefill",
    "prefill": "prefill",
    "decoding": "decode",
    "decode": "decode",
}
PARAMETERS = {"remove": 1, "add": 2, "change": 4}


@dataclass(frozen=True, slots=True)
class AvailabilityEvent:
    """At ``time_s`` the GPUs ``lost`` are gone and ``returned`` ones are there (and empty)."""

    time_s: float
    lost: tuple[int, ...]
    returned: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """At ``time_s`` GPU ``gpu`` leaves (``role`` None) or takes ``role``.

    ``old_role`` is what a ``change`` says the GPU was before.
    """

    time_s: float
    gpu: int
    role: PoolRole | None
    old_role: PoolRole | None = None


def read_availability(path: str | Path) -> tuple[AvailabilityEvent, ...]:
    """Read a trace; events of one time are one event. Raises ``SpecError`` naming the entry.

    Refused: times that go back, a loss of a GPU that is not there, a return of one that is.
    """
    path = Path(path)
    events = _from_csv(path) if path.suffix.lower() == ".csv" else _from_json(path)
    if not events:
        raise SpecError("holds no event", source=path, fix="give a trace with events")
    _check_presence(events, path)
    return tuple(events)


def _from_csv(path: Path) -> list[AvailabilityEvent]:
    numbers: dict[str, int] = {}
    events: list[AvailabilityEvent] = []
    rows = csv.reader(read_text(path).splitlines())
    last = -1.0
    for line, row in enumerate(rows, start=1):
        if not row:
            continue
        where = f"line {line}"
        if len(row) != 3 or row[1].strip() not in {"add", "remove"} or not row[0].strip().isdigit():
            raise SpecError(
                "must be `milliseconds,add|remove,node`",
                source=path,
                key=where,
                value=",".join(row),
            )
        time_s = int(row[0]) / 1000
        if time_s < last:
            raise SpecError(
                f"goes back in time, the line above is at {last:g} s",
                source=path,
                key=where,
                value=row[0],
                fix="sort the trace, or correct a digit that was lost",
            )
        name = row[2].strip()
        gpu = numbers.setdefault(name, len(numbers))
        if not events or time_s > last:
            events.append(AvailabilityEvent(time_s, (), ()))
        there = events[-1]
        if row[1].strip() == "remove":
            events[-1] = AvailabilityEvent(time_s, (*there.lost, gpu), there.returned)
        else:
            events[-1] = AvailabilityEvent(time_s, there.lost, (*there.returned, gpu))
        last = time_s
    return events


def _from_json(path: Path) -> list[AvailabilityEvent]:
    events: list[AvailabilityEvent] = []
    last = 0.0
    for place, entry in enumerate(_entries(path)):
        where = f"[{place}]"
        time_s = _time(entry, "time", path, where, last)
        lost, returned = (
            _ids(entry.get(key), key, path, where) for key in ("preempted", "resumed")
        )
        events.append(AvailabilityEvent(time_s, lost, returned))
        last = time_s
    return events


def _check_presence(events: Iterable[AvailabilityEvent], path: Path) -> None:
    live: set[int] = set()
    for event in events:
        for gpu in event.lost:
            # Lost and back in one event is a restart; a GPU that came and went is there too.
            if gpu not in live and gpu not in event.returned:
                raise SpecError(
                    f"GPU {gpu} is lost at {event.time_s:g} s and was not there", source=path
                )
        both = live - set(event.lost)
        for gpu in event.returned:
            if gpu in both:
                raise SpecError(
                    f"GPU {gpu} returns at {event.time_s:g} s and is there already", source=path
                )
        live = both | set(event.returned)


def read_operations(path: str | Path, initial: dict[int, PoolRole]) -> tuple[Operation, ...]:
    """Read an operations file for a pool that starts with ``initial`` roles.

    Sorted by time; equal times keep the order of the file. Raises ``SpecError`` for changes that
    are impossible: removing a GPU that is not there, adding one that is, an old role that is not
    the GPU's, a ``change`` between two GPUs.
    """
    path = Path(path)
    found = []
    for place, entry in enumerate(_entries(path)):
        where = f"[{place}]"
        time_s = _time(entry, "timestamp", path, where, 0.0)
        found.append((time_s, _operation(entry, time_s, path, where), where))
    found.sort(key=lambda item: item[0])
    roles = dict(initial)
    for _, operation, where in found:
        _apply(operation, roles, path, where)
    return tuple(operation for _, operation, _ in found)


def _operation(entry: dict[str, object], time_s: float, path: Path, where: str) -> Operation:
    name, params = entry.get("operation"), entry.get("params")
    if name not in PARAMETERS:
        raise SpecError(
            "unknown operation",
            source=path,
            key=f"{where}.operation",
            value=name,
            fix=did_you_mean(str(name), PARAMETERS),
        )
    if not isinstance(params, list) or len(params) != PARAMETERS[str(name)]:
        raise SpecError(
            f"{name} takes {PARAMETERS[str(name)]} parameters",
            source=path,
            key=f"{where}.params",
            value=params,
        )
    ids = _ids(params if name == "remove" else params[1::2], "params", path, where)
    roles = [] if name == "remove" else [_role(value, path, where) for value in params[::2]]
    if len(set(ids)) > 1:
        raise SpecError(
            "a GPU changes its role, not its number",
            source=path,
            key=f"{where}.params",
            value=params,
        )
    old = roles[0] if name == "change" else None
    return Operation(time_s, ids[0], roles[-1] if roles else None, old)


def _apply(operation: Operation, roles: dict[int, PoolRole], path: Path, where: str) -> None:
    gpu, now = operation.gpu, roles.get(operation.gpu)
    at = f"at {operation.time_s:g} s"
    if operation.role is None:
        if now is None:
            raise SpecError(f"GPU {gpu} is removed {at} and is not there", source=path, key=where)
        del roles[gpu]
        return
    if operation.old_role is None and now is not None:
        raise SpecError(f"GPU {gpu} is added {at} and is there already", source=path, key=where)
    if operation.old_role is not None and now not in {None, operation.old_role}:
        raise SpecError(
            f"GPU {gpu} is to change from {operation.old_role} {at} and has the role {now}",
            source=path,
            key=where,
        )
    roles[gpu] = operation.role


def _entries(path: Path) -> list[dict[str, object]]:
    document = read_json(path)
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        raise SpecError("must be a JSON list of mappings", source=path)
    return document


def _time(entry: dict[str, object], key: str, path: Path, where: str, least: float) -> float:
    value = entry.get(key)
    if not is_finite_number(value) or float(value) < 0:  # type: ignore[arg-type]
        raise SpecError("must be seconds from 0 on", source=path, key=f"{where}.{key}", value=value)
    time_s = float(value)  # type: ignore[arg-type]
    if time_s < least:
        raise SpecError(
            f"goes back in time, the entry before is at {least:g} s",
            source=path,
            key=f"{where}.{key}",
            value=value,
            fix="sort the trace",
        )
    return time_s


def _ids(value: object, key: str, path: Path, where: str) -> tuple[int, ...]:
    good = isinstance(value, list) and all(
        isinstance(gpu, int) and not isinstance(gpu, bool) and gpu >= 0 for gpu in value
    )
    if not good:
        raise SpecError(
            "must be a list of GPU numbers", source=path, key=f"{where}.{key}", value=value
        )
    assert isinstance(value, list)
    return tuple(value)


def _role(value: object, path: Path, where: str) -> PoolRole:
    if not isinstance(value, str) or value not in ROLES:
        raise SpecError(
            "unknown role",
            source=path,
            key=f"{where}.params",
            value=value,
            fix=did_you_mean(str(value), ROLES),
        )
    return ROLES[value]
