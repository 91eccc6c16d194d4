"""DistServe's placement search: what it finds, and how long it takes."""

from __future__ import annotations

import time
from pathlib import Path

from penstock.experiments.distserve.compat import Probes, sampled
from penstock.experiments.distserve.data import read_lengths
from penstock.experiments.rows import Labels, Row, Tolerance, at_most, judged
from penstock.plan.goodput.distserve import (
    Bisection,
    colocated_instances,
    pairs_of_instances,
    search_goodput,
)
from penstock.spec.load import load_model

# What the search over 13B on 4 GPUs may take; theirs takes 30 CPU seconds.
SEARCH_CPU_S = 1.5


def search_rows(distserve: Path) -> list[Row]:
    """The README example of DistServe (13B on 4 GPUs) and 66B on 8: shape, rate and CPU time."""
    pool = read_lengths(distserve, "sharegpt")
    rate, exact = "goodput per GPU", Tolerance(absolute=1e-6, unit="req/s")
    small, large = load_model("opt-13b"), load_model("opt-66b")
    labels = Labels("search", "OPT-13B, 1 node x 4 GPUs")
    lengths = sampled(pool, 300)
    started = time.process_time()
    probes = Probes("opt-13b", "distserve", lengths, 0.2, 0.1)
    best = search_goodput(pairs_of_instances(small, "low", 1, 4), probes.both).best
    cpu_s = time.process_time() - started
    rows = [
        judged(labels.of(rate, "req/s"), 2.03125, best.rate_per_gpu, exact, note=str(best.shape)),
        at_most(labels.of("CPU time", "s"), 30.0, cpu_s, SEARCH_CPU_S),
    ]
    vllm = Probes("opt-13b", "vllm", lengths, 0.2, 0.1)
    best = search_goodput(colocated_instances(small, 4), vllm.both).best
    labels = Labels("search", "OPT-13B, vLLM on 4 GPUs")
    rows.append(
        judged(labels.of(rate, "req/s"), 1.40625, best.rate_per_gpu, exact, note=str(best.shape))
    )
    probes = Probes("opt-66b", "distserve", sampled(pool, 100), 0.4, 0.1)
    shapes = pairs_of_instances(large, "low", 1, 8)
    best = search_goodput(shapes, probes.both, Bisection(2.0, 0.125)).best
    labels = Labels("search", "OPT-66B, 1 node x 8 GPUs")
    rows.append(
        judged(labels.of(rate, "req/s"), 0.375, best.rate_per_gpu, exact, note=str(best.shape))
    )
    return rows
