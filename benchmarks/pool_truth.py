"""How near the simulator comes to several models served on this machine, and what moving costs.

    python benchmarks/pool_truth.py [--seconds 60] [--rate 2.0] [-o DIR]

Four random models of different sizes share one place of this machine and take turns there. Each
is profiled alone, then all get bursty traffic (Gamma arrivals, CV 3), measured and simulated.
Then the same traffic comes again while the pool is re-placed twice: two models move to places of
their own, and back. Prints simulated beside measured, and the requests that were lost (none may
be); the last line is JSON. Profiles that lie in DIR are used again. The machine should do nothing
else. Exits with 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import httpx
import torch
import transformers

from penstock import api
from penstock.measure.compare import verdict_sentence
from penstock.measure.loadgen.bench import BenchSettings, bench
from penstock.measure.run import STATUS, Run
from penstock.measure.store import write_run
from penstock.plan.parts import Parts
from penstock.plan.plan import Leg, Plan, Stage
from penstock.plan.pool_document import pool_to_dict
from penstock.plan.pool_plan import Deployment, PoolPlan, Sharing
from penstock.plan.profiled import profiled
from penstock.profile.document import write_profile
from penstock.profile.engine import ProfileSettings, profile_engine
from penstock.profile.server import serving
from penstock.serve.local import local_plan
from penstock.serve.many.local import MACHINE, local_pool
from penstock.spec.arrivals import GammaArrivals
from penstock.spec.cluster import COORDINATOR
from penstock.spec.lengths import LogNormal, MarginalLengths
from penstock.spec.variants import Precision
from penstock.spec.workload import SLO, ModelStream, SLOClass, Workload

TOKENIZER = Path(__file__).resolve().parents[1] / "models" / "tiny"
SIZES = {"small": (2, 128), "medium": (4, 192), "large": (6, 256), "largest": (8, 320)}
"""Layers and hidden size."""
LENGTHS = MarginalLengths(LogNormal(120, 0.6, 16, 500), LogNormal(40, 0.5, 8, 120))
KV_BYTES = 64 << 20
WARM_UP_S = 5.0
APART = {"large": 1, "largest": 2}
"""Where two of the models go when the pool is re-placed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=2.0, help="requests/s of each model")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-pool-") as scratch:
        folder = given.output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(measure(folder, given.seconds, given.rate))
    print(json.dumps(result))
    return 0 if result["holds"] and not result["lost"] else 1


async def measure(folder: Path, seconds: float, rate: float) -> dict[str, object]:
    """Profile, serve, load and simulate; the errors, and what was lost while models moved."""
    plans = {}
    for name, (layers, hidden) in SIZES.items():
        plan = local_plan(checkpoint(folder / name, layers, hidden), kv_memory_bytes=KV_BYTES)
        profile = folder / f"{name}.yaml"
        if not profile.exists():
            settings = ProfileSettings(repeat=3, links=False)
            write_profile(await profile_engine(plan, settings), profile)
        plans[name] = profiled(plan, profile)
    shared, apart = pool_of(plans, {}), pool_of(plans, APART)
    load = workload("bursts", seconds, rate)
    async with serving(shared, folder) as url:
        await bench(workload("warm-up", WARM_UP_S, rate, seed=99), BenchSettings(url))
        measured = await bench(load, BenchSettings(url))
        moving = asyncio.ensure_future(move(url, (apart, shared), seconds / 3))
        moved = await bench(replace(load, seed=1), BenchSettings(url))
        answers = await moving
    simulated = api.simulate(shared, load)
    for name, run in (("measured", measured), ("simulated", simulated), ("moved", moved)):
        write_run(replace(run, name=name), folder / name)
    comparison = api.compare(simulated, measured)
    errors = {}
    print(f"{len(SIZES)} models, {rate:g} requests/s each, {len(measured.requests.id)} sent")
    for item in comparison.verdicts:
        if item.goal:
            errors[item.metric.key] = round(item.error, 4)
            print(
                f"  {item.metric.label:18} simulated {item.simulated:10.4f}  measured "
                f"{item.measured:10.4f} {item.metric.unit:6} {item.error:+7.1%}  {item.verdict}"
            )
    print(f"  {verdict_sentence(comparison)}")
    lost = unfinished(moved)
    print(f"re-placed {len(answers)} times under load: {len(moved.requests.id)} sent, {lost} lost")
    return {"errors": errors, "holds": bool(comparison.holds), "lost": lost}


async def move(url: str, pools: tuple[PoolPlan, ...], every_s: float) -> list[object]:
    """Re-place the pool, ``every_s`` apart; the server's answers."""
    answers = []
    async with httpx.AsyncClient(timeout=120) as client:
        for pool in pools:
            await asyncio.sleep(every_s)
            answer = await client.post(f"{url}/admin/pool", json=pool_to_dict(pool))
            answer.raise_for_status()
            answers.append(answer.json())
    return answers


def unfinished(run: Run) -> int:
    """Requests that a run without an end should have served and has not."""
    return int((run.requests.status == STATUS.index("failed")).sum())


def checkpoint(folder: Path, layers: int, hidden: int) -> Path:
    """A random Llama with the tiny model's tokenizer."""
    torch.manual_seed(layers)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder)
    return folder


def pool_of(plans: dict[str, Plan], places: dict[str, int]) -> PoolPlan:
    """All models in the first place of this machine, but for those of ``places``."""
    empty = local_pool()
    count = empty.cluster.nodes[0].count
    pool = replace(empty, parts=(Parts(MACHINE, (1,) * count),), sharing=Sharing("first-come"))
    names = pool.parts[0].names
    return replace(
        pool,
        deployments=tuple(
            Deployment(name, standing(plan, pool, names[places.get(name, 0)]), Precision("float32"))
            for name, plan in plans.items()
        ),
    )


def standing(plan: Plan, pool: PoolPlan, node: str) -> Plan:
    """``plan`` with its one engine on ``node``."""
    (engine,) = plan.engines
    stage = Stage(node, 0, plan.model.num_hidden_layers)
    legs = (Leg(COORDINATOR, engine.name, 0, 1), Leg(engine.name, COORDINATOR, 0, 1))
    engine = replace(engine, stages=(stage,))
    return replace(plan, cluster=pool.nodes, engines=(engine,), legs=legs)


def workload(name: str, seconds: float, rate: float, seed: int = 0) -> Workload:
    """The same bursty traffic for every model, each with draws of its own."""
    streams = tuple(
        ModelStream(model, LENGTHS, GammaArrivals(rate, 3.0), (SLOClass(model, SLO(e2e_s=4.0)),))
        for model in SIZES
    )
    classes = tuple(entry for stream in streams for entry in stream.classes)
    warm_up_s = min(WARM_UP_S, seconds / 4)
    return Workload(name, seconds, warm_up_s, classes=classes, streams=streams, seed=seed)


if __name__ == "__main__":
    sys.exit(main())
