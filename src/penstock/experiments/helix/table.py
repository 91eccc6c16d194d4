"""From what was measured to rows: every published figure of a case beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.experiments.helix.cases import TOTAL, Case, Figure
from penstock.experiments.helix.measured import Measured, figures, together
from penstock.experiments.reference import number, read_table
from penstock.experiments.rows import Labels, Row, Tolerance, information, judged

THROUGHPUT = Tolerance(relative=0.01)
THROUGHPUT_OF_ANY_FLOW = Tolerance(relative=0.02)
LATENCY = Tolerance(relative=0.02, absolute=0.02, unit="s")

ANY_FLOW = "its max flow is not unique: another optimal flow routes differently"
HARDWARE = "published: the prototype on real GPUs; ours: the simulation of the same settings"
NODEWISE = {
    "offline": "nodewise: an iteration runs all its layers on a node in one step, so an arrival "
    "waits for the batch at hand but is not split over layers; the prompt is the first token",
    "online": "nodewise: one batch runs all layers of a node at once, one transfer a batch and "
    "link; the prompt is the first token",
}


@dataclass(frozen=True)
class Problems:
    """Why parts of a case have no figures, by scope."""

    lines: Mapping[str, str]

    def note(self, scope: str) -> str:
        lines = self.lines.values() if scope == TOTAL else [self.lines.get(scope, "")]
        return "; ".join(sorted({line for line in lines if line}))


def case_rows(case: Case, parts: Mapping[str, Measured], problems: Problems) -> list[Row]:
    """One row a published figure; ``parts`` lacks the scopes that ``problems`` names."""
    ours: dict[str, Mapping[str, float]] = {name: figures(part) for name, part in parts.items()}
    if set(parts) == set(case.parts):
        ours[TOTAL] = figures(together([parts[name] for name in case.parts]))
    return [_row(case, figure, ours, problems) for figure in case.figures]


def _row(
    case: Case, figure: Figure, ours: Mapping[str, Mapping[str, float]], problems: Problems
) -> Row:
    labels = case.labels
    if figure.scope != TOTAL:
        labels = Labels(labels.experiment, f"{labels.case} {figure.scope}")
    value = ours.get(figure.scope, {}).get(figure.metric)
    note = problems.note(figure.scope) or _note(case)
    subject = labels.of(figure.metric, figure.unit)
    if case.kind == "prototype":
        return information(subject, figure.value, value, note=note)
    return judged(subject, figure.value, value, _tolerance(case, figure.metric), note=note)


def _any_flow(case: Case) -> bool:
    return case.section == "6.5" and case.method == "helix"


def _tolerance(case: Case, metric: str) -> Tolerance:
    if metric != "decode throughput":
        return LATENCY
    return THROUGHPUT_OF_ANY_FLOW if _any_flow(case) else THROUGHPUT


def _note(case: Case) -> str:
    notes = [HARDWARE] if case.kind == "prototype" else []
    if any(part.granularity == "nodewise" for part in case.parts.values()):
        notes.append(NODEWISE[case.mode])
    if _any_flow(case):
        notes.append(ANY_FLOW)
    return "; ".join(notes)


def congestion_rows(helix: Path, case: Case, result: Measured | None, problem: str) -> list[Row]:
    """Mean time prompts spend on each node (figure 10b), where it was published for the case."""
    path = helix / "expected" / "congestion.csv"
    rows = []
    for record in read_table(path, "section", "scheduler", "mean_prompt_residence_s"):
        if (record["section"], record["scheduler"]) != (case.section, case.method):
            continue
        published = number(record, "mean_prompt_residence_s", path)
        node = f"compute_node_{record['compute_node_uid']}"
        ours = None if result is None else result.residence_s.get(node)
        subject = case.labels.of(f"prompt residence node {record['compute_node_uid']}", "s")
        rows.append(judged(subject, published, ours, LATENCY, note=problem or _note(case)))
    return rows
