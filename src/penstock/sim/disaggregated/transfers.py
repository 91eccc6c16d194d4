"""KV memory on its way: what is sent, from where, to where, and when the links are free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.measure.run import LinkTotals
from penstock.plan.settings import HandoffSettings
from penstock.policy.schedulers.sequence import Sequence
from penstock.sim.disaggregated.engine import RoleEngine


@dataclass(slots=True, eq=False)
class Handoff:
    """One request between two engines. ``target`` is None while nobody has room for it.

    ``held_blocks`` are those the source keeps for it; ``prefill_s`` is the step that computed it.
    """

    seq: Sequence
    source: RoleEngine
    held_blocks: int
    prefill_s: float
    target: RoleEngine | None = None
    begin_s: float = 0.0
    cancelled: bool = False


class Transfers:
    """The links of all engines: each sends one request at a time and receives one at a time."""

    def __init__(self, settings: HandoffSettings, kv_bytes_per_token: float, layers: int) -> None:
        self._settings = settings
        self._bytes_per_token = kv_bytes_per_token
        self._layers = layers
        self._sends_s: dict[int, float] = {}
        self._receives_s: dict[int, float] = {}
        self._busy_s: dict[tuple[str, str], float] = {}
        self._bytes: dict[tuple[str, str], float] = {}
        self.count = 0

    def begin(self, handoff: Handoff, now: float) -> float:
        """Book the links; return when the last byte arrives."""
        target, source = handoff.target, handoff.source
        assert target is not None
        ready = target.step_end_s(now) if self._settings.mode == "pull" else now
        begin = max(
            ready,
            self._sends_s.get(source.index, 0.0),
            self._receives_s.get(target.index, 0.0),
        )
        kv_bytes = (handoff.seq.computed - 1) * self._bytes_per_token
        # What waited for a link or for room could be sent in the meantime, layer by layer or not;
        # only a transfer that starts with the end of the prompt profits from its step.
        hidden_s = handoff.prefill_s if begin == now else 0.0
        seconds = self._settings.transfer_s(kv_bytes, self._layers, hidden_s)
        end = begin + seconds
        self._sends_s[source.index] = self._receives_s[target.index] = end
        handoff.begin_s = begin
        pair = (source.spec.name, target.spec.name)
        self._busy_s[pair] = self._busy_s.get(pair, 0.0) + seconds
        self._bytes[pair] = self._bytes.get(pair, 0.0) + kv_bytes
        self.count += 1
        return end

    def totals(self) -> LinkTotals | None:
        if not self._bytes:
            return None
        pairs = sorted(self._bytes)
        return LinkTotals(
            tuple(src for src, _ in pairs),
            tuple(dst for _, dst in pairs),
            np.array([self._busy_s[pair] for pair in pairs]),
            np.array([self._bytes[pair] for pair in pairs]),
        )
