"""What all published systems share: sections, options, tables of tasks, figures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.main import execute
from penstock.errors import InputError, SpecError
from penstock.experiments.figures import bar_plots, curve_plot, file_name, write_figures
from penstock.experiments.registry import SYSTEMS
from penstock.experiments.rows import Labels, Row, Tolerance, judged
from penstock.experiments.runner import Task
from penstock.experiments.system import (
    Request,
    System,
    Table,
    check_options,
    chosen_sections,
    table_of,
)
from penstock.report.plots import Curve, Plot


def row(case: str, published: float = 1.0, ours: float = 1.0) -> Row:
    subject = Labels("figure 1", case).of("share", "%")
    return judged(subject, published, ours, Tolerance(relative=0.1))


def broken() -> list[Row]:
    raise InputError("the file is gone")


def test_sections_keep_their_own_order() -> None:
    """None named means all; a wrong name gets the nearest one."""
    known = ("6.3", "6.4", "max-flow")
    assert chosen_sections((), known) == known
    assert chosen_sections(("max-flow", "6.3"), known) == ("6.3", "max-flow")
    with pytest.raises(SpecError, match=r"did you mean '6\.3'"):
        chosen_sections(("6.33",), known)


def test_a_failing_task_is_one_row_and_words_choose() -> None:
    """The rest of the table is kept; words that leave nothing are a mistake."""
    tasks: list[Task[list[Row]]] = [
        Task("good", 1.0, partial(list, [row("a b"), row("c")])),
        Task("bad", 1.0, broken),
    ]
    table = table_of(tasks, Request(("1",)))
    assert [each.verdict for each in table.rows] == ["within", "within", "failed"]
    assert "the file is gone" in table.rows[2].note
    assert [each.case for each in table_of(tasks, Request(("1",), only="B figure")).rows] == ["a b"]
    with pytest.raises(SpecError, match="matches no experiment"):
        table_of(tasks, Request(("1",), only="zebra"))


def test_options_belong_to_systems() -> None:
    """An option that a system does not have is named, and so is the system."""
    system = System("x", ("1",), lambda *_: Table(()), options=frozenset(("ours",)))
    check_options(system, Request(("1",), ours=True))
    with pytest.raises(InputError, match="--fair does not belong to x"):
        check_options(system, Request(("1",), fair=True))


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_refuses_unknown_sections(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2, before anything runs."""
    system = SYSTEMS[name]
    (tmp_path / system.data).mkdir()
    assert system.name == name
    assert execute(["reproduce", name, "zebra", "--reference", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no such section" in error
    assert error.count("\n") == 1


def test_figures_are_written_as_svg_that_says_what_it_shows(tmp_path: Path) -> None:
    """Published and ours are told apart in the legend, and the text alternative has the ends."""
    found = {"DistServe": [(1.0, row("a", 90.0, 91.0)), (2.0, row("b", 60.0, 61.0))]}
    plots = [curve_plot("figure 8 & more", found, "req/s", "attainment, %")]
    plots += bar_plots("gain", {"a <b>": row("a", 2.0, 3.0), "none": row("c")}, "x")
    folder = tmp_path / "new" / "figures"
    paths = write_figures(plots, folder)
    assert [path.name for path in paths] == ["figure-8-more.svg", "gain.svg"]
    words = "".join(ElementTree.parse(paths[0]).getroot().itertext())
    assert "DistServe, published" in words
    assert "DistServe: 91 at 1, 61 at 2" in words
    assert "a <b>" in "".join(ElementTree.parse(paths[1]).getroot().itertext())
    first = paths[0].read_bytes()
    write_figures(plots, folder)
    assert paths[0].read_bytes() == first


def test_many_bars_are_several_pages() -> None:
    """No figure gets more groups than can be read, and no row is lost."""
    pages = bar_plots("gain", {f"case {i}": row(str(i)) for i in range(19)}, "x")
    assert [len(page.bars) for page in pages] == [8, 8, 3]
    assert [name for page in pages for name in page.bars] == [f"case {i}" for i in range(19)]


POINTS = st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e9)), max_size=5)


@given(st.lists(POINTS, max_size=4), st.booleans())
def test_any_values_give_a_picture_inside_its_frame(
    curves: list[list[tuple[float, float]]], bars: bool
) -> None:
    """Whatever the figures, the SVG is well formed and every mark lies in the frame."""
    made = tuple(Curve(f"c{i}", tuple(p), i, i % 2 == 0) for i, p in enumerate(curves))
    if bars:
        flat = [tuple((float(j), y) for j, (_, y) in enumerate(p)) for p in curves]
        made = tuple(Curve(f"c{i}", points, i) for i, points in enumerate(flat))
    groups = ("a", "b", "c", "d", "e") if bars else ()
    root = ElementTree.fromstring(Plot("p", "p", "x", "y", made, bars=groups).to_svg())
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for mark in root.iter():
        for key, most in (("cx", width), ("cy", height), ("x", width), ("y", height)):
            if key in mark.attrib:
                assert -1 <= float(mark.attrib[key]) <= most + 1


def test_names_of_files_are_plain() -> None:
    """Letters, digits, points and single hyphens."""
    assert file_name("figure 8  OPT-13B / (x)") == "figure-8-OPT-13B-x.svg"
