"""Profile an engine on this machine: a real server is started, asked, and its record read.

Steps are timed by the server's coordinator while real clients read their streams, so they hold
all that happens between two steps. What a request takes outside of steps is the difference
between the client's time to first token and the server's first step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from penstock import __version__
from penstock.cost.step_table import (
    HostTimes,
    LinkTimes,
    StepTableFile,
    TableTimer,
    decode_lines,
    prefill_curve,
)
from penstock.errors import InputError
from penstock.measure.loadgen.bench import BenchSettings, open_client
from penstock.measure.run import Run
from penstock.measure.store import read_run
from penstock.plan.plan import Plan
from penstock.profile.beside import slowdown_beside
from penstock.profile.drive import Seen, drive
from penstock.profile.fit import (
    Line,
    Row,
    decode_error,
    decode_point,
    line,
    prefill_points,
    typical_points,
)
from penstock.profile.links import measure_links
from penstock.profile.probes import Bounds, Probe, probes
from penstock.profile.server import serving
from penstock.profile.steps import mixed_saves_s

_ROUNDS = 3
Report = Callable[[str, float], None]
"""(what is done now, share of the whole that is done)."""


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """``repeat``: how often each prompt size is asked. The rest is as in ``penstock serve``."""

    repeat: int = 5
    dtype: str = "auto"
    device: str = "cpu"
    threads: int = 1
    links: bool = True


async def profile_engine(
    plan: Plan,
    settings: ProfileSettings | None = None,
    report: Report = lambda _text, _share: None,
) -> StepTableFile:
    """Measure the first engine of ``plan`` (which must hold one) and return its profile.

    Raises ``InputError`` where the server does not start or a request fails.
    """
    settings = settings or ProfileSettings()
    bounds = engine_bounds(plan)
    node = plan.cluster.node(plan.engines[0].stages[0].node)
    wanted = list(probes(bounds, settings.repeat, min(_ROUNDS, settings.repeat)))
    flags = ["--dtype", settings.dtype, "--device", settings.device]
    flags += ["--threads", str(settings.threads)]

    def show(done: int, probe: Probe) -> None:
        report(f"{probe.kind}: {probe.seqs} x {probe.prompt_tokens} tokens", done / len(wanted))

    with tempfile.TemporaryDirectory(prefix="penstock-profile-") as name:
        folder = Path(name)
        async with (
            serving(plan, folder, record=folder / "record", flags=flags) as url,
            open_client(BenchSettings(url)) as client,
        ):
            seen = await drive(client, wanted, show)
        record = read_run(folder / "record")
    found = engine_profile(plan, bounds, seen, record)
    if node.accelerator.name == "CPU" and node.count == 1:
        report("beside another engine", 1.0)
        timer = TableTimer(
            decode_lines(found.decode), *prefill_curve(found.prefill), 1, found.mixed_saves
        )
        share = await slowdown_beside(plan, bounds, timer, flags)
        found = found.model_copy(update={"beside": share})
    if settings.links and node.count == 1:
        report("links between workers", 1.0)
        links = await measure_links(
            plan, dtype=settings.dtype, device=settings.device, threads=settings.threads
        )
        found = found.model_copy(
            update={"kv_transfer": _link(links.kv), "hidden_states": _link(links.hidden)}
        )
    return found


def engine_bounds(plan: Plan) -> Bounds:
    """What the engine of ``plan`` takes. Raises ``InputError`` unless there is exactly one."""
    if len(plan.engines) != 1 or plan.engines[0].scheduler is None:
        raise InputError("a profile is of one engine; give a plan with one, or --model")
    engine, scheduler = plan.engines[0], plan.engines[0].scheduler
    assert scheduler is not None
    return Bounds(
        max_model_len=plan.model.max_position_embeddings,
        chunk_tokens=scheduler.max_num_batched_tokens or plan.model.max_position_embeddings,
        max_seqs=scheduler.max_num_seqs or engine.limits.max_decode_seqs,
        kv_tokens=engine.num_blocks * scheduler.block_size,
    )


def engine_profile(plan: Plan, bounds: Bounds, seen: Sequence[Seen], record: Run) -> StepTableFile:
    """The profile of what a client (``seen``) and its server (``record``) saw of the same."""
    engine = plan.engines[0]
    node = plan.cluster.node(engine.stages[0].node)
    stages = len(engine.stages)
    rows = list(_server_rows(seen, record))
    first_s = [
        (probe.prompt_tokens, own[0].times_s[0] - own[0].begun_s)
        for (probe, own) in rows
        if probe.kind == "prefill"
    ]
    decode = typical_points(
        (probe.prompt_tokens, point)
        for probe, own in rows
        if probe.kind == "decode" and (point := decode_point(own, stages)) is not None
    )
    prefill = prefill_points(first_s, bounds.chunk_tokens)
    timer = TableTimer(decode_lines(decode), *prefill_curve(prefill), 1)
    mixed = [row for probe, own in rows if probe.kind == "mixed" for row in own]
    host = _host(seen, rows)
    median, worst = decode_error(decode)
    return StepTableFile(
        model=plan.model.name,
        accelerator=node.accelerator.name,
        source=f"penstock profile {__version__} on this machine",
        tensor_parallel_size=node.count,
        pipeline_parallel_size=stages,
        kv_capacity_tokens=bounds.kv_tokens,
        provenance="measured",
        error=f"decode lines: residual {median:.1%} median, {worst:.1%} largest",
        host=HostTimes(fixed=host.fixed, per_prompt_token=host.slope),
        decode=tuple(decode),
        prefill=prefill,
        mixed_saves=None if stages > 1 else mixed_saves_s(mixed, timer),
    )


def _server_rows(seen: Sequence[Seen], record: Run) -> Iterator[tuple[Probe, list[Row]]]:
    """The server's rows of each probe: they lie in the order in which requests came."""
    table, tokens = record.requests, record.tokens
    total = sum(probe.probe.seqs for probe in seen)
    # The client's first look at the server came before the probes.
    places = iter(range(len(table.id) - total, len(table.id)))
    for item in seen:
        yield (
            item.probe,
            [
                Row(
                    int(table.prompt_tokens[i]),
                    float(table.admitted_s[i]),
                    tokens.times_s[tokens.offsets[i] : tokens.offsets[i + 1]].tolist(),
                )
                for i in islice(places, item.probe.seqs)
            ],
        )


def _host(seen: Sequence[Seen], rows: Sequence[tuple[Probe, list[Row]]]) -> Line:
    """Seconds of a request outside of steps, over its prompt tokens."""
    points = []
    for item, (probe, own) in zip(seen, rows, strict=True):
        if probe.kind == "prefill":
            outcome = item.outcomes[0]
            ttft_s = outcome.stream.times_s()[0] - outcome.sent_s
            step_s = own[0].times_s[0] - own[0].begun_s
            points.append((float(probe.prompt_tokens), max(0.0, ttft_s - step_s)))
    return line(points)


def _link(found: Line) -> LinkTimes:
    return LinkTimes(bandwidth=1 / max(found.slope, 1e-15), latency=found.fixed)
