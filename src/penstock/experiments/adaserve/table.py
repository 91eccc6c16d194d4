"""Published points beside ours: single figures, the order of systems, the headline claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from penstock.experiments.adaserve.cases import Point
from penstock.experiments.adaserve.run import Measured, Simulation
from penstock.experiments.adaserve.systems import ADASERVE, BASELINES, CHAINS
from penstock.experiments.rows import (
    Labels,
    Row,
    Tolerance,
    at_least,
    failed,
    information,
    judged,
)

Done = Mapping[Simulation, Measured]

POINTS = Tolerance(absolute=4.0, unit="points")
BASELINE_POINTS = Tolerance(absolute=10.0, unit="points")
GOODPUT = Tolerance(relative=0.06)
BASELINE_GOODPUT = Tolerance(relative=0.2)
TOKENS = Tolerance(absolute=0.35, unit="tokens")
SHARE = Tolerance(absolute=4.0, unit="points")
NOISE = 6.2
"""Points by which the same input differs in the publication (baselines, repeated)."""

FITTED = "fitted point: the spread of acceptance and the verify budget were chosen on it"
NOT_ALIKE = (
    "not like for like: the publication seems to plot acceptance per token times n; "
    "ours counts generated tokens, the target's own included"
)
NO_HOST = "no host is simulated; schedulers take no time in ours"


def point_rows(points: Iterable[Point], done: Done) -> list[Row]:
    return [_point_row(point, done[point.simulation]) for point in points]


def problem_row(point: Point, error: str) -> Row:
    return failed(Labels(point.figure, point.case), error)


def ours_of(point: Point, measured: Measured) -> float:
    """Our value of a published metric."""
    if point.metric == "slo_attainment_pct":
        return measured.attainment_pct[point.scale]
    if point.metric == "goodput_tok_s":
        return measured.goodput_tok_s[point.scale]
    if point.metric == "speculation_share_pct":
        return measured.speculation_share_pct
    if point.metric == "verification_share_pct":
        return 100.0 - measured.speculation_share_pct
    if point.metric == "scheduling_share_pct":
        return 0.0
    return measured.mean_tokens


def _point_row(point: Point, measured: Measured) -> Row:
    ours = ours_of(point, measured)
    mine = point.system == ADASERVE
    name, unit, tolerance = {
        "slo_attainment_pct": ("attainment", "%", POINTS if mine else BASELINE_POINTS),
        "goodput_tok_s": ("goodput", "tok/s", GOODPUT if mine else BASELINE_GOODPUT),
        "mean_accepted_tokens": ("tokens a step", "tokens", TOKENS),
    }.get(point.metric, (point.metric.removesuffix("_pct").replace("_", " "), "%", SHARE))
    subject = Labels(point.figure, point.case).of(f"{point.system} {name}", unit)
    if point.figure == "fig12" and point.system in CHAINS:
        return information(subject, point.value, ours, note=NOT_ALIKE)
    if point.metric == "scheduling_share_pct":
        return information(subject, point.value, ours, note=NO_HOST)
    note = FITTED if point.fitted else ""
    return judged(subject, point.value, ours, tolerance, note=note)


def order_rows(points: Sequence[Point], done: Done) -> list[Row]:
    """Per figure and model: of the published pairs that differ by more than noise, how many
    stand in the same order in ours, and how many of those with AdaServe."""
    groups: dict[tuple[str, str], dict[str, list[Point]]] = {}
    for point in points:
        if point.metric == "slo_attainment_pct":
            by_x = groups.setdefault((point.figure, point.model), {})
            by_x.setdefault(point.x, []).append(point)
    rows = []
    for (figure, model), by_x in groups.items():
        agreed, total = _pairs(by_x.values(), done, every=True)
        first, all_first = _pairs(by_x.values(), done, every=False)
        labels = Labels("order", f"{figure} {model}")
        for name, same, pairs in (
            ("pairs of systems", agreed, total),
            ("pairs with AdaServe", first, all_first),
        ):
            if pairs:
                share = 100.0 * same / pairs
                note = f"published pairs more than {NOISE:g} points apart"
                rows.append(
                    at_least(labels.of(f"{name} in order", "%"), 100.0, share, 90.0, note=note)
                )
    return rows


def _pairs(groups: Iterable[Sequence[Point]], done: Done, *, every: bool) -> tuple[int, int]:
    agreed = total = 0
    for group in groups:
        for i, a in enumerate(group):
            for b in group[i + 1 :]:
                if abs(a.value - b.value) <= NOISE or not (
                    every or ADASERVE in (a.system, b.system)
                ):
                    continue
                ours = ours_of(a, done[a.simulation]) - ours_of(b, done[b.simulation])
                total += 1
                agreed += (ours > 0) == (a.value > b.value)
    return agreed, total


def claim_rows(points: Sequence[Point], done: Done) -> list[Row]:
    """Figures 8 and 9 at the highest load: AdaServe over the best baseline."""
    rows = []
    for model, x in (("Llama-3.1-70B-Instruct", "4.8"), ("Qwen2.5-32B-Instruct", "4.2")):
        labels = Labels("claims", f"{model} nominal_rps {x}")
        for figure, name in (("fig8", "attainment"), ("fig9", "goodput")):
            at = {p.system: p for p in points if (p.figure, p.model, p.x) == (figure, model, x)}
            if len(at) < len(BASELINES) + 1:
                continue
            published = {system: point.value for system, point in at.items()}
            ours = {system: ours_of(p, done[p.simulation]) for system, p in at.items()}
            rows.append(
                information(
                    labels.of(f"{name} over the best baseline", "x"),
                    _ratio(published),
                    _ratio(ours),
                    note="baselines are not fitted; see the rows of single points",
                )
            )
    return rows


def _ratio(values: Mapping[str, float]) -> float:
    return values[ADASERVE] / max(values[system] for system in BASELINES)
