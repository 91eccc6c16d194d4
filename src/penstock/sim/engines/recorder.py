"""What happened to requests and engines, in columns: some 300 bytes a request, nothing per token."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from math import nan

import numpy as np

from penstock.measure.run import STATUS, RequestTable, Status
from penstock.policy.schedulers.sequence import Stay
from penstock.spec.workload import Request

CODE = {status: i for i, status in enumerate(STATUS)}
QUEUED, RUNNING, FINISHED = CODE["queued"], CODE["running"], CODE["finished"]


class EngineRecorder:
    """Rows in order of arrival. Columns are public: the event loop writes to them directly."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self._classes = {name: i for i, name in enumerate(class_names)}
        self.id = array("q")
        self.arrival = array("d")
        self.admitted = array("d")
        self.first = array("d")
        self.last = array("d")
        self.prompt = array("i")
        self.output = array("i")
        self.generated = array("i")
        self.status = array("b")
        self.preemptions = array("i")
        self.class_index = array("h")
        self.engine = array("i")

    def __len__(self) -> int:
        return len(self.id)

    def arrive(self, request: Request, now: float) -> int:
        """Add a row; return its number."""
        self.id.append(request.id)
        self.arrival.append(now)
        self.admitted.append(nan)
        self.first.append(nan)
        self.last.append(nan)
        self.prompt.append(request.prompt_tokens)
        self.output.append(request.output_tokens)
        self.generated.append(0)
        self.status.append(QUEUED)
        self.preemptions.append(0)
        self.class_index.append(self._classes.get(request.class_name, 0))
        self.engine.append(-1)
        return len(self.id) - 1

    def end(self, row: int, status: Status) -> None:
        self.status[row] = CODE[status]

    def count(self, status: Status) -> int:
        return self.status.count(CODE[status])

    def table(self) -> RequestTable:
        return RequestTable(
            id=np.array(self.id, np.int64),
            arrival_s=np.array(self.arrival),
            admitted_s=np.array(self.admitted),
            first_token_s=np.array(self.first),
            last_token_s=np.array(self.last),
            prompt_tokens=np.array(self.prompt, np.int64),
            output_tokens=np.array(self.output, np.int64),
            generated_tokens=np.array(self.generated, np.int64),
            status=np.array(self.status, np.int8),
            preemptions=np.array(self.preemptions, np.int32),
            class_index=np.array(self.class_index, np.int16),
            route_index=np.array(self.engine, np.int32),
        )


class EngineLog:
    """Segments and stays of one engine, from which token times are rebuilt.

    A segment is ``steps`` equal steps of one batch: ``seqs`` decodes of cohort ``track`` whose KV
    memory holds ``kv_tokens`` before the first step, and ``prefill_tokens`` prompt tokens.
    """

    def __init__(self) -> None:
        self.track = array("i")
        self.steps = array("i")
        self.start = array("d")
        self.end = array("d")
        self.seqs = array("i")
        self.kv_tokens = array("q")
        self.prefill_tokens = array("i")
        self.stay_row = array("i")
        self.stay_track = array("i")
        self.stay_first = array("q")
        self.stay_end = array("q")
        self.first_rows = array("i")
        self.first_times = array("d")

    def segment(
        self,
        track: int,
        steps: int,
        start: float,
        end: float,
        seqs: int,
        kv_tokens: int,
        prefill_tokens: int,
    ) -> None:
        self.track.append(track)
        self.steps.append(steps)
        self.start.append(start)
        self.end.append(end)
        self.seqs.append(seqs)
        self.kv_tokens.append(kv_tokens)
        self.prefill_tokens.append(prefill_tokens)

    def stays(self, stays: Iterable[Stay]) -> None:
        for row, track, first, end in stays:
            if first < end:
                self.stay_row.append(row)
                self.stay_track.append(track)
                self.stay_first.append(first)
                self.stay_end.append(end)

    def prompt_token(self, row: int, now: float) -> None:
        """A token that a completed prompt yields: the first, or the next after a preemption."""
        self.first_rows.append(row)
        self.first_times.append(now)
