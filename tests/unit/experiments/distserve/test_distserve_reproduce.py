"""The table of DistServe: its search, its factors, and the points they are read from."""

from __future__ import annotations

from math import isnan
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import InputError, SpecError
from penstock.experiments.distserve.ablation import ORDER, shapes_of
from penstock.experiments.distserve.crossing import crossing, improvement
from penstock.experiments.distserve.data import APPLICATIONS, read_lengths
from penstock.experiments.distserve.reproduce import reproduce_distserve
from penstock.experiments.distserve.search import search_rows
from penstock.experiments.distserve.stages import STAGES, breakdown_rows, stage_times
from penstock.experiments.distserve.tables import capacity_rows
from penstock.experiments.system import Request
from penstock.spec.workload import Request as Asked


def test_crossings_lie_on_the_line_between_two_points() -> None:
    """A curve falls under 90 % between two points; one that never does has no crossing."""
    assert crossing([(1, 100), (3, 80)]) == pytest.approx(2.0)
    assert crossing([(1.0, 80), (2.0, 100)], falls_up=False) == pytest.approx(1.5)
    assert isnan(crossing([(1, 100), (2, 95)]))
    assert isnan(crossing([(1, 85), (2, 80)]))
    assert improvement([(2, 90), (3, 0)], [(1, 90), (2, 0)], falls_up=True) == pytest.approx(2.0)


@pytest.mark.reference
def test_the_published_search_is_found_again(reference: Path) -> None:
    """Shapes and rates equal those of DistServe's own search."""
    rows = search_rows(reference / "distserve")
    assert [row.verdict for row in rows if row.unit == "req/s"] == ["within"] * 3
    assert rows[0].note == "prefill TP2 PP1, decode TP1 PP1"


@pytest.mark.reference
def test_printed_factors_follow_from_the_curves(reference: Path) -> None:
    """The factors of a panel follow from the published curves within 2 %; its points are there
    once published and once simulated, and so is its figure."""
    request = Request(("8", "9"), only="humaneval slo")
    table = reproduce_distserve(reference / "distserve", request)
    drawn = [row for row in table.rows if row.metric == "from the curves"]
    assert [row.verdict for row in drawn] == ["within", "within"]
    (panel,) = [plot for plot in table.plots if not plot.bars]
    assert [(c.label, c.published) for c in panel.curves] == [
        ("DistServe", True),
        ("DistServe", False),
        ("vLLM", True),
        ("vLLM", False),
    ]


@pytest.mark.reference
def test_stored_kv_memory_is_found_again(reference: Path) -> None:
    """All 38 engine shapes of the published table hold the same number of tokens."""
    rows = capacity_rows(reference / "distserve")
    judged = [row for row in rows if row.verdict != "information"]
    assert len(judged) >= 38
    assert {row.verdict for row in judged} == {"within"}


@pytest.mark.reference
def test_the_stages_of_a_request_add_up(reference: Path) -> None:
    """A lone request never queues, and its transfer takes what its bytes take on the links."""
    application = APPLICATIONS[0]
    cost = application.cost("distserve")
    alone = (Asked(0, 0.0, 700, 20), Asked(1, 100.0, 40, 1))
    times = stage_times(cost, application.ours, alone)
    assert times.shape == (2, len(STAGES))
    np.testing.assert_allclose(times[:, [0, 3]], 0.0, atol=1e-9)
    model = cost.model
    size = 700 * model.num_hidden_layers * model.kv_bytes_per_token_per_layer
    assert times[0, 2] == pytest.approx(size / 300e9 + 1e-4)
    assert times[1, 4] == 0.0


@pytest.mark.reference
def test_the_largest_model_spends_its_time_as_published(reference: Path) -> None:
    """Figure 10, OPT-175B at 0.28 req/s per GPU: transfers under 1 %, decode 60 to 80 %."""
    rows = [
        row for row in breakdown_rows(reference / "distserve", "opt-175b") if "0.28" in row.case
    ]
    found = {row.metric: row for row in rows}
    assert found["share of transmission"].verdict == "better"
    assert found["share of decode"].verdict == "within"
    assert found["share of decode queue"].verdict == "within"
    assert sum(row.ours or 0.0 for row in rows) == pytest.approx(100.0)


def test_figure_11_compares_nested_sets() -> None:
    """What vLLM may choose vLLM++ may too; the high search has every pair that fits 16 GPUs."""
    sets = {system: set(shapes_of(system)[1]) for system in ORDER}
    assert sets["vLLM"] < sets["vLLM++"]
    assert len(sets["DistServe-High"]) == 229


@pytest.mark.reference
def test_words_that_match_nothing_are_named(reference: Path) -> None:
    """The user is told which words to drop; lengths that do not exist are named by file."""
    with pytest.raises(SpecError, match="matches no experiment"):
        reproduce_distserve(reference / "distserve", Request(("1",), only="gemma"))
    with pytest.raises(InputError, match="alpaca"):
        read_lengths(reference / "distserve", "alpaca")
