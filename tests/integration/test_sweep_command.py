"""``penstock sweep`` and the reproductions of DistServe and SDS, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.cli.main import execute

SMALL = ["sweep", "llama-3-8b", "--rate", "4", "--gpu", "L40S", "--tp", "1", "--pp", "1"]
LIMITS = ["--ttft", "1 s", "--tpot", "80 ms", "--seeds", "1", "--chunk", "2048"]


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
    assert "not searched" in text
    assert 'src="http' not in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([*SMALL, "--ttft", "1 ms"], 3, "binding: TTFT"),
        ([*SMALL, "--ttft", "soon"], 2, "soon"),
        ([*SMALL, *LIMITS, "--scheduler", "vlm"], 2, "unknown scheduler"),
        ([*SMALL, *LIMITS, "--attainment", "90"], 2, "between 0 and 1"),
        ([*SMALL, *LIMITS, "--gpu", "L40S:none"], 2, "NAME:COUNT"),
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
