"""How much an engine is slowed down while another one of this machine is busy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from penstock.cost.steps import StepTimer
from penstock.measure.loadgen.bench import BenchSettings, open_client
from penstock.measure.run import Run
from penstock.measure.store import read_run
from penstock.plan.plan import Leg, Plan, Routing
from penstock.profile.drive import drive
from penstock.profile.fit import Row
from penstock.profile.probes import Bounds, Probe, longest
from penstock.profile.server import serving
from penstock.profile.steps import longer_by
from penstock.spec.cluster import COORDINATOR

_SEQS = (4, 12)
_CONTEXT = 128
_OUTPUT = 40


def doubled(plan: Plan) -> Plan:
    """``plan`` (one engine) with a copy of its engine beside it; requests go to them in turn."""
    (engine,) = plan.engines
    cluster = plan.cluster
    names = {stage.node: f"{stage.node}-beside" for stage in engine.stages}
    copy = replace(
        engine,
        name=f"{engine.name}-beside",
        stages=tuple(replace(stage, node=names[stage.node]) for stage in engine.stages),
    )
    nodes = tuple(replace(cluster.node(old), name=new) for old, new in names.items())
    legs = tuple(
        leg
        for each in (engine, copy)
        for leg in (Leg(COORDINATOR, each.name, 1, 1), Leg(each.name, COORDINATOR, 1, 1))
    )
    return replace(
        plan,
        cluster=replace(cluster, nodes=(*cluster.nodes, *nodes)),
        engines=(engine, copy),
        legs=legs,
        routing=Routing(engine_router="round-robin"),
    )


async def slowdown_beside(
    plan: Plan, bounds: Bounds, timer: StepTimer, flags: Sequence[str]
) -> float:
    """What a step takes longer, as a share, while another engine of this machine is busy.

    Both engines have prompts and decodes. ``timer`` knows the steps of the engine alone. Raises
    ``InputError`` where the server does not start or a request fails.
    """
    wanted = [Probe("warm-up", 2, 64, 8)]
    for seqs in _SEQS:
        length = longest(_CONTEXT) + longest(_OUTPUT)
        fits = length <= bounds.max_model_len and seqs * length <= bounds.kv_tokens
        if seqs <= bounds.max_seqs and fits:
            wanted.append(Probe("mixed", 8 * seqs, _CONTEXT, _OUTPUT, 2 * seqs))
    with tempfile.TemporaryDirectory(prefix="penstock-profile-") as name:
        folder = Path(name)
        async with (
            serving(doubled(plan), folder, record=folder / "record", flags=flags) as url,
            open_client(BenchSettings(url)) as client,
        ):
            await drive(client, wanted)
        record = read_run(folder / "record")
    return longer_by(_engines(wanted, record), timer)


def _engines(wanted: Sequence[Probe], record: Run) -> Iterator[list[Row]]:
    """The server's rows of each probe, an engine at a time."""
    table, tokens = record.requests, record.tokens
    total = sum(probe.seqs for probe in wanted)
    places = iter(range(len(table.id) - total, len(table.id)))
    for probe in wanted:
        rows: dict[int, list[Row]] = {}
        for i in islice(places, probe.seqs):
            times = tokens.times_s[tokens.offsets[i] : tokens.offsets[i + 1]].tolist()
            row = Row(int(table.prompt_tokens[i]), float(table.admitted_s[i]), times)
            rows.setdefault(int(table.route_index[i]), []).append(row)
        if probe.kind == "mixed":
            yield from rows.values()
