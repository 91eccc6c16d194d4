"""The command line as a user meets it: real processes, exit codes, one line per mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

VERBS = (
    "init",
    "plan",
    "simulate",
    "compare",
    "sweep",
    "reproduce",
    "export",
    "trace",
    "validate",
    "schema",
    "doctor",
    "demo",
)


def penstock(
    *arguments: str | Path, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "penstock", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def refused(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """Return the one line of a refusal; the exit code is ``code`` and stdout is empty."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("penstock: ")
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of ``penstock init``, a plan and a run."""
    folder = tmp_path_factory.mktemp("fleet")
    assert penstock("init", ".", cwd=folder).returncode == 0
    planned = penstock(
        "plan", "cluster.yaml", "llama2-70b", "-p", "swarm", "--objective", "maxflow",
        "-o", "plan.yaml", cwd=folder,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    simulated = penstock(
        "simulate", "plan.yaml", "workload.yaml", "--duration", "120", "--warmup", "20",
        "-o", "run", cwd=folder,
    )  # fmt: skip
    assert simulated.returncode == 0, simulated.stderr
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_shows_an_example(verb: str, tmp_path: Path) -> None:
    """``--help`` of each verb ends well and shows an example that starts with the verb."""
    result = penstock(verb, "--help", cwd=tmp_path)

    assert result.returncode == 0
    assert f"Example: penstock {verb}" in result.stdout


def test_plan_prints_one_json_document(tmp_path: Path) -> None:
    """``plan --format json`` prints one document with the promised keys and nothing else."""
    result = penstock(
        "plan", "quality10", "llama-30b", "--objective", "maxflow", "--format", "json",
        cwd=tmp_path,
    )  # fmt: skip

    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert {"planner", "objective", "value", "bound", "gap", "seconds", "seed", "engines"} <= set(
        document
    )
    assert document["planner"] == "penstock"
    assert 0 < document["value"] <= document["bound"] * (1 + 1e-9)


def test_simulate_and_compare_print_one_json_document(fleet: Path) -> None:
    """Both verbs print the metrics over all and by class as one document."""
    simulated = penstock(
        "simulate", "plan.yaml", "workload.yaml", "--duration", "60", "--warmup", "10",
        "--format", "json", cwd=fleet,
    )  # fmt: skip
    compared = penstock("compare", "run", "run", "--format", "json", cwd=fleet)

    document = json.loads(simulated.stdout)
    assert document["overall"]["ttft_s"]["p50"] > 0
    assert list(document["classes"]) == ["interactive", "batch"]
    assert document["overall"]["slo_attainment"] is not None
    assert json.loads(compared.stdout)["metrics"]


def test_a_run_exports_to_every_format(fleet: Path, tmp_path: Path) -> None:
    """One run becomes vLLM bench JSON, .exp, a Chrome trace and HTML; a plan becomes inis."""
    for to in ("vllm-bench", "exp", "chrome-trace", "html"):
        result = penstock("export", fleet / "run", "--to", to, "-o", tmp_path / to, cwd=fleet)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / to).stat().st_size > 100
    result = penstock(
        "export", fleet / "plan.yaml", "--to", "helix", "-o", tmp_path / "ini", cwd=fleet
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "ini").glob("*.ini"))) == 2
    assert "http" not in (tmp_path / "html").read_text().replace("http://www.w3.org", "")


def test_a_plan_passes_the_independent_checker(fleet: Path) -> None:
    """``validate`` finds no violation in a plan of ours, and finds one in a plan with a lie."""
    assert penstock("validate", "plan.yaml", cwd=fleet).returncode == 0

    honest = (fleet / "plan.yaml").read_text()
    line = next(row for row in honest.splitlines() if row.startswith("max_flow_tokens_per_s"))
    (fleet / "lie.yaml").write_text(honest.replace(line, "max_flow_tokens_per_s: 123456.0"))
    result = penstock("validate", "lie.yaml", cwd=fleet)

    assert result.returncode == 2
    assert "max flow" in result.stdout


def test_equal_inputs_give_equal_bytes_under_any_hash_seed(fleet: Path, tmp_path: Path) -> None:
    """Plans and runs of one seed are byte-identical in processes with different hash seeds."""
    written: list[dict[str, bytes]] = []
    for hash_seed in ("0", "4242"):
        out = tmp_path / hash_seed
        out.mkdir()
        planned = penstock(
            "plan", fleet / "cluster.yaml", "llama2-70b", "--objective", "maxflow",
            "-o", out / "plan.yaml", cwd=tmp_path, PYTHONHASHSEED=hash_seed,
        )  # fmt: skip
        assert planned.returncode == 0, planned.stderr
        for router in ("maxflow", "swarm", "random", "shortest-queue"):
            simulated = penstock(
                "simulate", out / "plan.yaml", fleet / "workload.yaml", "--router", router,
                "--duration", "60", "--warmup", "10", "-o", out / router,
                cwd=tmp_path, PYTHONHASHSEED=hash_seed,
            )  # fmt: skip
            assert simulated.returncode == 0, simulated.stderr
        written.append(
            {
                str(path.relative_to(out)): path.read_bytes()
                for path in sorted(out.rglob("*"))
                if path.is_file()
            }
        )

    assert len(written[0]) > 20
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plann",), ("plann",)),
        (("plan", "single24", "llama2-70b", "--plannr", "swarm"), ("--plannr",)),
        (("plan", "single42", "llama2-70b"), ("single42", "single24")),
        (("plan", "single24", "llama2-7x"), ("llama2-7x",)),
        (("plan", "single24", "llama2-70b", "-p", "petal"), ("petal", "petals")),
        (("plan", "single24", "llama2-70b", "--objective", "speed"), ("--objective", "maxflow")),
        (("plan", "single24", "llama2-70b", "--time-limit", "-1"), ("--time-limit", "-1")),
        (("plan", "single24", "llama2-70b", "--profiles", "nowhere"), ("nowhere",)),
        (("plan", "single24", "llama2-70b", "-o", "no/such/plan.yaml"), ("no/such", "-o")),
        (("plan", "single24", "llama2-70b", "--objective", "goodput"), ("goodput", "classes")),
        (("simulate", "missing.yaml"), ("missing.yaml",)),
        (("compare", "missing"), ("missing",)),
        (("schema", "clusters"), ("clusters", "cluster")),
        (("trace", "missing.csv"), ("missing.csv",)),
        (("reproduce", "helx"), ("helx", "helix")),
        (("export", "missing", "--to", "pdf", "-o", "x"), ("--to", "pdf")),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    """A wrong word gets one line that names it and the way out; nothing is written."""
    line = refused(penstock(*arguments, cwd=tmp_path))

    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("count: 4 ", "cout: 4 ", ("cluster.yaml", "cout", "count")),
        ("count: 4 ", "count: -4 ", ("cluster.yaml", "count", "-4")),
        ("bandwidth: 1 Gbit/s", "bandwidth: 0 Gbit/s", ("cluster.yaml", "bandwidth")),
        ("bandwidth: 1 Gbit/s", "bandwidth: .nan", ("cluster.yaml", "bandwidth")),
        ("accelerator: L4", "accelerator: L40SS", ("cluster.yaml", "L40SS", "L40S")),
        ("between: [us, eu]", "between: [us, mars]", ("cluster.yaml", "mars")),
        ("- {between: [us, eu], bandwidth: 1 Gbit/s, latency: 45 ms}", "[]", ("t4-0",)),
    ],
)
def test_a_wrong_cluster_file_is_named_with_key_value_and_fix(
    old: str, new: str, words: tuple[str, ...], fleet: Path, tmp_path: Path
) -> None:
    """Unknown keys, bad numbers and disconnected regions name file, key and value."""
    text = (fleet / "cluster.yaml").read_text()
    assert old in text
    (tmp_path / "cluster.yaml").write_text(text.replace(old, new, 1))

    line = refused(penstock("plan", "cluster.yaml", "llama2-70b", cwd=tmp_path))

    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "single24", "llama2-70b", "-o", "there"), ("there", "is a folder")),
        (("simulate", "nothing.yaml", "--html", "there"), ("there", "is a folder")),
        (("simulate", "nothing.yaml", "-o", "there"), ("there", "not a run")),
        (("bench", "azure-conv-online", "--url", "http://127.0.0.1:9", "-o", "there"), ("there",)),
        (("bench", "azure-conv-online", "--url", "http://127.0.0.1:9", "--plan", "p"), ("p:",)),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    """Nothing is planned, read or sent for an answer that would be lost."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")

    line = refused(penstock(*arguments, cwd=tmp_path))

    for word in words:
        assert word in line
    assert (tmp_path / "there" / "notes.txt").read_text() == "mine"


def test_the_plan_is_named_before_a_workload_of_many_models(tmp_path: Path) -> None:
    """A missing file of models or an empty plan is the mistake, not the traffic beside it."""
    entries = (
        "[{name: a, arrivals: {poisson: {rate: 1}}}, {name: b, arrivals: {poisson: {rate: 1}}}]"
    )
    (tmp_path / "w.yaml").write_text(f"lengths: azure-conv\nmodels: {entries}\n")
    (tmp_path / "empty.yaml").write_text("")

    assert "nowhere.yaml" in refused(
        penstock("plan", "single24", "nowhere.yaml", "w.yaml", cwd=tmp_path)
    )
    assert "empty.yaml" in refused(penstock("simulate", "empty.yaml", "w.yaml", cwd=tmp_path))


def test_a_model_that_cannot_fit_says_what_is_short_and_what_would_do(fleet: Path) -> None:
    """Infeasible is exit code 3 with the missing GiB and the cheapest fix."""
    line = refused(penstock("plan", "cluster.yaml", "deepseek-v3", cwd=fleet), code=3)

    assert "GiB" in line
    assert "cheapest fix" in line


@pytest.mark.parametrize("damage", ["run.json", "requests.csv", "token_times_s.npy"])
def test_a_corrupt_run_is_named(damage: str, fleet: Path, tmp_path: Path) -> None:
    """A run folder with a damaged file is refused by the name of the file."""
    (tmp_path / "run").mkdir()
    for path in (fleet / "run").iterdir():
        data = path.read_bytes()
        (tmp_path / "run" / path.name).write_bytes(data[:50] if path.name == damage else data)

    assert damage in refused(penstock("compare", "run", cwd=tmp_path))


def test_an_empty_trace_is_refused(fleet: Path, tmp_path: Path) -> None:
    """A trace without requests is one line, not a run of nothing."""
    (tmp_path / "empty.csv").write_text("arrival_s,prompt_tokens,output_tokens\n")

    line = refused(penstock("simulate", fleet / "plan.yaml", "empty.csv", cwd=tmp_path))

    assert "empty.csv" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """When the output device is full, the command says so and leaves nothing behind."""
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "penstock", "schema", "cluster"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    assert result.returncode == 2
    assert "no space left" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_an_interrupted_search_keeps_the_best_plan(tmp_path: Path) -> None:
    """Ctrl-C during a long search writes the best plan so far and ends well."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "penstock", "plan", "het42", "llama2-70b", "--objective",
            "maxflow", "-o", "plan.yaml",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    time.sleep(12)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert "Traceback" not in errors
    assert process.returncode == 0, errors
    assert penstock("validate", "plan.yaml", cwd=tmp_path).returncode == 0
