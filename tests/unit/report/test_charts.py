"""Charts, numbers and drawings."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.report.plans import plan_of

from penstock.plan.plan import Leg
from penstock.report.charts import Series, bar_chart, cdf_chart, heat_map, level, range_chart
from penstock.report.numbers import change, figure, row_figures
from penstock.report.placement_drawing import engine_load, placement_drawing
from penstock.report.svg import linear_ticks, log_ticks
from penstock.spec.cluster import COORDINATOR

SVG = "{http://www.w3.org/2000/svg}"
MIXED = {("eu", "A100"): 4, ("eu", "L4"): 8, ("us", "T4"): 12}


@given(st.floats(-1e4, 1e4), st.floats(1e-2, 1e6))
def test_linear_ticks_stay_inside_and_are_evenly_spaced(low: float, span: float) -> None:
    """Ticks are within the axis, ascending and equidistant."""
    ticks = linear_ticks(low, low + span)
    steps = np.diff(ticks)

    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    assert len(steps) == 0 or np.allclose(steps, steps[0])
    assert len(ticks) <= 11


@given(st.floats(1e-4, 1e3), st.floats(1.5, 1e6))
def test_log_ticks_stay_inside(low: float, ratio: float) -> None:
    """Ticks of a log axis are within it and ascending."""
    ticks = log_ticks(low, low * ratio)

    assert ticks == sorted(ticks)
    assert all(low * 0.99 <= tick <= low * ratio * 1.01 for tick in ticks)


def test_rows_share_unit_and_decimals() -> None:
    """Seconds below one become ms; undefined is a dash; shares are per cent."""
    assert row_figures([0.0123, 0.5], "s") == ("ms", ["12.3", "500.0"])
    assert row_figures([2.5, 0.5], "s") == ("s", ["2.500", "0.500"])
    assert row_figures([1234.56, 7.0], "tok/s") == ("tok/s", ["1,235", "7"])
    assert row_figures([0.875, None], "share")[1][0] == "87.5"
    assert row_figures([3.0, 12.0], "")[1] == ["3", "12"]
    assert figure(math.nan, "s") == row_figures([None], "s")[1][0]


def test_changes_have_a_sign_and_large_ones_a_factor() -> None:
    """+12 % is a difference; more than tenfold is a factor."""
    assert change(0.123) == "+12.3 %"
    assert change(-0.5) == "-50.0 %"
    assert change(19.0).endswith("20.0")
    assert change(None) == ""


@given(st.lists(st.floats(0, 1e3), max_size=30), st.booleans())
def test_distributions_are_drawn_upwards_and_inside(values: list[float], other: bool) -> None:
    """A cumulative curve never falls and stays in its frame, whatever the samples."""
    series = [Series("a", np.array(values), 0)]
    if other:
        series.append(Series("b", np.array([1.0]), 1))
    root = ET.fromstring(cdf_chart(series, title="t", name="n", axis="s"))
    box = [float(x) for x in root.attrib["viewBox"].split()]
    for line in root.iter(f"{SVG}polyline"):
        points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
        xs, ys = zip(*points, strict=True)
        assert list(xs) == sorted(xs)
        assert list(ys) == sorted(ys, reverse=True)
        assert min(xs) >= 0
        assert max(xs) <= box[2]
        assert min(ys) >= 0
        assert max(ys) <= box[3]


def test_bars_are_proportional_and_the_best_is_marked() -> None:
    """Lengths follow the values; the undefined one says so."""
    root = ET.fromstring(
        bar_chart(["a", "b", "c"], [10.0, 5.0, None], "tok/s", title="t", name="n")
    )
    bars = list(root.iter(f"{SVG}rect"))

    assert float(bars[0].attrib["width"]) == pytest.approx(2 * float(bars[1].attrib["width"]))
    assert "best" in bars[0].attrib["class"]
    assert "not defined" in "".join(root.itertext())


def test_ranges_without_samples_say_so() -> None:
    """A run that finished nothing has no box."""
    svg = range_chart(["a", "b"], [(1, 2, 3, 4), (math.nan,) * 4], title="t", name="n")
    root = ET.fromstring(svg)

    assert len(list(root.iter(f"{SVG}rect"))) == 1
    assert "not defined" in "".join(root.itertext())


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 9))
def test_heat_maps_cover_every_cell_once(rows: int, columns: int, seed: int) -> None:
    """The area of all coloured rectangles is the area of the map."""
    values = np.random.default_rng(seed).random((rows, columns))
    svg = heat_map(
        values,
        [f"n{i}" for i in range(rows)],
        start_s=0,
        end_s=10,
        full=1.0,
        full_label="1",
        title="t",
        name="n",
    )
    area = 0.0
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        for rectangle in path.attrib["d"].split("M")[1:]:
            width = float(rectangle.split("h")[1].split("v")[0])
            height = float(rectangle.split("v")[1].split("h")[0])
            area += width * height

    assert area == pytest.approx(rows * 13.0 * 432.0, rel=0.01)


def test_levels_cover_the_ramp() -> None:
    """Zero is the first colour, one is the last."""
    assert (level(0.0), level(1.0), level(2.0), level(-1.0)) == (0, 8, 8, 0)


def test_every_stage_is_one_bar_at_its_layers() -> None:
    """Bars lie where their layers are and tell their node."""
    plan = plan_of(MIXED)
    root = ET.fromstring(placement_drawing(plan, name="p"))
    blocks = [r for r in root.iter(f"{SVG}rect") if "block" in r.attrib["class"]]
    hints = {"".join(r.itertext()).split(":")[0]: r for r in blocks}

    assert len(blocks) == len(plan.engines)
    for engine in plan.engines:
        bar = hints[engine.name]
        left = 170 + (1080 - 170 - 168) * engine.start_layer / 80
        assert float(bar.attrib["x"]) == pytest.approx(left, abs=1)


def test_legs_are_drawn_while_they_can_be_told_apart() -> None:
    """Small plans show their legs, large ones do not."""
    small = placement_drawing(plan_of(MIXED), name="p")
    large = placement_drawing(plan_of({("eu", "T4"): 1000}), name="p")

    assert small.count('class="leg"') > 10
    assert 'class="leg"' not in large
    assert len(large) < 60_000


def test_stages_of_one_engine_are_joined() -> None:
    """An engine that spans three nodes shows three bars and the two hops between them."""
    plan = plan_of({("eu", "A100"): 6}, spare=0)
    first = plan.engines[:3]
    stages = tuple(engine.stages[0] for engine in first)
    one = replace(first[0], name="pipe", stages=stages)
    legs = (Leg(COORDINATOR, "pipe", 10.0, 20.0),)
    svg = placement_drawing(replace(plan, engines=(one,), legs=legs), name="p")

    assert svg.count(" block") == 3
    assert svg.count('class="leg"') == 2


def test_flow_into_engines_is_counted_once() -> None:
    """The load of an engine is the sum of its incoming legs."""
    plan = plan_of(MIXED)
    load = engine_load(plan)
    flow = {leg.dst: leg.flow_tokens_per_s for leg in plan.legs}

    assert all(load[engine.name] == flow[engine.name] for engine in plan.engines)
