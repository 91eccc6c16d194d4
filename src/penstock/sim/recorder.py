"""Collects what happened to each request: one row a request, nothing per event."""

from __future__ import annotations

from array import array
from math import nan

import numpy as np

from penstock.measure.run import STATUS, RequestTable, Status, TokenTimes
from penstock.spec.workload import Request

_CODE = {status: i for i, status in enumerate(STATUS)}


class Recorder:
    """Rows in order of arrival."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self._classes = {name: i for i, name in enumerate(class_names)}
        self._id = array("q")
        self._arrival = array("d")
        self._admitted = array("d")
        self._prompt = array("q")
        self._output = array("q")
        self._generated = array("q")
        self._status = array("b")
        self._preemptions = array("l")
        self._class = array("h")
        self._route = array("l")
        self._times: list[array[float]] = []
        self._routes: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self._id)

    def arrive(self, request: Request, now: float) -> int:
        """Add a row; return its number."""
        self._id.append(request.id)
        self._arrival.append(now)
        self._admitted.append(nan)
        self._prompt.append(request.prompt_tokens)
        self._output.append(request.output_tokens)
        self._generated.append(0)
        self._status.append(_CODE["queued"])
        self._preemptions.append(0)
        self._class.append(self._classes.get(request.class_name, 0))
        self._route.append(-1)
        self._times.append(array("d"))
        return len(self._id) - 1

    def admit(self, row: int, now: float) -> None:
        if self._admitted[row] != self._admitted[row]:
            self._admitted[row] = now
        self._status[row] = _CODE["running"]

    def iteration(self, row: int, now: float) -> None:
        """A prompt or decode iteration completed."""
        self._times[row].append(now)

    def completed(self, row: int) -> int:
        """Iterations completed so far."""
        return len(self._times[row])

    def preempted(self, row: int) -> None:
        self._preemptions[row] += 1
        self._status[row] = _CODE["queued"]

    def end(self, row: int, status: Status) -> None:
        assert self._status[row] in (_CODE["queued"], _CODE["running"]), "a request ends once"
        self._status[row] = _CODE[status]

    def generated(self, row: int, tokens: int) -> None:
        self._generated[row] = tokens

    def took(self, row: int, engines: tuple[int, ...]) -> None:
        self._route[row] = self._routes.setdefault(engines, len(self._routes))

    def routes(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(names[engine] for engine in route) for route in self._routes)

    def status_count(self, status: Status) -> int:
        return self._status.count(_CODE[status])

    def tables(self, first_iteration_is_token: bool) -> tuple[RequestTable, TokenTimes]:
        """Return the request table and all iteration times."""
        counts = np.fromiter((len(times) for times in self._times), np.int64, len(self._times))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        flat = np.empty(int(offsets[-1]))
        for times, offset in zip(self._times, offsets.tolist(), strict=False):
            flat[offset : offset + len(times)] = times
        first_token = 0 if first_iteration_is_token else 1
        first = [t[first_token] if len(t) > first_token else nan for t in self._times]
        last = [t[-1] if len(t) > first_token else nan for t in self._times]
        table = RequestTable(
            id=np.array(self._id, np.int64),
            arrival_s=np.array(self._arrival),
            admitted_s=np.array(self._admitted),
            first_token_s=np.array(first),
            last_token_s=np.array(last),
            prompt_tokens=np.array(self._prompt, np.int64),
            output_tokens=np.array(self._output, np.int64),
            generated_tokens=np.array(self._generated, np.int64),
            status=np.array(self._status, np.int8),
            preemptions=np.array(self._preemptions, np.int32),
            class_index=np.array(self._class, np.int16),
            route_index=np.array(self._route, np.int32),
        )
        return table, TokenTimes(offsets, flat)
