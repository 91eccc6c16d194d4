"""Probes of the fleet search: verdicts, memory files, pools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.cost.steps import EngineShape
from penstock.errors import SpecError
from penstock.evaluate import worker_pool
from penstock.plan.goodput.costs import FleetCosts
from penstock.plan.goodput.fleet import EngineChoice, Fleet, Job
from penstock.plan.goodput.question import Offer, Question, Sweep
from penstock.plan.goodput.search import search_fleets
from penstock.plan.settings import HandoffSettings
from penstock.report.sweep_page import sweep_page
from penstock.sim.disaggregated.probe_memory import ProbeMemory, job_key
from penstock.sim.disaggregated.probes import FleetProbes, ProbeSetting, run_probe
from penstock.spec.arrivals import PoissonArrivals
from penstock.spec.catalogue import catalogue
from penstock.spec.lengths import fixed_lengths
from penstock.spec.load import load_model
from penstock.spec.workload import SLO, Workload

COST = LinearStepCost(
    load_model("llama-3-8b"),
    LinearCoefficients(0.01, 6e-5, 1e-8, DecodeLine(0.01, 8e-8, 2e-4)),
    60_000,
)
GPU = catalogue().get("L40S")
SETTING = ProbeSetting(
    FleetCosts(COST),
    Workload("test", 60.0, lengths=fixed_lengths(400, 100), arrivals=PoissonArrivals(1.0)),
    SLO(ttft_s=0.5, tpot_s=0.05),
    0.9,
    HandoffSettings(25e9),
    least_requests=100,
    least_s=10.0,
)
QUESTION = Question(
    FleetCosts(COST),
    SETTING.slo,
    10.0,
    400,
    100,
    (Offer(GPU),),
    tensor_parallel_sizes=(1,),
    pipeline_parallel_sizes=(1,),
    chunks=(512,),
)
ABOUT = {"model": "llama", "limits": "TTFT 500 ms"}
ONE = Fleet(((EngineChoice(EngineShape(GPU), max_num_batched_tokens=512), 1),))


@pytest.mark.parametrize("rate", [2.0, 8.0, 11.0, 12.0, 13.0, 16.0, 40.0])
@pytest.mark.parametrize("phase", ["both", "prefill", "decode"])
def test_stopping_early_never_changes_the_verdict(rate: float, phase: str) -> None:
    """A run that ends when it is certain agrees with one that runs to its end, as a bound."""
    job = Job(ONE, rate, 1, phase)  # type: ignore[arg-type]
    endless = run_probe(replace(SETTING, attainment=-1.0), job)
    soon = run_probe(SETTING, replace(job, verdict_only=True))
    assert not endless.ended_early
    assert (soon.joint >= 0.9) == (endless.joint >= 0.9)
    if soon.ended_early and soon.joint < 0.9:
        assert soon.joint >= endless.joint
    elif soon.ended_early:
        assert soon.joint <= endless.joint
    assert soon.requests == endless.requests


def test_the_warm_up_is_not_counted() -> None:
    """The first tenth of the requests is sent and left out of every share."""
    probe = run_probe(SETTING, Job(ONE, 5.0))
    assert probe.requests == 90
    assert run_probe(replace(SETTING, warmup_share=0.5), Job(ONE, 5.0)).requests == 50


def search(memory: ProbeMemory | None = None, processes: int = 1) -> tuple[Sweep, int]:
    with worker_pool(processes) as pool:
        submit = None if pool is None else pool.submit
        probes = FleetProbes(SETTING, memory, submit, processes)
        return search_fleets(QUESTION, probes), probes.runs


def test_a_search_goes_on_from_its_file(tmp_path: Path) -> None:
    """A second search reads every probe from the file; a cut-off last line is made again."""
    path = tmp_path / "probes.jsonl"
    first, runs = search(ProbeMemory(path, ABOUT))
    again, more = search(ProbeMemory(path, ABOUT))
    assert (runs > 0, more) == (True, 0)
    assert first.best is not None
    assert first.best.attainment >= 0.9
    assert sweep_page(first) == sweep_page(again)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    cut, made = search(ProbeMemory(path, ABOUT))
    assert made == 1
    assert sweep_page(cut) == sweep_page(first)
    assert path.read_bytes() == whole


def test_the_file_of_another_question_is_refused(tmp_path: Path) -> None:
    """The line names the file, what differs and what to do; other files are not probes."""
    path = tmp_path / "probes.jsonl"
    ProbeMemory(path, ABOUT)
    with pytest.raises(SpecError, match=r"probes.jsonl: --resume: .*limits is TTFT 500 ms, not"):
        ProbeMemory(path, {**ABOUT, "limits": "TTFT 900 ms"})
    path.write_text("not probes\n", encoding="utf-8")
    with pytest.raises(SpecError, match="not a file of probes"):
        ProbeMemory(path, ABOUT)
    path.write_text(json.dumps({"penstock_probes": 99, "about": ABOUT}) + "\n", encoding="utf-8")
    with pytest.raises(SpecError, match="99"):
        ProbeMemory(path, ABOUT)


def test_prices_do_not_change_a_job_but_hardware_does() -> None:
    """A probe is known again at another price, and not on another GPU of the same name."""

    def job(**changes: object) -> Job:
        gpu = replace(GPU, **changes)  # type: ignore[arg-type]
        return Job(Fleet(((EngineChoice(EngineShape(gpu)), 1),)), 5.0)

    assert job_key(job()) == job_key(job(price_per_hour=0.5))
    assert job_key(job()) != job_key(job(memory_bytes=10**9))


def test_processes_do_not_change_the_answer() -> None:
    """Two processes find the same as one, byte for byte."""
    alone, _ = search()
    both, _ = search(processes=2)
    assert sweep_page(alone) == sweep_page(both)
