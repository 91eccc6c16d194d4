"""How near the simulator comes to what this machine serves.

    python benchmarks/serve_truth.py [--model models/tiny] [--seconds 40] [--profile FILE] [-o DIR]
    python benchmarks/serve_truth.py --known

Profiles an engine (or takes FILE), then serves, loads and simulates three times: a light load and
one near saturation on one engine, and engines with prefill and decode apart. Each load is the same
seeded Poisson stream in both. Prints simulated beside measured for the metrics that have goals;
the last line is JSON. Takes under six minutes; the machine should do nothing else. Exits with 1
where a goal is missed. ``-o`` keeps profile, plans and runs.

``--known``: workers wait for known seconds instead of computing, and the profile is fitted from
the client's side. That shows the error of the method apart from what a busy machine adds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from penstock import api
from penstock.cost.step_table import StepTableFile
from penstock.measure.compare import Comparison, verdict_sentence
from penstock.measure.loadgen.bench import BenchSettings, bench
from penstock.measure.metrics import summarise
from penstock.measure.run import Run
from penstock.measure.store import write_run
from penstock.plan.document import write_plan
from penstock.plan.plan import Leg, Plan, Routing
from penstock.profile.calibrate import CalibrateSettings, calibrate_endpoint
from penstock.profile.document import write_profile
from penstock.profile.engine import profile_engine
from penstock.profile.server import serving
from penstock.serve.local import LocalShape, local_plan
from penstock.spec.arrivals import PoissonArrivals
from penstock.spec.cluster import COORDINATOR
from penstock.spec.lengths import LogNormal, MarginalLengths
from penstock.spec.workload import ClosedLoop, Workload

KV_BYTES = 128 << 20
LENGTHS = MarginalLengths(LogNormal(120, 0.6, 16, 500), LogNormal(40, 0.5, 8, 120))
WARM_UP_S = 5.0
SERVER = Path(__file__).with_name("known_server.py")
KNOWN = {
    "kind": "linear",
    "kv_tokens": 200_000,
    "prefill_s": [0.03, 2e-4, 0.0],
    "decode_s": [0.03, 1e-6, 1e-3],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/tiny"))
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--known", action="store_true")
    given = parser.parse_args()
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="penstock-truth-") as scratch:
        folder = given.output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bed = Known(given.model) if given.known else Real(given.model)
        results = asyncio.run(measure(bed, given.profile, given.seconds, folder))
    print(f"took {time.monotonic() - start_s:.0f} s")
    print(json.dumps(results))
    return 0 if all(entry["holds"] for entry in results) else 1


class Real:
    """Engines that compute, profiled from within."""

    def __init__(self, model: Path) -> None:
        self.one = local_plan(model, kv_memory_bytes=KV_BYTES)
        self.apart = prefill_and_decode(model)

    async def profile(self, folder: Path) -> StepTableFile:
        return await profile_engine(self.one)

    def serving(self, plan: Plan, folder: Path) -> AbstractAsyncContextManager[str]:
        return serving(plan, folder)


class Known(Real):
    """Engines that wait, profiled from the client's side."""

    def __init__(self, model: Path) -> None:
        super().__init__(model)
        self.one = replace(self.one, cost=KNOWN)
        self.apart = replace(self.apart, cost=KNOWN)

    async def profile(self, folder: Path) -> StepTableFile:
        async with self.serving(self.one, folder) as url:
            settings = CalibrateSettings(url, self.one.model, "CPU", seconds=60.0)
            return await calibrate_endpoint(settings)

    @asynccontextmanager
    async def serving(self, plan: Plan, folder: Path) -> AsyncIterator[str]:
        path = folder / "plan.yaml"
        write_plan(plan, path)
        server = await asyncio.create_subprocess_exec(
            sys.executable, SERVER, path, stdout=asyncio.subprocess.PIPE
        )
        assert server.stdout is not None
        try:
            yield (await server.stdout.readline()).decode().strip()
        finally:
            server.terminate()
            await server.wait()


async def measure(
    bed: Real, profile: Path | None, seconds: float, folder: Path
) -> list[dict[str, object]]:
    """Serve, load and simulate all cases; a row of errors for each."""
    one, apart = bed.one, bed.apart
    if profile is None:
        profile = folder / "profile.yaml"
        write_profile(await bed.profile(folder), profile)
    results = []
    for name, plan, share in (
        ("light", one, 0.3),
        ("near saturation", one, 0.85),
        ("prefill and decode apart", apart, 0.4),
    ):
        rate = round(share * capacity(plan, profile, seconds), 2)
        load = workload(name, rate, seconds)
        label = name.replace(" ", "-")
        (folder / label).mkdir(exist_ok=True)
        async with bed.serving(plan, folder / label) as url:
            await bench(workload("warm-up", rate, WARM_UP_S, seed=99), BenchSettings(url))
            measured = await bench(load, BenchSettings(url))
        simulated = api.simulate(plan, load, profile=profile)
        for run in (measured, simulated):
            kind = str(run.header["kind"])
            write_run(replace(run, name=f"{label}-{kind}"), folder / f"{label}-{kind}")
        results.append(row(name, rate, api.compare(simulated, measured), measured))
    return results


def prefill_and_decode(model: Path) -> Plan:
    """Two engines that hold the whole model: prompts on one, decodes on the other."""
    plan = local_plan(model, LocalShape(engines=2), kv_memory_bytes=KV_BYTES)
    first, second = plan.engines
    names = (COORDINATOR, first.name, second.name, COORDINATOR)
    return replace(
        plan,
        engines=(replace(first, role="prefill"), replace(second, role="decode")),
        legs=tuple(Leg(a, b, 1, 1) for a, b in pairwise(names)),
        routing=Routing(engine_router="least-outstanding", decode_router="least-outstanding"),
    )


def workload(name: str, rate: float, seconds: float, seed: int = 0) -> Workload:
    warm_up_s = min(WARM_UP_S, seconds / 4)
    arrivals = PoissonArrivals(rate)
    return Workload(name, seconds, warm_up_s, lengths=LENGTHS, arrivals=arrivals, seed=seed)


def capacity(plan: Plan, profile: Path, seconds: float) -> float:
    """Requests/s that the simulator finishes with 48 always in flight."""
    loop = ClosedLoop(48, interval_s=0.0)
    load = Workload("capacity", seconds, seconds / 4, lengths=LENGTHS, arrivals=loop)
    return summarise(api.simulate(plan, load, profile=profile)).overall.request_throughput_per_s


def row(name: str, rate: float, comparison: Comparison, measured: Run) -> dict[str, object]:
    """Print one case and return its errors."""
    print(f"{name}: {rate:g} requests/s, {len(measured.requests.id)} sent")
    errors: dict[str, float] = {}
    for item in comparison.verdicts:
        if item.goal:
            errors[item.metric.key] = round(item.error, 4)
            print(
                f"  {item.metric.label:18} simulated {item.simulated:10.4f}  measured "
                f"{item.measured:10.4f} {item.metric.unit:6} {item.error:+7.1%}  {item.verdict}"
            )
    print(f"  {verdict_sentence(comparison)}", flush=True)
    return {"case": name, "rate": rate, "errors": errors, "holds": bool(comparison.holds)}


if __name__ == "__main__":
    sys.exit(main())
