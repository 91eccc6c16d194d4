"""Run folders."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tests.unit.measure.runs import busy_run, runs

from penstock.errors import SpecError, StorageError
from penstock.measure import store
from penstock.measure.run import Run
from penstock.measure.store import read_run, write_run


def _assert_equal(a: object, b: object) -> None:
    if isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    elif hasattr(a, "__dataclass_fields__"):
        for name in a.__dataclass_fields__:
            _assert_equal(getattr(a, name), getattr(b, name))
    else:
        assert a == b


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(run=runs())
def test_any_run_reads_back_as_written(run: Run, tmp_path: Path) -> None:
    """Writing and reading gives the same run, to the bit."""
    write_run(run, tmp_path / "run")

    _assert_equal(run, read_run(tmp_path / "run"))


def test_nodes_links_and_series_read_back(tmp_path: Path) -> None:
    """Optional parts survive the folder."""
    run = busy_run()
    write_run(run, tmp_path / "run")

    _assert_equal(run, read_run(tmp_path / "run"))


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    """The folder depends on the run alone, also under another hash seed."""
    write_run(busy_run(), tmp_path / "a")
    code = (
        "from pathlib import Path; from tests.unit.measure.runs import busy_run;"
        "from penstock.measure.store import write_run;"
        f"write_run(busy_run(), Path({str(tmp_path / 'b')!r}))"
    )
    root = Path(__file__).parents[3]
    env = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=env)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())

    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_new_run_replaces_the_old_one(tmp_path: Path) -> None:
    """A second write leaves only the second run."""
    write_run(busy_run(), tmp_path / "run")
    write_run(busy_run("other", requests=3), tmp_path / "run")

    assert read_run(tmp_path / "run").name == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    """Files that are not a run are never removed."""
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(SpecError, match="not a run"):
        write_run(busy_run(), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    """A full disk or Ctrl-C keeps the old run and leaves no half-written folder."""
    write_run(busy_run("old"), tmp_path / "run")

    def refuse(*_: object) -> None:
        raise fault

    monkeypatch.setattr(store, "write_csv", refuse)
    expected = StorageError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_run(busy_run("new"), tmp_path / "run")

    assert read_run(tmp_path / "run").name == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def _set(folder: Path, key: str, value: object) -> None:
    document = json.loads((folder / "run.json").read_text())
    document[key] = value
    (folder / "run.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "mention"),
    [
        (lambda f: (f / "run.json").unlink(), "run.json is missing"),
        (lambda f: (f / "run.json").write_text("{"), "run.json"),
        (lambda f: (f / "run.json").write_text("[]"), "schema"),
        (lambda f: (f / "run.json").write_bytes(b"\xff\xfe"), "run.json"),
        (lambda f: _set(f, "schema", "penstock.run/99"), "schema"),
        (lambda f: _set(f, "window_s", [5, 5]), "window_s"),
        (lambda f: _set(f, "window_s", [0, None]), "window_s"),
        (lambda f: _set(f, "header", []), "header"),
        (lambda f: _set(f, "requests", 3), "rows instead of 3"),
        (lambda f: _set(f, "node_series", {"names": []}), "node_series"),
        (lambda f: (f / "requests.csv").unlink(), "requests.csv"),
        (lambda f: (f / "requests.csv").write_text("a,b\n1,2\n"), "first line"),
        (lambda f: _edit(f / "requests.csv", "finished", "done"), "status"),
        (lambda f: _edit(f / "requests.csv", "\n0,", "\nzero,"), "id"),
        (lambda f: (f / "token_times_s.npy").write_bytes(b"\x93NUMPY"), "token_times_s.npy"),
        (lambda f: np.save(f / "token_offsets.npy", np.array([0, 9])), "token_offsets.npy"),
        (lambda f: np.save(f / "series_busy.npy", np.zeros((2, 1))), "series_busy.npy"),
        (lambda f: _edit(f / "nodes.csv", ",", ";"), "nodes.csv"),
    ],
)
def test_a_corrupt_folder_is_one_line(tmp_path: Path, damage: object, mention: str) -> None:
    """Damage is reported in one line that names the file and says what to do."""
    write_run(busy_run(), tmp_path / "run")
    damage(tmp_path / "run")  # type: ignore[operator]

    with pytest.raises(SpecError) as caught:
        read_run(tmp_path / "run")
    assert mention in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


def _edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


def _of_two_models() -> Run:
    run = busy_run(requests=6)
    table = replace(run.requests, model_index=np.array([0, 1, 1, 0, 1, 0], np.int16))
    return replace(run, requests=table, model_names=("chat", "code"))


def test_the_model_of_each_request_reads_back(tmp_path: Path) -> None:
    """A run of several models has one more column; a run of one has none."""
    write_run(_of_two_models(), tmp_path / "two")
    again = read_run(tmp_path / "two")
    assert again.model_names == ("chat", "code")
    assert again.requests.model_index is not None
    assert again.requests.model_index.tolist() == [0, 1, 1, 0, 1, 0]
    write_run(busy_run(requests=6), tmp_path / "one")
    assert "model" not in (tmp_path / "one" / "requests.csv").read_text()
    assert "model_names" not in (tmp_path / "one" / "run.json").read_text()
    assert read_run(tmp_path / "one").requests.model_index is None


def test_a_model_that_is_not_named_is_one_line(tmp_path: Path) -> None:
    """A column that points beyond the names is refused with its file and key."""
    write_run(_of_two_models(), tmp_path / "run")
    _set(tmp_path / "run", "model_names", ["chat"])
    with pytest.raises(SpecError, match=r"requests\.csv: model_index: there are 1 models"):
        read_run(tmp_path / "run")
