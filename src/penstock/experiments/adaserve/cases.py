"""The published points, each with the simulation that answers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import SpecError
from penstock.experiments.adaserve.run import SCALES, Simulation
from penstock.experiments.adaserve.systems import ADASERVE, LLAMA
from penstock.experiments.reference import number, read_table

FIGURES = ("fig8", "fig9", "fig10", "fig11", "fig12", "fig14", "fig15")
FITTED = frozenset(("rps3.2.csv", "rps3.8.csv", "rps4.6.csv"))
"""Traces of the points that constants were fitted on (AdaServe on Llama)."""

COLUMNS = ("figure", "model", "system", "x_name", "x", "metric", "value")


@dataclass(frozen=True)
class Point:
    """One published figure. ``scale`` is the multiple of the urgent class it is scored at."""

    figure: str
    model: str
    system: str
    x_name: str
    x: str
    metric: str
    value: float
    simulation: Simulation
    scale: float

    @property
    def case(self) -> str:
        return f"{self.model} {self.x_name} {self.x}"

    @property
    def fitted(self) -> bool:
        run = self.simulation
        fig8 = self.figure in ("fig8", "fig9", "fig12")
        return fig8 and self.system == ADASERVE and self.model == LLAMA and run.trace in FITTED


def read_points(adaserve: Path) -> list[Point]:
    """Read ``expected_results.csv`` for the figures that can be run. Raises ``InputError``."""
    path = adaserve / "expected_results.csv"
    files = _trace_files(adaserve)
    points = []
    for row in read_table(path, *COLUMNS):
        if row["figure"] not in FIGURES:
            continue
        trace, scale, cap = _inputs(row, files, path)
        # Only AdaServe is run again for each scale; the others are scored again.
        run_scale = scale if row["system"] == ADASERVE else SCALES[2]
        run = Simulation(row["model"], row["system"], trace, 0, run_scale, cap)
        points.append(
            Point(
                row["figure"],
                row["model"],
                row["system"],
                row["x_name"],
                row["x"],
                row["metric"],
                number(row, "value", path),
                run,
                scale,
            )
        )
    return points


def _trace_files(adaserve: Path) -> Mapping[str, str]:
    """Compact trace by the name of the published file."""
    rows = read_table(adaserve / "trace_index.csv", "artifact_file", "trace_csv")
    return {row["artifact_file"].rpartition("/")[2]: row["trace_csv"] for row in rows}


def _inputs(row: Mapping[str, str], files: Mapping[str, str], path: Path) -> tuple[str, float, int]:
    """(trace, scale of the urgent class, output cap) of a published point."""
    figure, x = row["figure"], row["x"]
    scale, cap = 1.2, 256
    if figure in ("fig8", "fig9", "fig12"):
        name = f"emission_rps{float(x):.1f}_ol256.json"
    elif figure == "fig10":
        name = f"emission_rps4.0_prop{float(x) / 100:.1f}.json"
    elif figure == "fig11":
        name, scale = f"emission_slo{float(x):.1f}_ol256.json", float(x)
    elif figure == "fig14":
        name = f"emission_{x.removesuffix('.csv')}.json"
    else:
        name, cap = f"emission_{x}.json", 128
    try:
        return files[name], scale, cap
    except KeyError as error:
        raise SpecError(
            "no trace is listed for the point", source=path, key=figure, value=name
        ) from error
