"""The report: one HTML file that needs nothing else, neither network nor fonts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined

from penstock import __version__
from penstock.cost.base import Provenance
from penstock.errors import InputError
from penstock.measure.run import Run
from penstock.plan.plan import Plan
from penstock.report.page import build_page
from penstock.storage import write_text


def write_report(
    path: Path,
    runs: Sequence[Run],
    plans: Sequence[Plan],
    *,
    title: str,
    provenance: Sequence[Provenance] = (),
) -> None:
    """Write the report to ``path``, whole or not at all.

    ``provenance`` names the sources of the cost model's numbers. Raises ``InputError`` when
    there is nothing to report, ``StorageError`` when the disk refuses.
    """
    write_text(path, render_report(runs, plans, title=title, provenance=provenance))


def render_report(
    runs: Sequence[Run],
    plans: Sequence[Plan],
    *,
    title: str,
    provenance: Sequence[Provenance] = (),
) -> str:
    """Return the page as text; equal inputs give equal bytes."""
    if not runs and not plans:
        raise InputError("nothing to report; give at least one run or plan")
    page = build_page(runs, plans, title=title, version=__version__, provenance=provenance)
    folder = files("penstock.report") / "templates"
    names = ("report.html.j2", "style.css", "script.js")
    environment = Environment(
        loader=DictLoader({name: (folder / name).read_text(encoding="utf-8") for name in names}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page=page)
