"""Penstock's controller: what it prefers, and that it learns what acceptance is."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from penstock.policy.speculation.calibration import AcceptanceCalibration
from penstock.policy.speculation.controller import ControllerSettings, PricedSpeculator, Survival
from penstock.policy.speculation.latency import LatencyTable, StepLatency
from penstock.policy.speculation.selection import select_all
from penstock.policy.speculation.speculator import DecodeView
from penstock.policy.speculation.trees import chain_trees

TABLE = LatencyTable((1.0, 64.0, 1024.0), (0.03, 0.04, 0.2))
LATENCY = StepLatency(0.005, TABLE, 0.001)


def view(leads: list[float], tpot_s: float = 0.036, occupancy: float = 0.2) -> DecodeView:
    """Requests that are ``leads`` tokens ahead of their schedule."""
    n = len(leads)
    tokens = np.full(n, 100)
    limit = tpot_s if tpot_s < inf else 1.0
    return DecodeView(
        (tokens - np.array(leads)) * limit,
        tokens,
        np.full(n, tpot_s),
        np.zeros(n, bool),
        np.zeros(n, np.int64),
        0,
        occupancy,
    )


def test_a_token_matters_more_to_a_request_that_lags() -> None:
    """Weights fall with the lead, towards the floor; in a crowd everyone counts."""
    controller = PricedSpeculator(ControllerSettings(LATENCY))
    weight = controller.weights(view([-20.0, 5.0, 40.0]))
    assert weight[0] > weight[1] > weight[2]
    assert weight[2] == pytest.approx(0.1, abs=0.01)
    assert controller.weights(view([40.0], occupancy=1.0)) == pytest.approx(1.0)
    assert controller.weights(view([40.0], tpot_s=inf)) == pytest.approx(0.1, abs=0.01)


def test_more_requests_mean_shallower_drafts() -> None:
    """Each pass must pay for the time it takes from everybody."""
    few = PricedSpeculator(ControllerSettings(LATENCY)).plan(view([0.0] * 4))
    many = PricedSpeculator(ControllerSettings(LATENCY)).plan(view([0.0] * 400))
    assert few.depth > many.depth
    assert few.width == 3
    assert many.width == 1


def test_a_request_far_ahead_sits_out_a_busy_step() -> None:
    """It takes part where it may not skip, and where nobody lags."""
    busy = view([100.0] + [-5.0] * 80)
    plan = PricedSpeculator(ControllerSettings(LATENCY, floor=0.01)).plan(busy)
    assert plan.joins is not None
    assert plan.joins.tolist() == [False] + [True] * 80
    stays = PricedSpeculator(ControllerSettings(LATENCY, floor=0.01, skip=False))
    assert stays.plan(busy).joins is None
    alone = PricedSpeculator(ControllerSettings(LATENCY, floor=0.01)).plan(view([100.0]))
    assert alone.joins is not None
    assert alone.joins.all()


def test_nodes_are_bought_while_they_are_worth_their_time() -> None:
    """An unlikely node is left out, a likely one taken, the lagging request comes first."""
    controller = PricedSpeculator(ControllerSettings(LATENCY, calibrate=False, skip=False))
    requests = view([-10.0, 60.0])
    controller.plan(requests)
    trees = chain_trees(np.log([[0.9, 1e-4], [0.9, 1e-4]]), np.zeros((2, 2), np.int64))
    selection = controller.choose(requests, trees)
    assert selection.selected[0].tolist() == [True, False]
    assert selection.gain[0] == pytest.approx(1.9)
    assert not selection.selected[1, 1]


def learn(calibration: AcceptanceCalibration, said: float, true: float, steps: int) -> None:
    """Show outcomes of single drafts that claim ``said`` and hold with ``true``."""
    rng = np.random.default_rng(5)
    n = 20
    kind = np.zeros(n, np.int64)
    trees = chain_trees(np.log(np.full((n, 1), said)), np.zeros((n, 1), np.int64))
    for _ in range(steps):
        path = np.where(rng.random((n, 1)) < true, 0, -1)
        calibration.observe(trees, select_all(trees), path, kind)


def test_an_overconfident_draft_is_corrected_from_outcomes() -> None:
    """A draft that says 0.85 and holds with 0.6 is believed 0.6; a calibrated one is kept."""
    calibration = AcceptanceCalibration()
    trees = chain_trees(np.log([[0.85, 0.85]]), np.zeros((1, 2), np.int64))
    kind = np.zeros(1, np.int64)
    assert calibration.apply(trees, kind).path_probability == pytest.approx(
        trees.path_probability, rel=1e-6
    )
    learn(calibration, 0.85, 0.6, 300)
    believed = calibration.apply(trees, kind).path_probability
    assert believed == pytest.approx(np.array([[0.6, 0.36]]), abs=0.06)
    honest = AcceptanceCalibration()
    learn(honest, 0.85, 0.85, 300)
    assert honest.apply(trees, kind).path_probability[0, 0] == pytest.approx(0.85, abs=0.02)


def test_layers_that_were_not_drafted_follow_the_last_ratio() -> None:
    """Survival of a class is learned to the drafted depth and extended beyond."""
    survival = Survival(4)
    kind = np.zeros(50, np.int64)
    trees = chain_trees(np.log(np.full((50, 2), 0.5)), np.zeros((50, 2), np.int64))
    for _ in range(20):
        survival.observe(trees, kind)
    assert survival.of(kind[:1])[0] == pytest.approx([0.5, 0.25, 0.125, 0.0625], abs=0.01)


def test_one_layer_is_probed_after_plain_steps() -> None:
    """Drafts that cost a step each never pay, yet every fourth plain step tries one."""
    dear = StepLatency(1.0, TABLE)
    controller = PricedSpeculator(ControllerSettings(dear, probe_steps=4))
    requests = view([0.0])
    assert [controller.plan(requests).depth for _ in range(8)] == [0, 0, 0, 1, 0, 0, 0, 1]
    trees = chain_trees(np.log([[0.3]]), np.zeros((1, 1), np.int64))
    assert controller.choose(requests, trees).selected.all()
