"""The logged deployments, chosen again from the same tables one after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from penstock.cost.fingerprint import Configuration, Demand
from penstock.errors import Infeasible
from penstock.experiments.maveriq.data import (
    FULL,
    GPU_BYTES,
    GPUS,
    OUTPUT_TOKENS,
    SHORT,
    SHORT_PROMPT_TOKENS,
    RunKey,
    by_run,
    configurations,
    cuts,
    exponents,
    model_of,
    profile,
    published_estimator,
    variants,
)
from penstock.experiments.reference import Record
from penstock.experiments.rows import Labels, Row, Tolerance, at_most, information, judged
from penstock.plan.intent.select import Choice, choose
from penstock.plan.intent.table import ConfigurationTable, build_table
from penstock.spec.intent import Intent, Wish
from penstock.spec.variants import Precision

INTENT_NAMES: Mapping[str, Intent] = {
    "min_lat": "min_latency",
    "min_cost": "min_cost",
    "min_mem": "min_memory",
    "min_gpu_cost": "min_gpu_cost",
}
FP16 = frozenset({Precision("float16"), Precision("float16", int8_kv=True)})
_DEMAND = Demand(SHORT_PROMPT_TOKENS, OUTPUT_TOKENS)
SECONDS_GOAL = 0.05


@lru_cache(maxsize=8)
def published_table(maveriq: Path, model: str) -> ConfigurationTable:
    """The table that MaverIQ's controller sorts: short fingerprints, 20 tokens, batch 1."""
    estimator = published_estimator(cuts(maveriq, SHORT), exponents(maveriq), model)
    return build_table(
        model,
        model_of(model).num_hidden_layers,
        configurations(maveriq, model),
        estimator=estimator,
        demand=_DEMAND,
        variants=variants(maveriq, model),
    )


def measured_bytes(maveriq: Path, model: str) -> Mapping[Configuration, float]:
    """What every configuration of ``model`` really took over all its GPUs, at 20 tokens."""
    rows = profile(maveriq / "profiles" / FULL)
    return {
        row.configuration: row.measurement.memory_bytes
        for row in rows
        if row.model == model and row.output_tokens == OUTPUT_TOKENS
    }


@dataclass(frozen=True, slots=True)
class Replay:
    """A logged deployment beside ours; either is None where nothing fitted.

    ``reason`` tells why ours is None.
    """

    model: str
    logged: tuple[Configuration, tuple[int, ...]] | None
    ours: Choice | None
    reason: str = ""

    @property
    def same_configuration(self) -> bool:
        if self.logged is None or self.ours is None:
            return self.logged is None and self.ours is None
        return self.logged[0] == self.ours.configuration

    @property
    def same(self) -> bool:
        if self.logged is None or self.ours is None:
            return self.same_configuration
        return self.same_configuration and self.logged[1] == self.ours.layer_map.layers


def replay_run(maveriq: Path, key: RunKey, rows: Sequence[Record]) -> tuple[Replay, ...]:
    """Choose for every deployment of a run in order.

    GPUs fill up by what the logged configuration was measured to take, on the GPUs in the log;
    where the log names none, on those of our map.
    """
    free = [GPU_BYTES] * GPUS
    found = []
    for row in rows:
        wish = Wish(
            INTENT_NAMES[key.intent],
            precisions=FP16 if key.system == "MaverIQ-FP16" else None,
        )
        table = published_table(maveriq, row["model"])
        ours, reason = None, ""
        try:
            ours = choose(table, wish, free)
        except Infeasible as error:
            reason = str(error)
        logged = _logged(row)
        found.append(Replay(row["model"], logged, ours, reason))
        if logged is not None:
            _occupy(maveriq, row, logged, ours, free)
    return tuple(found)


def _logged(row: Record) -> tuple[Configuration, tuple[int, ...]] | None:
    if row["deployed"] != "1":
        return None
    precision = Precision(row["dtype"], row["int8_kv"] == "True")
    shape = Configuration(int(row["tp"]), int(row["pp"]), precision)
    return shape, tuple(int(part) for part in row["pp_map"].split())


def _occupy(
    maveriq: Path,
    row: Record,
    logged: tuple[Configuration, tuple[int, ...]],
    ours: Choice | None,
    free: list[float],
) -> None:
    shape, layers = logged
    tensor = shape.tensor_parallel_size
    if row["gpus"]:
        gpus = [int(part) for part in row["gpus"].split(",")]
    elif ours is not None and ours.configuration == shape:
        gpus = list(ours.layer_map.gpus)
    else:
        gpus = sorted(range(GPUS), key=lambda g: -free[g])[: shape.gpus]
    total = measured_bytes(maveriq, row["model"])[shape]
    for place, gpu in enumerate(gpus):
        share = layers[place // tensor] / sum(layers)
        free[gpu] = max(0.0, free[gpu] - total * share / tensor)


def replays(maveriq: Path) -> Mapping[RunKey, tuple[Replay, ...]]:
    """All logged runs of MaverIQ and of MaverIQ restricted to FP16."""
    runs = by_run(
        maveriq / "deployments.csv",
        "model",
        "pp_map",
        "gpus",
        "deployed",
        wanted=lambda key: key.system.startswith("MaverIQ"),
    )
    return {key: replay_run(maveriq, key, rows) for key, rows in runs.items()}


def deployment_rows(maveriq: Path) -> list[Row]:
    """How many deployments agree, each that does not, and the time of a choice."""
    rows = []
    every = replays(maveriq)
    for key, found in every.items():
        labels = Labels("deployments", str(key))
        same = sum(one.same for one in found)
        rows.append(judged(labels.of("same choice", "deployments"), len(found), same, Tolerance()))
        for number, one in enumerate(found, start=1):
            if not one.same:
                subject = labels.of(f"model {number} is the same", "")
                rows.append(information(subject, 1.0, 0.0, note=_difference(one)))
    total = [one for found in every.values() for one in found]
    labels = Labels("deployments", "all runs")
    same = sum(one.same_configuration for one in total)
    rows.append(information(labels.of("same configuration", "deployments"), len(total), same))
    rows.append(_speed_row(maveriq))
    return rows


def _difference(one: Replay) -> str:
    logged = "none" if one.logged is None else f"{one.logged[0]} {list(one.logged[1])}"
    ours = "none"
    if one.ours is not None:
        ours = f"{one.ours.configuration} {list(one.ours.layer_map.layers)}"
    return f"{one.model}: logged {logged}, ours {ours}; the memory left is not in the log"


def _speed_row(maveriq: Path) -> Row:
    """CPU seconds of a whole choice for the 70B model, estimates included; the best of five."""
    seconds = []
    found = cuts(maveriq, SHORT)
    model = "llama-2-70b"
    shapes, forms = configurations(maveriq, model), variants(maveriq, model)
    powers = exponents(maveriq)
    for _ in range(5):
        started = time.process_time()
        estimator = published_estimator(found, powers, model)
        table = build_table(
            model,
            model_of(model).num_hidden_layers,
            shapes,
            estimator=estimator,
            demand=_DEMAND,
            variants=forms,
        )
        choose(table, Wish("min_cost"), [GPU_BYTES] * GPUS)
        seconds.append(time.process_time() - started)
    subject = Labels("deployments", "speed").of("CPU time of a choice, llama-2-70b", "s")
    return at_most(subject, 3.3, min(seconds), SECONDS_GOAL)
