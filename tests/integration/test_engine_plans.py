"""Plans of whole engines on the command line: planned, checked, simulated, compared, refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CLUSTER = """
name: box
nodes:
  - {name: box, accelerator: H100, count: 1, accelerators_per_node: 4, nic: 50 GB/s}
network:
  in_region: {bandwidth: 50 GB/s, latency: 10 us}
"""
WORKLOAD = """
name: chat
duration: 60 s
lengths: azure-conv
arrivals:
  poisson: {rate: 8 /s}
classes:
  - {name: chat, ttft: 500 ms, tpot: 30 ms}
"""


def penstock(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def refused(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line of a refusal."""
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster, a workload and the plan of two planners."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "cluster.yaml").write_text(CLUSTER)
    (folder / "chat.yaml").write_text(WORKLOAD)
    for planner in ("goodput", "distserve-high"):
        result = penstock(
            "plan", "cluster.yaml", "llama-3-8b", "-w", "chat.yaml", "-p", planner,
            "-o", f"{planner}.yaml", cwd=folder,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    return folder


def changed(folder: Path, name: str, **engine: object) -> Path:
    """The plan of ``goodput`` with keys of its engines replaced."""
    document = yaml.safe_load((folder / "goodput.yaml").read_text())
    for row in document["engines"]:
        row.update(engine)
    path = folder / name
    path.write_text(yaml.safe_dump(document))
    return path


def test_planned_engines_hold_and_keep_their_promise(folder: Path) -> None:
    """A plan passes the checker, and its own rate meets the limits when it is simulated."""
    for planner in ("goodput", "distserve-high"):
        result = penstock("validate", f"{planner}.yaml", cwd=folder)
        assert result.returncode == 0, result.stdout
        plan = yaml.safe_load((folder / f"{planner}.yaml").read_text())
        assert plan["objective"] == "goodput"
        assert plan["bound"] is None
        run = penstock(
            "simulate", f"{planner}.yaml", "chat.yaml", "--rate", 0.9 * plan["value"],
            "--format", "json", "-o", planner, cwd=folder,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["overall"]["slo_attainment"] > 0.85
    goodput = yaml.safe_load((folder / "goodput.yaml").read_text())
    other = yaml.safe_load((folder / "distserve-high.yaml").read_text())
    assert goodput["value"] >= 0.9 * other["value"]


def test_runs_compare_report_and_repeat(folder: Path) -> None:
    """The same inputs give the same bytes with and without skipped steps; pages are written."""
    arguments = ("simulate", "distserve-high.yaml", "chat.yaml", "--seed", "3")
    for name, more in (("one", ()), ("two", ()), ("steps", ("--step-by-step",))):
        result = penstock(
            *arguments, *more, "-o", name, "--html", f"{name}.html", "--chrome-trace",
            f"{name}.json", cwd=folder,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    files = sorted(path.name for path in (folder / "one").iterdir())
    for name in files:
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()
    assert "decode-" in (folder / "one.html").read_text()
    compared = penstock("compare", "one", "steps", "--format", "json", cwd=folder)
    assert compared.returncode == 0, compared.stderr


def test_faults_and_other_routers_run(folder: Path) -> None:
    """A node fails and comes back, closed loops drive roles, and routers are chosen by name."""
    plan = yaml.safe_load((folder / "distserve-high.yaml").read_text())
    node = plan["engines"][0]["stages"][0][0]
    (folder / "faults.yaml").write_text(
        f"faults:\n  - {{at: 10 s, node: {node}, kind: fail}}\n"
        f"  - {{at: 20 s, node: {node}, kind: recover}}\n"
    )
    result = penstock(
        "simulate", "distserve-high.yaml", "chat.yaml", "--faults", "faults.yaml", "--router",
        "round-robin", "--format", "json", cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    overall = json.loads(result.stdout)["overall"]
    assert overall["rejected"] == 0
    closed = penstock(
        "simulate", "distserve-high.yaml", "chat.yaml", "--max-concurrency", "4", cwd=folder
    )
    assert closed.returncode == 0, closed.stderr


def test_what_cannot_work_is_one_line(folder: Path) -> None:
    """Files, keys and values are named; the exit code says whose mistake it is."""
    bad = changed(folder, "bad.yaml", scheduler={"name": "vlm"})
    for verb in ("simulate", "validate"):
        line = refused(penstock(verb, bad.name, cwd=folder))
        assert "bad.yaml: engines." in line
        assert "'vlm'" in line
        assert "vllm" in line
    small = changed(folder, "small.yaml", kv_capacity_layer_tokens=100)
    line = refused(penstock("simulate", small.name, cwd=folder))
    assert "small.yaml" in line
    assert "at least one KV block" in line
    line = refused(penstock("simulate", "goodput.yaml", "--router", "maxflow", cwd=folder))
    assert "least-outstanding" in line
    line = refused(
        penstock("plan", "cluster.yaml", "llama-3.1-405b", "-p", "goodput", cwd=folder), 3
    )
    assert "does not fit" in line
    line = refused(penstock("plan", "single24", "llama-3-8b", "-p", "distserve-low", cwd=folder))
    assert "equal machines" in line


def test_requests_that_no_engine_can_hold_are_rejected_and_counted(folder: Path) -> None:
    """KV memory of 320 tokens an engine takes short requests only."""
    plan = changed(folder, "tight.yaml", kv_capacity_layer_tokens=320 * 32)
    result = penstock("simulate", plan.name, "chat.yaml", "--format", "json", cwd=folder)
    assert result.returncode == 0, result.stderr
    overall = json.loads(result.stdout)["overall"]
    assert overall["rejected"] > 0
    assert overall["finished"] > 0
