"""A plan priced by a profile: what was measured in place of what was estimated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from penstock.cost.fingerprint_file import is_fingerprint
from penstock.cost.fingerprint_steps import FingerprintStepCost
from penstock.cost.step_table import read_step_table
from penstock.errors import SpecError
from penstock.plan.plan import Plan


def profiled(plan: Plan, path: str | Path) -> Plan:
    """``plan`` with the step times, and the KV transfer where it was measured, of a profile.

    ``path`` is a profile of an engine or a fingerprint. Raises ``SpecError`` for one of another
    model and for a plan of paths over layers.
    """
    if not plan.whole_engines:
        raise SpecError(
            "has times of whole engines, and this plan has paths over layers",
            source=path,
            key="--profile",
            fix="use --profiles with a folder of layer tables",
        )
    if is_fingerprint(path):
        return replace(plan, cost=FingerprintStepCost(plan.model, path).to_dict())
    table = read_step_table(plan.model, path)
    handoff, measured = plan.handoff, table.file.kv_transfer
    if measured is not None:
        handoff = replace(
            handoff, bandwidth_bytes_per_s=measured.bandwidth, latency_s=measured.latency
        )
    return replace(plan, cost=table.to_dict(), handoff=handoff)
