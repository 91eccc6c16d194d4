"""``penstock bench`` from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.profile.profiling import known_plan
from tests.unit.serve.gateway.talking import Scripted, run_server

from penstock.cli.main import execute
from penstock.measure.store import read_run
from penstock.plan.document import write_plan
from penstock.serve.gateway import GatewaySettings, make_app
from penstock.serve.null import NullSettings

WORKLOAD = """
duration: 0.4 s
seed: 1
arrivals: {poisson: {rate: 40}}
lengths: {prompt: 12, output: 4}
classes: [{name: chat, ttft: 10 s}]
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    generator = Scripted(settings=NullSettings(first_token_s=0.01, token_s=0.002))
    with run_server(make_app(generator, GatewaySettings(log_requests=False))) as found:
        yield found


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "w.yaml"
    path.write_text(WORKLOAD)
    return path


def test_a_bench_prints_and_writes_what_it_measured(
    address: str, workload: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of simulate, the run folder and the files of others."""
    out, vllm, exp = tmp_path / "run", tmp_path / "v.json", tmp_path / "e.exp"
    files = ["-o", str(out), "--vllm-json", str(vllm), "--exp", str(exp)]
    assert execute(["bench", str(workload), "--url", address, *files]) == 0
    assert "TTFT" in capsys.readouterr().out
    run = read_run(out)
    assert run.header["kind"] == "measured"
    document = json.loads(vllm.read_text())
    assert document["completed"] == len(run.requests.id) == len(json.loads(exp.read_text()))
    assert document["request_rate"] == 40


def test_the_prediction_of_a_plan_stands_beside_the_measurement(
    address: str, workload: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --plan and --profile the same requests are simulated and compared at once."""
    (tmp_path / "model").mkdir()
    plan = known_plan(tmp_path / "model")
    write_plan(plan, tmp_path / "plan.yaml")
    (tmp_path / "p.yaml").write_text(
        f"model: {plan.model.name}\naccelerator: CPU\nsource: by hand\n"
        "decode:\n  - {seqs: 1, context_tokens: 0, seconds: 2 ms}\n"
        "prefill:\n  - {tokens: 12, seconds: 10 ms}\n"
    )
    more = ["--plan", str(tmp_path / "plan.yaml"), "--profile", str(tmp_path / "p.yaml")]
    command = ["bench", str(workload), "--url", address, *more]
    assert execute([*command, "--format", "json"]) == 0
    verdicts = json.loads(capsys.readouterr().out)["simulated_against_measured"]
    goals = {entry["metric"]: entry["tolerance"] for entry in verdicts if entry["goal"]}
    assert goals["ttft_mean_s"] == 0.15
    assert goals["tpot_mean_s"] == 0.07
    assert execute(command) == 0
    assert "The prediction" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--url", "http://127.0.0.1:9"], "is the server up?"),
        (["--model", "other"], "use --model null"),
        (["--num-requests", "0"], "--num-requests"),
        (["--max-concurrency", "0"], "--max-concurrency"),
        (["--rate", "-1"], "--rate"),
        (["--profile", "p.yaml"], "--plan"),
        (["-o", "/no/such/folder/run"], "does not exist"),
    ],
)
def test_mistakes_are_one_line(
    address: str,
    workload: Path,
    more: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each exits with 2 and says what to do."""
    assert execute(["bench", str(workload), "--url", address, *more]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert problem in said[0]
