"""DistServe's tables: KV memory of its engines, and the placements it chose."""

from __future__ import annotations

from pathlib import Path

from penstock.cost.distserve_host import DistServeHostCost
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible
from penstock.experiments.distserve.compat import GPU, Probes, sampled
from penstock.experiments.distserve.data import APPLICATIONS, Application, read_lengths
from penstock.experiments.reference import number, read_table
from penstock.experiments.rows import Labels, Row, Tolerance, information, judged
from penstock.plan.goodput.distserve import Bisection, Shape, pairs_of_instances, search_goodput
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model

TABLE3_REQUESTS = 300
NODES, GPUS_PER_NODE = 1, 8


def capacity_rows(distserve: Path) -> list[Row]:
    """KV tokens of every published engine shape; and Penstock's own memory model beside them."""
    path = distserve / "max_num_tokens.csv"
    gpu = catalogue().get(GPU)
    rows = []
    for row in read_table(path, "model", "tp", "pp", "max_num_tokens"):
        name, tp, pp = row["model"].rpartition("/")[2], int(row["tp"]), int(row["pp"])
        published = number(row, "max_num_tokens", path)
        labels = Labels("table KV memory", f"{name} TP{tp} PP{pp}")
        shape = EngineShape(gpu, tp, pp, gpu_memory_utilization=0.95)
        model = load_model(name)
        ours = DistServeHostCost(model).kv_capacity_tokens(shape)
        rows.append(judged(labels.of("tokens", ""), published, ours, Tolerance(relative=0.001)))
        try:
            own = StepRoofline(model).kv_capacity_tokens(shape)
        except Infeasible:
            own = 0
        note = "Penstock's own memory model, which keeps room for activations"
        rows.append(information(labels.of("tokens, own model", ""), published, own, note=note))
    return rows


def placement_rows(distserve: Path, model: str) -> list[Row]:
    """Table 3: the shape that the published search, run again, picks for an application.

    Its search sees neither KV memory nor transfers, and the rate is one of synthetic lengths.
    """
    application = next(a for a in APPLICATIONS if a.model == model)
    published = _published(distserve, application)
    labels = Labels("table 3", application.name)
    pool = read_lengths(distserve, application.lengths)
    probes = Probes(
        model,
        "distserve",
        sampled(pool, TABLE3_REQUESTS),
        application.ttft_s,
        application.tpot_s,
    )
    shapes = pairs_of_instances(load_model(model), "low", NODES, GPUS_PER_NODE)
    found = search_goodput(shapes, probes.both, Bisection(4.0, 0.125))
    best = found.best
    mine = next(c for c in found.candidates if c.shape == published)
    rows = [
        judged(labels.of(f"{phase} {what}", ""), getattr(published, key), ours, Tolerance())
        for phase in ("prefill", "decode")
        for what in ("TP", "PP")
        for key in (f"{phase}_{what.lower()}",)
        for ours in (getattr(best.shape, key),)
    ]
    note = "goodput of the published shape beside that of the shape found"
    rows.append(
        information(
            labels.of("goodput per GPU", "req/s"), mine.rate_per_gpu, best.rate_per_gpu, note=note
        )
    )
    return rows


def _published(distserve: Path, application: Application) -> Shape:
    for row in read_table(distserve / "placements.csv", "model", "system", "prefill_tp"):
        same = row["model"].lower() == application.model
        if same and row["system"] == "distserve":
            numbers = [
                int(row[key]) for key in ("prefill_tp", "prefill_pp", "decode_tp", "decode_pp")
            ]
            return Shape(*numbers)
    return application.ours
