"""``penstock reproduce`` as a user and a program meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.cli.main import execute
from penstock.experiments.rows import COLUMNS


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = execute(["reproduce", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["helx"], "did you mean 'helix'"),
        (["nonsense"], "known: "),
        (["helix", "--processes", "0"], "--processes"),
        (["helix", "--reference", "/nowhere"], "/nowhere/helix"),
    ],
)
def test_a_wrong_request_is_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    """Unknown systems, absent data and bad flags end with exit code 2 and one line."""
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.reference
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["6.33"], "did you mean '6.3'"),
        (["5.1"], "no such section"),
        (["6.3", "--granularity", "fine"], "layerwise"),
        (["6.3", "--only", "zebra"], "matches no experiment"),
    ],
)
def test_a_wrong_choice_is_one_line(
    capsys: pytest.CaptureFixture[str], reference: Path, argv: list[str], message: str
) -> None:
    """A section or a word that matches nothing is named before anything runs."""
    code, out, err = run(capsys, "helix", "--reference", str(reference), *argv)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.reference
def test_the_max_flows_are_printed_as_rows(
    capsys: pytest.CaptureFixture[str], reference: Path, tmp_path: Path
) -> None:
    """JSON on stdout is one list of rows and nothing else; the folder holds the same rows."""
    folder = tmp_path / "out"
    argv = ["helix", "max-flow", "--only", "single_cluster", "--format", "json"]
    code, out, err = run(
        capsys, *argv, "--processes", "1", "--reference", str(reference), "-o", str(folder)
    )
    assert code == 0, err
    rows = json.loads(out)
    assert len(rows) == 14
    assert all(tuple(row)[: len(COLUMNS) - 1] == COLUMNS[:-1] for row in rows)
    assert {row["verdict"] for row in rows} == {"within"}
    assert json.loads((folder / "rows.json").read_text()) == rows
    assert (folder / "rows.csv").read_text().count("\n") == 15


@pytest.mark.reference
def test_all_stored_placements_have_the_published_max_flow(
    capsys: pytest.CaptureFixture[str], reference: Path
) -> None:
    """Every stored placement is within 0.01 tokens/s of ``expected/max_flow.csv``."""
    argv = ["helix", "max-flow", "--format", "json", "--processes", "1"]
    code, out, err = run(capsys, *argv, "--reference", str(reference))
    assert code == 0, err
    rows = json.loads(out)
    assert len(rows) == 54
    assert {row["verdict"] for row in rows} == {"within"}


@pytest.mark.reference
def test_the_table_names_each_case_and_counts_the_verdicts(
    capsys: pytest.CaptureFixture[str], reference: Path
) -> None:
    """A reader finds published and ours side by side, and the sum at the end."""
    argv = ["helix", "max-flow", "--only", "high_heterogeneity swarm", "--processes", "1"]
    code, out, err = run(capsys, *argv, "--reference", str(reference))
    assert code == 0, err
    assert "4,892.24" in out
    assert out.rstrip().endswith("1 within")
    assert err == ""
