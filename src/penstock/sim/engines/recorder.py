"""What happened to requests and engines, in columns: about 300 bytes a request, none per token."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from math import nan

import numpy as np
from numpy.typing import NDArray

from penstock.measure.run import STATUS, RequestTable, Status
from penstock.policy.schedulers.sequence import Stay
from penstock.spec.workload import Request

CODE = {status: i for i, status in enumerate(STATUS)}
QUEUED, RUNNING, FINISHED = CODE["queued"], CODE["running"], CODE["finished"]
_ROWS = 4096


class EngineRecorder:
    """Rows in order of arrival. Columns are public: the event loop writes to them directly.

    What is not known at arrival is laid out for many rows at once.
    """

    def __init__(self, class_names: tuple[str, ...], model_names: tuple[str, ...] = ()) -> None:
        self._classes = {name: i for i, name in enumerate(class_names)}
        self._models = {name: i for i, name in enumerate(model_names)}
        self._rows = 0
        self._laid_out = 0
        self.id = array("q")
        self.arrival = array("d")
        self.prompt = array("i")
        self.output = array("i")
        self.class_index = array("h")
        self.model_index = array("h")
        self.admitted = array("d")
        self.first = array("d")
        self.last = array("d")
        self.generated = array("i")
        self.status = array("b")
        self.preemptions = array("i")
        self.engine = array("i")

    def __len__(self) -> int:
        return self._rows

    def arrive(self, request: Request, now: float) -> int:
        """Add a row; return its number."""
        row = self._rows
        if row == self._laid_out:
            self._lay_out()
        self._rows = row + 1
        self.id.append(request.id)
        self.arrival.append(now)
        self.prompt.append(request.prompt_tokens)
        self.output.append(request.output_tokens)
        self.class_index.append(
            self._classes.get(request.class_name, 0) if request.class_name else 0
        )
        models = self._models
        self.model_index.append(models.setdefault(request.model, len(models)))
        return row

    def _lay_out(self) -> None:
        for times in (self.admitted, self.first, self.last):
            times.extend(array("d", [nan]) * _ROWS)
        self.generated.extend(array("i", [0]) * _ROWS)
        self.preemptions.extend(array("i", [0]) * _ROWS)
        self.engine.extend(array("i", [-1]) * _ROWS)
        self.status.extend(array("b", [QUEUED]) * _ROWS)
        self._laid_out += _ROWS

    def end(self, row: int, status: Status) -> None:
        self.status[row] = CODE[status]

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models, those given first, then by first mention; () where there is one."""
        return tuple(self._models) if len(self._models) > 1 else ()

    def table(self) -> RequestTable:
        n = self._rows
        models = np.array(self.model_index, np.int16) if self.model_names else None
        return RequestTable(
            id=np.array(self.id, np.int64),
            arrival_s=np.array(self.arrival),
            admitted_s=np.array(self.admitted)[:n],
            first_token_s=np.array(self.first)[:n],
            last_token_s=np.array(self.last)[:n],
            prompt_tokens=np.array(self.prompt, np.int64),
            output_tokens=np.array(self.output, np.int64),
            generated_tokens=np.array(self.generated, np.int64)[:n],
            status=np.array(self.status, np.int8)[:n],
            preemptions=np.array(self.preemptions, np.int32)[:n],
            class_index=np.array(self.class_index, np.int16),
            route_index=np.array(self.engine, np.int32)[:n],
            model_index=models,
        )


class EngineLog:
    """Segments and stays of one engine, from which token times are rebuilt."""

    def __init__(self) -> None:
        self.segments = array("d")
        self.stay = array("q")
        self.prompt_rows = array("i")
        self.prompt_times = array("d")

    def stays(self, stays: Iterable[Stay]) -> None:
        extend = self.stay.extend
        for stay in stays:
            if stay[2] < stay[3]:
                extend(stay)

    def prompt_token(self, row: int, now: float) -> None:
        """The token that a prompt yields which was computed again after a preemption."""
        self.prompt_rows.append(row)
        self.prompt_times.append(now)

    def segment_table(self) -> NDArray[np.float64]:
        """``[s, 7]`` what the engine ran, in order of start: track, steps, start, end, seqs, KV
        tokens, prefill tokens.

        A segment is ``steps`` equal steps of one batch: ``seqs`` decodes of cohort ``track`` whose
        KV memory holds that many tokens before the first step, and so many prompt tokens.
        """
        return np.frombuffer(self.segments).reshape(-1, 7) if self.segments else np.zeros((0, 7))

    def stay_table(self) -> NDArray[np.int64]:
        """``[n, 4]``: row, track, first step, end."""
        if not self.stay:
            return np.zeros((0, 4), np.int64)
        return np.frombuffer(self.stay, np.int64).reshape(-1, 4)
