"""``penstock sweep`` and the reproductions of DistServe and SDS, as a user meets them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock import api
from penstock.cli.main import execute
from penstock.measure.metrics import summarise
from penstock.spec.load import load_workload
from penstock.spec.workload import SLO, SLOClass
from penstock.spec.workloads import with_rate

SMALL = ["sweep", "llama-3-8b", "--rate", "4", "--gpu", "L40S", "--tp", "1", "--pp", "1"]
LIMITS = ["--ttft", "1 s", "--tpot", "80 ms", "--seeds", "1", "--chunk", "2048"]
DRAFT = ["--speculate", "--draft-model", "llama-3.2-1b"]
RATE = ["--acceptance", "0.7"]
ALONE = ["--processes", "1", "--format", "json"]


def test_the_cheapest_fleet_is_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command gives a JSON answer and a page that needs nothing else."""
    page = tmp_path / "fleet.html"
    assert execute([*SMALL, *LIMITS, "--html", str(page), "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["best"]["passed"]
    assert answer["best"]["gpus"]["L40S"] >= 1
    text = page.read_text(encoding="utf-8")
    assert "Cheapest" in text
    assert "What was not searched" in text
    assert text.count("<svg") == 2
    assert 'src="http' not in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([*SMALL, "--ttft", "1 ms"], 3, "binding: TTFT"),
        ([*SMALL, "--ttft", "soon"], 2, "soon"),
        ([*SMALL, *LIMITS, "--scheduler", "vlm"], 2, "unknown scheduler"),
        ([*SMALL, *LIMITS, "--attainment", "90"], 2, "between 0 and 1"),
        ([*SMALL, *LIMITS, "--gpu", "H100:none"], 2, "NAME:COUNT"),
        ([*SMALL, *LIMITS, "--gpu", "H100:0"], 2, "NAME:COUNT"),
        ([*SMALL, *LIMITS, "--gpu", "H100@free"], 2, "--gpu"),
        ([*SMALL, *LIMITS, "--gpu", "H200X"], 2, "did you mean"),
        ([*SMALL, *LIMITS, "--gpu", "L40S:4"], 2, "offered twice"),
        ([*SMALL, *LIMITS, "--price", "L40S"], 2, "NAME=PRICE"),
        ([*SMALL, *LIMITS, "--price", "H100=2"], 2, "not on offer"),
        ([*SMALL, *LIMITS, "--weights", "fp9"], 2, "--weights"),
        ([*SMALL, *LIMITS, "--speculate"], 2, "--draft-model"),
        ([*SMALL, *LIMITS, "--draft-model", "llama-3.2-1b"], 2, "add --speculate"),
        ([*SMALL, *LIMITS, *DRAFT, "--acceptance", "1.5"], 2, "between 0 and 1"),
        ([*SMALL, *LIMITS, *DRAFT, "--acceptance", "missing.yaml"], 2, "missing.yaml"),
        ([*SMALL, *LIMITS, "--speculate", "--draft-model", "opt-125m", *RATE], 2, "vocabulary"),
        ([*SMALL, *LIMITS, "--goal", "best"], 2, "cheapest or goodput"),
        ([*SMALL, *LIMITS, "--goal", "goodput"], 2, "--rate"),
        (["sweep", "llama-3-8b", "--gpu", "L40S", *LIMITS], 2, "--rate"),
        (["sweep", "llama-3-8b", "--gpu", "L40S", "--goal", "goodput", *LIMITS], 2, "no count"),
        (["sweep", "llama-3-8b", "--rate", "1", *LIMITS], 2, "no GPU"),
        ([*SMALL, *LIMITS, "--processes", "0"], 2, "--processes"),
        ([*SMALL, *LIMITS, "--ray", "127.0.0.1:1"], 2, "no Ray cluster answers"),
        ([*SMALL, *LIMITS, "--ray", "nowhere"], 2, "HOST:PORT"),
        (["sweep", "llama-3.1-70b", *SMALL[2:], *LIMITS], 3, "cheapest fix: 4 x L40S"),
        ([*SMALL, *LIMITS, "--tp", "0"], 2, "at least 1"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every mistake is one line with its exit code; impossibility names the limit."""
    assert execute(arguments) == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert words in errors[0]


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert execute([*arguments, *ALONE]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_prices_are_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    """A price at --gpu and one at --price say the same, and the winner follows them."""
    at = [*SMALL[:4], "--gpu", "L40S@0.5", *SMALL[6:], *LIMITS]
    best = answer(at, capsys)["best"]
    assert best["price_per_hour"] == pytest.approx(0.5 * best["gpus"]["L40S"])
    by_flag = answer([*SMALL, *LIMITS, "--price", "L40S=0.5"], capsys)["best"]
    assert by_flag == best


def test_a_cluster_is_an_offer(capsys: pytest.CaptureFixture[str]) -> None:
    """Counts come from the cluster's nodes, and no engine is wider than a node."""
    arguments = ["sweep", "llama-3-8b", "--rate", "1", "--cluster", "single24-a100", *LIMITS]
    found = answer(arguments, capsys)
    assert found["best"]["passed"]
    assert all(" TP1" in entry["engine"] for entry in found["engines"])


def test_the_most_of_some_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    """Four GPUs sustain more than two, at the same limits."""
    arguments = ["sweep", "llama-3-8b", "--goal", "goodput", "--tp", "1", "--pp", "1", *LIMITS]
    two = answer([*arguments, "--gpu", "L40S:2"], capsys)["best"]
    four = answer([*arguments, "--gpu", "L40S:4"], capsys)["best"]
    assert two["passed"]
    assert four["passed"]
    assert 1.5 < four["rate_per_s"] / two["rate_per_s"] < 2.6


def test_narrow_weights_and_drafts_are_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are dimensions; a curve from a file is one more form of acceptance."""
    curve = tmp_path / "curve.yaml"
    curve.write_text("acceptance: [0.8, 0.6, 0.45]\n", encoding="utf-8")
    more = ["--weights", "bf16", "--weights", "fp8", *DRAFT, "--acceptance", str(curve)]
    found = answer([*SMALL, *LIMITS, *more], capsys)
    names = [entry["engine"] for entry in found["engines"] if entry["rate_per_s"]]
    for part in ("bf16", "fp8", "speculating chain 4", "speculating by load"):
        assert any(part in name for name in names)
    rates = {entry["engine"]: entry["rate_per_s"] for entry in found["engines"]}
    plain = "L40S TP1 {} vllm chunk 2048"
    assert rates[plain.format("fp8")] > rates[plain.format("bf16")]
    assert any("accuracy" in line for line in found["not_searched"])


def test_a_search_of_another_question_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same file serves another rate and price; other limits are refused in one line."""
    file = tmp_path / "probes.jsonl"
    resume = ["--resume", str(file)]
    first = answer([*SMALL, *LIMITS, *resume], capsys)
    assert answer([*SMALL, *LIMITS, *resume, "--price", "L40S=9"], capsys)["best"]["passed"]
    assert answer([*SMALL, *LIMITS, *resume], capsys) == first
    assert execute([*SMALL, "--ttft", "2 s", *resume]) == 2
    line = capsys.readouterr().err.strip()
    assert "probes.jsonl" in line
    assert "limits" in line


@pytest.mark.parametrize(
    "shapes", [["--no-disaggregated"], ["--chunk", "512"], [*DRAFT, *RATE, "--tpot", "25 ms"]]
)
def test_the_plan_of_the_winner_keeps_its_promise(
    shapes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulated on its own, the plan attains what the search claimed, within its interval."""
    plan = tmp_path / "plan.yaml"
    found = answer([*SMALL, *LIMITS, *shapes, "--plan", str(plan)], capsys)["best"]
    limits = SLO(1.0, 0.025 if DRAFT[0] in shapes else 0.08)
    traffic = with_rate(load_workload("azure-conv-online"), found["rate_per_s"])
    traffic = replace(traffic, classes=(SLOClass("all", limits),))
    run = api.simulate(plan, traffic, duration_s=200.0, warmup_s=20.0)
    overall = summarise(run, classes=traffic.classes).overall
    assert overall.slo_attainment is not None
    assert found["attainment_low"] - 0.03 < overall.slo_attainment
    assert overall.slo_attainment < found["attainment_high"] + 0.03


@pytest.mark.slow
def test_ray_gives_the_same_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """Probes as tasks of an embedded Ray find what one process finds."""
    pytest.importorskip("ray")
    here = answer([*SMALL, *LIMITS], capsys)
    assert execute([*SMALL, *LIMITS, "--ray", "local", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == here


def test_the_criterion_of_vidur_asks_only_for_early_scheduling(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """99 % are scheduled within 5 s; latency limits beside it are refused."""
    assert execute([*SMALL, "--vidur-criterion", "--seeds", "1", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["best"]["attainment"] >= 0.99
    assert execute([*SMALL, *LIMITS, "--vidur-criterion"]) == 2


@pytest.mark.reference
def test_distserve_and_sds_are_reproduced(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both reproductions run from the command line and nothing differs."""
    where = ["--reference", str(reference), "--processes", "1", "--format", "json"]
    for system, section in (("distserve", "search"), ("sds", "policy")):
        out = tmp_path / system
        assert execute(["reproduce", system, section, *where, "-o", str(out)]) == 0
        rows = json.loads(capsys.readouterr().out)
        timed = [row for row in rows if row["metric"] != "CPU time"]
        assert {row["verdict"] for row in timed} <= {"within", "better", "information"}
        assert (out / "rows.csv").exists()
