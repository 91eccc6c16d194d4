"""What happened, step by step, in growing columns; tables are made once at the end."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock.measure.run import TokenTimes
from penstock.policy.speculation.trees import Ints


@dataclass
class StepLog:
    """One entry a step; seconds, and counts of the requests that took part."""

    end_s: array[float] = field(default_factory=lambda: array("d"))
    draft_s: array[float] = field(default_factory=lambda: array("d"))
    target_s: array[float] = field(default_factory=lambda: array("d"))
    depth: array[int] = field(default_factory=lambda: array("l"))
    requests: array[int] = field(default_factory=lambda: array("l"))
    nodes: array[int] = field(default_factory=lambda: array("l"))
    prefill_tokens: array[int] = field(default_factory=lambda: array("l"))
    generated: array[int] = field(default_factory=lambda: array("l"))

    def __len__(self) -> int:
        return len(self.end_s)

    def add(
        self,
        end_s: float,
        draft_s: float,
        target_s: float,
        *,
        depth: int = 0,
        requests: int = 0,
        nodes: int = 0,
        prefill_tokens: int = 0,
        generated: int = 0,
    ) -> None:
        self.end_s.append(end_s)
        self.draft_s.append(draft_s)
        self.target_s.append(target_s)
        self.depth.append(depth)
        self.requests.append(requests)
        self.nodes.append(nodes)
        self.prefill_tokens.append(prefill_tokens)
        self.generated.append(generated)

    @property
    def request_steps(self) -> int:
        return sum(self.requests)

    @property
    def mean_generated_tokens(self) -> float:
        """Tokens generated per request and decode step, the bonus token included."""
        steps = self.request_steps
        return sum(self.generated) / steps if steps else float("nan")


class TokenLog:
    """Which rows got how many tokens when."""

    def __init__(self) -> None:
        self._rows: list[Ints] = []
        self._counts: list[Ints] = []
        self._times: list[float] = []

    def add(self, rows: Ints, counts: Ints, time_s: float) -> None:
        self._rows.append(rows)
        self._counts.append(counts)
        self._times.append(time_s)

    def tables(self, requests: int) -> TokenTimes:
        """The time of every token of every request; tokens of one step share its end."""
        if not self._rows:
            return TokenTimes(np.zeros(requests + 1, np.int64), np.zeros(0))
        rows = np.concatenate(self._rows)
        counts = np.concatenate(self._counts)
        sizes = [len(part) for part in self._rows]
        times: NDArray[np.float64] = np.repeat(np.repeat(self._times, sizes), counts)
        owner = np.repeat(rows, counts)
        order = np.argsort(owner, kind="stable")
        per_row = np.bincount(owner, minlength=requests)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_row)])
        return TokenTimes(offsets, times[order])
