"""MaverIQ's published figures: estimator, traces, deployments, serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import InputError
from penstock.experiments.maveriq.data import model_set
from penstock.experiments.maveriq.deployments import replays
from penstock.experiments.maveriq.estimators import our_rows, published_rows
from penstock.experiments.maveriq.figures import maveriq_plots
from penstock.experiments.maveriq.profiles import profile_rows
from penstock.experiments.maveriq.reproduce import reproduce_maveriq
from penstock.experiments.maveriq.serving import read_logs, run_rows, trace_ids
from penstock.experiments.maveriq.traces import trace_rows
from penstock.experiments.system import Request

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def maveriq(reference: Path) -> Path:
    return reference / "maveriq"


def test_the_estimator_is_theirs(maveriq: Path) -> None:
    """Every estimate and every error of the published table."""
    rows = published_rows(maveriq)
    assert {row.verdict for row in rows} == {"within"}
    assert len(rows) > 90


def test_ours_halves_the_error_of_models_it_never_saw(maveriq: Path) -> None:
    """Each model held out in turn: TP 4, TP 8 and every batch from 8 on, latency and memory."""
    every = [row for row in our_rows(maveriq) if row.tolerance]
    halved = [row for row in every if "model held out" in row.case]
    assert len(halved) == 12
    assert {row.verdict for row in halved} == {"better"}
    assert {row.verdict for row in every if row.experiment == "fig15"} == {"within", "better"}


def test_traces_are_exact(maveriq: Path) -> None:
    """Every event of the 13 distinct traces, to the microsecond."""
    rows = trace_rows(maveriq)
    assert len(rows) == 13
    assert all(row.ours == row.published for row in rows)


def test_profile_figures(maveriq: Path) -> None:
    """Ranges, savings and overheads as printed."""
    assert {row.verdict for row in profile_rows(maveriq)} == {"within"}


def test_deployments_agree_but_where_memory_was_nearly_gone(maveriq: Path) -> None:
    """All of the runs with room; at most ten of 200 differ in the others."""
    found = replays(maveriq)
    every = [one for run in found.values() for one in run]
    assert len(every) == 200
    assert sum(one.same for one in every) >= 190
    for key, run in found.items():
        if key.system == "MaverIQ" and key.model_set != "twentyone":
            assert all(one.same for one in run)


def test_a_serving_run_agrees(maveriq: Path) -> None:
    """Large set, conversation, 0.2, min_cost: median, rate, completed and attainment."""
    logs = read_logs(maveriq)
    key = next(
        key
        for key in logs.summary
        if (key.intent, key.trace, key.scale, key.slo_factor)
        == ("min_cost", "conversation", 0.2, 5.0)
    )
    assert {row.verdict for row in run_rows(maveriq, logs, key)} == {"within"}


def test_replicas_share_a_model(maveriq: Path) -> None:
    """AlpaServe's ids 3 and 4 are one model of the trace; its id 5 is the fourth."""
    logs = read_logs(maveriq)
    key = next(k for k in logs.deployments if k.system == "AlpaServe" and k.scale == 0.1)
    ids = trace_ids(model_set(maveriq, "large"), logs.deployments[key])
    assert ids == {2: 1, 3: 2, 4: 2, 5: 3}


def test_the_verb_gives_rows_and_figures(maveriq: Path) -> None:
    """Sections run together, and the serving curves are drawn."""
    table = reproduce_maveriq(maveriq, Request(("traces", "serving")))
    assert not [row for row in table.rows if row.verdict == "failed"]
    names = {plot.name for plot in maveriq_plots(table.rows)}
    assert "serving large conversation median latency" in names
    assert all(plot.to_svg().startswith("<svg") for plot in table.plots)


def test_a_folder_without_traces_is_named(tmp_path: Path) -> None:
    """One line says what is missing."""
    with pytest.raises(InputError, match="holds no trace"):
        trace_rows(tmp_path)
