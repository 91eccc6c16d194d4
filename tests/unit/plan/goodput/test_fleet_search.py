"""The fleet search: the cheapest that passes, what binds, and what happens when it is stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.fleet import Fleet, Phase, Probe, Question, cheapest_fleet
from penstock.plan.settings import HandoffSettings
from penstock.report.sweep_page import sweep_page
from penstock.sim.disaggregated.probes import FleetProbes
from penstock.spec.arrivals import PoissonArrivals
from penstock.spec.catalogue import catalogue
from penstock.spec.lengths import fixed_lengths
from penstock.spec.load import load_model
from penstock.spec.workload import SLO, Workload

MODEL = load_model("llama-3-8b")
COST = LinearStepCost(
    MODEL, LinearCoefficients(0.01, 6e-5, 1e-8, DecodeLine(0.01, 8e-8, 2e-4)), 60_000
)
DEAR, CHEAP = catalogue().get("H100"), catalogue().get("L40S")


def question(**changes: object) -> Question:
    asked = Question(
        COST,
        SLO(ttft_s=0.5, tpot_s=0.05),
        10.0,
        400,
        100,
        ((DEAR, None), (CHEAP, None)),
        tensor_parallel_sizes=(1,),
        pipeline_parallel_sizes=(1,),
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


def threshold(rates: dict[str, float]):  # type: ignore[no-untyped-def]
    """Probes that pass up to a rate per engine of each accelerator; the phases apart never do."""

    def probe(fleet: Fleet, rate: float, seed: int, phase: Phase) -> Probe:
        limit = sum(rates[c.shape.accelerator.name] * n for c, n in fleet.engines)
        good = phase == "both" and rate <= limit and all(c.role == "both" for c, _ in fleet.engines)
        return Probe(1.0 if good else 0.0, 1.0, 1.0 if good else 0.0, 0.1, 0.02, 100.0)

    return probe


def test_the_cheapest_mixture_wins() -> None:
    """With known capacities the answer equals that of trying all pairs of counts."""
    rates = {DEAR.name: 4.0, CHEAP.name: 0.9}
    found = cheapest_fleet(question(), threshold(rates))
    assert found.best is not None
    assert DEAR.price_per_hour is not None
    assert CHEAP.price_per_hour is not None
    least = min(
        DEAR.price_per_hour * dear + CHEAP.price_per_hour * cheap
        for dear in range(5)
        for cheap in range(15)
        if rates[DEAR.name] * dear + rates[CHEAP.name] * cheap >= 10.0
    )
    assert found.best.fleet.price_per_hour == pytest.approx(least)
    assert found.front[0] is found.best


def test_nothing_feasible_says_what_binds() -> None:
    """A limit under the time of a single step names that limit; so does a lack of GPUs."""
    hasty = question(slo=SLO(ttft_s=0.001))
    with pytest.raises(Infeasible, match="binding: TTFT"):
        cheapest_fleet(hasty, threshold({DEAR.name: 4.0, CHEAP.name: 0.9}))
    single = question(offers=((DEAR, 1),))
    with pytest.raises(Infeasible, match="GPUs"):
        cheapest_fleet(single, threshold({DEAR.name: 4.0}))
    with pytest.raises(SpecError, match="no limit"):
        question(slo=SLO())
    with pytest.raises(SpecError, match="rate"):
        question(rate_per_s=-1.0)


def test_stopping_keeps_what_was_found() -> None:
    """Ctrl-C ends the search with the capacities measured so far."""
    calls = 0

    def probe(fleet: Fleet, rate: float, seed: int, phase: Phase) -> Probe:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return Probe(1.0, 1.0, 1.0, 0.1, 0.02, 100.0)

    found = cheapest_fleet(question(), probe)
    assert found.interrupted
    assert found.capacities
    assert "stopped before" in sweep_page(found)


def test_simulated_probes_resume(tmp_path: Path) -> None:
    """A real search passes its own limits; a second one reads every probe from the file."""
    workload = Workload(
        "test", 60.0, lengths=fixed_lengths(400, 100), arrivals=PoissonArrivals(1.0)
    )
    asked = question(offers=((CHEAP, None),), chunks=(512,))
    memory = tmp_path / "probes.jsonl"

    def search() -> tuple[str, int]:
        probes = FleetProbes(
            COST, workload, asked.slo, 0.9, HandoffSettings(25e9), 100, 10.0, memory=memory
        )
        probes.remember()
        found = cheapest_fleet(asked, probes)
        assert found.best is not None
        assert found.best.attainment >= 0.9
        assert "Cheapest" in sweep_page(found)
        return str(found.best.fleet), probes.runs

    first, runs = search()
    again, more = search()
    assert first == again
    assert runs > 0
    assert more == 0
    memory.write_text("not probes\n", encoding="utf-8")
    with pytest.raises(SpecError, match="file of probes"):
        search()
