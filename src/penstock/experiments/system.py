"""What every published system has in common: sections, a request, rows and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import InputError, SpecError
from penstock.experiments.rows import Labels, Row, failed
from penstock.experiments.runner import Task, run_tasks
from penstock.plan.planner import ProgressCallback, silent
from penstock.report.plots import Plot
from penstock.sim.options import Granularity
from penstock.spec.names import did_you_mean


@dataclass(frozen=True)
class Request:
    """What to reproduce.

    sections     those of ``chosen_sections``
    only         words that the name of a case must hold
    output       the folder for artifact files (SDS: ``.exp``), if any
    granularity  how Helix batches
    ours         our own planner or controller in the published benchmark (helix, adaserve)
    fair         all methods on equal terms (helix)
    named        whether the user named sections
    """

    sections: tuple[str, ...]
    only: str = ""
    processes: int = 1
    output: Path | None = None
    granularity: Granularity = "layerwise"
    ours: bool = False
    fair: bool = False
    named: bool = True

    def wants(self, text: str) -> bool:
        """Whether a case called ``text`` holds all words of ``only``."""
        return all(word in text.lower() for word in self.only.lower().split())


@dataclass(frozen=True)
class Table:
    """The rows, their figures, and what Ctrl-C left undone."""

    rows: tuple[Row, ...]
    unfinished: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()


Reproduce = Callable[[Path, Request, ProgressCallback], Table]


@dataclass(frozen=True)
class System:
    """A published system. ``folder`` is where its reference data lie; ``options`` are those of
    ``OPTIONS`` that it knows."""

    name: str
    sections: tuple[str, ...]
    reproduce: Reproduce
    folder: str = ""
    options: frozenset[str] = field(default_factory=frozenset)

    @property
    def data(self) -> str:
        return self.folder or self.name


OPTIONS = ("ours", "fair", "granularity")


def check_options(system: System, request: Request) -> None:
    """Raise ``InputError`` for an option that ``system`` does not have."""
    given = {
        "ours": request.ours,
        "fair": request.fair,
        "granularity": request.granularity != "layerwise",
    }
    for name in OPTIONS:
        if given[name] and name not in system.options:
            raise InputError(f"--{name} does not belong to {system.name}; leave it out")


def chosen_sections(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """``names`` in the order of ``known``; none named = all. Raises ``SpecError``."""
    for name in names:
        if name not in known:
            raise SpecError(
                "no such section", key="sections", value=name, fix=did_you_mean(name, known)
            )
    return tuple(name for name in known if name in names or not names)


def no_match(only: str) -> SpecError:
    """The mistake of words that leave nothing to run."""
    return SpecError("matches no experiment", key="--only", value=only, fix="use fewer words")


def table_of(
    tasks: Sequence[Task[list[Row]]], request: Request, progress: ProgressCallback = silent
) -> Table:
    """Run tasks that give rows; a task that fails is one row, its label the experiment.

    Raises ``SpecError`` where ``only`` leaves no row.
    """
    outcomes = run_tasks(tasks, request.processes, progress)
    rows: list[Row] = []
    unfinished = []
    for task, outcome in zip(tasks, outcomes.results, strict=True):
        if outcome is None:
            unfinished.append(task.label)
        elif outcome.value is None:
            rows.append(failed(Labels(task.label, ""), outcome.error))
        else:
            rows += outcome.value
    chosen = [row for row in rows if request.wants(f"{row.experiment} {row.case}")]
    if not chosen and not unfinished:
        raise no_match(request.only)
    return Table(tuple(chosen), tuple(unfinished))
