"""Figures that the paper reads straight from its profiles."""

from __future__ import annotations

from pathlib import Path

from penstock.cost.fingerprint import Configuration, ProfileRow, read_profile
from penstock.experiments.maveriq.data import FULL, LONG, profile
from penstock.experiments.rows import Labels, Row, Tolerance, judged
from penstock.spec.variants import Precision

_PRINTED = Tolerance(relative=0.002)
# The paper prints the overhead over batches 1, 8, 16 and 32.
_UNEVEN = {"llama-2-7b": 0.402, "llama-2-13b": 0.503, "llama-2-70b": 0.192}
_BATCHES = (1, 8, 16, 32)
_SPEED_UPS: dict[str, dict[str, float]] = {
    "falcon-7b": {"int8": 1.71, "int4": 2.55},
    "falcon-40b": {"int8": 1.86, "int4": 3.13},
    "gptj-6b": {"int8": 1.69, "int4": 2.48},
    "llama-2-7b": {"int8": 1.72, "int4": 2.57, "int4_gptq": 2.42},
    "llama-2-13b": {"int8": 1.76, "int4": 2.72, "int4_gptq": 2.56},
    "llama-2-70b": {"int8": 1.88, "int4": 3.25, "int4_gptq": 3.03},
}


def profile_rows(maveriq: Path) -> list[Row]:
    """Ranges of the 70B model, its fingerprint's savings, and the cost of uneven maps."""
    full = profile(maveriq / "profiles" / FULL)
    big = [r for r in full if r.model == "llama-2-70b" and r.output_tokens == 100]
    seconds = [row.measurement.latency_s for row in big]
    gib = [row.measurement.memory_bytes / 2**30 for row in big]
    labels = Labels("sec1", "llama-2-70b, 100 tokens")
    published = (
        ("configurations", "", 97.0, float(len(big))),
        ("lowest latency", "s", 2.677, min(seconds)),
        ("highest latency", "s", 21.485, max(seconds)),
        ("lowest memory", "GiB", 33.67, min(gib)),
        ("highest memory", "GiB", 153.84, max(gib)),
    )
    rows = [
        judged(labels.of(metric, unit), theirs, ours, _PRINTED)
        for metric, unit, theirs, ours in published
    ]
    rows += _falcon_rows(full) + _speed_up_rows(full)
    return rows + _cut_rows(maveriq, full) + _uneven_rows(maveriq)


def _falcon_rows(full: tuple[ProfileRow, ...]) -> list[Row]:
    """What doubling TP gains for falcon-40b in FP16 at 100 tokens."""
    at = {
        row.configuration.tensor_parallel_size: row.measurement.latency_s
        for row in full
        if row.model == "falcon-40b"
        and row.output_tokens == 100
        and row.configuration.pipeline_parallel_size == 1
        and row.configuration.precision == Precision("float16")
    }
    labels = Labels("sec3", "falcon-40b FP16")
    return [
        judged(
            labels.of(f"latency gain TP{tp} to TP{2 * tp}", "%"),
            theirs,
            100 * (1 - at[2 * tp] / at[tp]),
            Tolerance(absolute=1.0, unit="%"),
        )
        for tp, theirs in ((2, 43.16), (4, 13.46))
    ]


def _speed_up_rows(full: tuple[ProfileRow, ...]) -> list[Row]:
    """Quantised over FP16 in the first configuration that holds FP16 on fewest GPUs."""
    rows = []
    for model, published in _SPEED_UPS.items():
        at = {
            row.configuration: row.measurement.latency_s
            for row in full
            if row.model == model and row.output_tokens == 100
        }
        plain = [one for one in at if one.precision == Precision("float16")]
        base = min(plain, key=lambda one: (one.gpus, one.tensor_parallel_size))
        shape = (base.tensor_parallel_size, base.pipeline_parallel_size)
        for weights, theirs in published.items():
            ours = at[base] / at[Configuration(*shape, Precision(weights))]
            subject = Labels("sec3", model).of(f"speed-up of {weights} over FP16", "x")
            rows.append(judged(subject, theirs, ours, Tolerance(absolute=0.0051, unit="x")))
    return rows


def _cut_rows(maveriq: Path, full: tuple[ProfileRow, ...]) -> list[Row]:
    """How much smaller and faster one layer is than the whole 70B model, 10 tokens, FP16."""

    def of(rows: tuple[ProfileRow, ...], pipeline: int, layers: int) -> ProfileRow:
        shape = Configuration(1, pipeline, Precision("float16"))
        return next(
            row
            for row in rows
            if row.model == "llama-2-70b"
            and row.output_tokens == 10
            and (row.configuration, row.layers) == (shape, layers)
        )

    whole, cut = of(full, 3, 80).measurement, of(profile(maveriq / "profiles" / LONG), 1, 1)
    one = cut.measurement
    labels = Labels("sec5", "llama-2-70b, one layer")
    return [
        judged(
            labels.of(f"{what} gain", "x"), theirs, ours, Tolerance(relative=0.02), note=_SMALLEST
        )
        for what, theirs, ours in (
            ("memory", 41.42, whole.memory_bytes / one.memory_bytes),
            ("latency", 62.51, whole.latency_s / one.latency_s),
        )
    ]


_SMALLEST = "the whole model in its smallest fitting configuration, PP 3"


def _uneven_rows(maveriq: Path) -> list[Row]:
    """The largest latency overhead of an uneven map over the balanced one."""
    rows = read_profile(maveriq / "profiles" / "study_unbalanced_pp.csv")
    found = []
    for model, theirs in _UNEVEN.items():
        kin = [row for row in rows if row.model == model and row.batch in _BATCHES]
        # The balanced map is measured first for every batch.
        base = {row.batch: row.measurement.latency_s for row in reversed(kin)}
        worst = max(row.measurement.latency_s / base[row.batch] for row in kin)
        subject = Labels("sec3", model).of("largest overhead of uneven maps", "%")
        limit = Tolerance(absolute=0.005, unit="%")
        found.append(judged(subject, theirs, 100 * (worst - 1), limit))
    return found
