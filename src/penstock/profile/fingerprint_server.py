"""What serving adds: a server of the one-layer cut beside the worker it runs on."""

from __future__ import annotations

import tempfile
from pathlib import Path

from penstock.cost.fingerprint_file import ServerTimes
from penstock.cost.fingerprint_times import LayerTimes
from penstock.cost.step_table import StepTableFile
from penstock.measure.loadgen.bench import BenchSettings, open_client
from penstock.measure.store import read_run
from penstock.profile.drive import drive
from penstock.profile.engine import engine_bounds, engine_profile
from penstock.profile.fit import line
from penstock.profile.probes import Probe
from penstock.profile.server import serving
from penstock.serve.local import local_plan


async def measure_server(
    cut: Path, own: LayerTimes, *, dtype: str, repeat: int, threads: int
) -> ServerTimes:
    """Serve the one-layer ``cut``, whose worker takes ``own`` times. Raises ``InputError``."""
    plan = local_plan(cut)
    flags = ["--dtype", dtype, "--threads", str(threads)]
    wanted = _server_probes(plan.model.max_position_embeddings, repeat)
    with tempfile.TemporaryDirectory(prefix="penstock-fingerprint-") as name:
        record = Path(name) / "record"
        async with (
            serving(plan, Path(name), record=record, flags=flags) as url,
            open_client(BenchSettings(url)) as client,
        ):
            seen = await drive(client, wanted)
        table = engine_profile(plan, engine_bounds(plan), seen, read_run(record))
    return server_times(table, own)


def _server_probes(longest: int, repeat: int) -> list[Probe]:
    sizes = [size for size in (16, 64, 256) if size + 2 <= longest]
    probes = [Probe("warm-up", 1, 16, 8)] * 3
    probes += [Probe("prefill", 1, size, 2) for size in sizes] * repeat
    return probes + [Probe("decode", size, 16, min(48, longest - 16)) for size in (1, 4, 16)]


def server_times(table: StepTableFile, own: LayerTimes) -> ServerTimes:
    """What the served one-layer cut in ``table`` takes beside its worker's ``own`` times."""
    added = [
        (
            float(point.seqs),
            max(0.0, point.seconds - own.decode_line(point.seqs, 1).at(point.context_tokens)),
        )
        for point in table.decode
    ]
    steps = line(added)
    assert table.host is not None
    return ServerTimes(
        step=steps.fixed,
        sequence=steps.slope,
        request=table.host.fixed,
        prompt_token=table.host.per_prompt_token,
    )
