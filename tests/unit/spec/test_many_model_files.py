"""Workloads of several models: what their files mean, round trips, traces, mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.spec.load import load_workload
from penstock.spec.minute_bins import bin_trace
from penstock.spec.popularity import popularity_rates
from penstock.spec.traces import open_trace, write_trace
from penstock.spec.workload import SLO, Request, Workload
from penstock.spec.workload_file import workload_from_dict, workload_to_dict
from penstock.spec.workloads import mean_lengths, with_rate

LENGTHS = {"prompt": 100, "output": 20}


def _two() -> dict[str, Any]:
    return {
        "duration": 60,
        "lengths": LENGTHS,
        "models": [
            {
                "name": "chat",
                "arrivals": {"gamma": {"rate": 3, "cv": 2}},
                "lengths": {"prompt": {"uniform": [10, 20]}, "output": 5},
                "slo": {"ttft": "1 s"},
                "priority": 2,
            },
            {
                "name": "code",
                "arrivals": {"uniform": {"rate": 1}},
                "classes": [
                    {"name": "fast", "share": 3, "tpot": "50 ms"},
                    {"name": "slow"},
                ],
            },
        ],
    }


def test_each_model_has_its_own_traffic() -> None:
    """Arrivals, lengths, limits and priorities are those of the entry, or the common ones."""
    workload = workload_from_dict(_two())
    assert workload.models == ("chat", "code")
    assert [entry.name for entry in workload.classes] == ["chat", "fast", "slow"]
    assert workload.classes[0].slo == SLO(ttft_s=1.0)
    assert workload.classes[0].priority == 2
    requests = list(workload.requests())
    times = [request.arrival_s for request in requests]
    assert times == sorted(times)
    assert [request.id for request in requests] == list(range(len(requests)))
    chat = [request for request in requests if request.model == "chat"]
    code = [request for request in requests if request.model == "code"]
    assert {request.class_name for request in chat} == {"chat"}
    assert {request.class_name for request in code} == {"fast", "slow"}
    assert all(10 <= request.prompt_tokens <= 20 for request in chat)
    assert all(request.prompt_tokens == 100 for request in code)
    assert [request.arrival_s for request in code] == list(range(60))


def test_a_stream_does_not_depend_on_the_others() -> None:
    """Taking a model away leaves the requests of the rest as they were."""
    both = workload_from_dict(_two())
    data = _two()
    del data["models"][1]
    alone = workload_from_dict(data)

    def plain(workload: Workload) -> list[tuple[float, int]]:
        return [(r.arrival_s, r.prompt_tokens) for r in workload.requests() if r.model == "chat"]

    assert plain(both) == plain(alone)


@settings(max_examples=30)
@given(
    st.sampled_from(["uniform", "power_law", "halving"]),
    st.floats(0.5, 50),
    st.none() | st.floats(0.5, 4),
    st.integers(1, 6),
)
def test_popularity_round_trips(law: str, rate: float, cv: float | None, models: int) -> None:
    """What the shorthand means is written out in full, and draws the same requests."""
    names = [f"m{i}" for i in range(models)]
    shared = {"models": names, "rate": rate, "law": law}
    if cv is not None:
        shared["cv"] = cv
    data = {"duration": 5, "lengths": LENGTHS, "slo": {"e2e": 3}, "popularity": shared}
    workload = workload_from_dict(data)
    rates = [stream.arrivals.rate_per_s for stream in workload.streams]  # type: ignore[attr-defined]
    assert rates == list(popularity_rates(models, rate, law))  # type: ignore[arg-type]
    again = workload_from_dict(workload_to_dict(workload))
    assert again.streams == workload.streams
    assert again.classes == workload.classes
    assert list(again.requests()) == list(workload.requests())


def test_minute_bins_are_replayed_as_published() -> None:
    """The arrivals are those of the construction itself, cut by model."""
    counts = [40, 80, 20]
    data = {
        "lengths": LENGTHS,
        "minute_bins": {"counts": counts, "scale": 0.5, "models": ["a", "b"], "load_bins": [0, 2]},
    }
    workload = workload_from_dict(data)
    trace = bin_trace(counts, 0.5, [0, 2])
    requests = list(workload.requests())
    assert [r.arrival_s for r in requests] == np.sort(trace.arrival_s).tolist()
    assert sum(r.model == "b" for r in requests) == int((trace.model == 1).sum())
    assert workload.duration_s == 3 * 30 + 2 * 90
    again = workload_from_dict(workload_to_dict(workload))
    assert list(again.requests()) == requests


def test_function_traces_become_streams(tmp_path: Path) -> None:
    """Counts a minute and single calls, cut to a window, with limits of each model."""
    rows = [f"o,a,f{i},http," + ",".join(["60"] * 30) for i in range(4)]
    header = "HashOwner,HashApp,HashFunction,Trigger," + ",".join(map(str, range(1, 31)))
    (tmp_path / "d01.csv").write_text("\n".join([header, *rows]) + "\n")
    calls = [f"a,f{i % 3},{0.5 * i + 0.1},0.1" for i in range(20_000)]
    (tmp_path / "calls.csv").write_text("\n".join(["app,func,end_timestamp,duration", *calls]))
    path = tmp_path / "w.yaml"
    entries = [{"name": "a", "slo": {"e2e": 1}}, {"name": "b", "lengths": "azure-conv"}]
    shared = {"counts": "d01.csv", "rate_scale": 0.5, "cv_scale": 2, "end": "10 min"}
    path.write_text(yaml.safe_dump({"lengths": LENGTHS, "functions": shared, "models": entries}))
    workload = load_workload(path)
    assert workload.duration_s == 600
    assert [s.arrivals.rate_per_s for s in workload.streams] == pytest.approx([1.0, 1.0])  # type: ignore[attr-defined]
    assert workload.classes[0].slo.e2e_s == 1
    shared = {"invocations": "calls.csv", "models": ["a", "b"], "start": 3600, "end": 9000}
    path.write_text(yaml.safe_dump({"lengths": LENGTHS, "functions": shared}))
    workload = load_workload(path)
    assert workload.duration_s == 5400
    rates = [s.arrivals.rate_per_s for s in workload.streams]  # type: ignore[attr-defined]
    assert rates == pytest.approx([2 * 2 / 3, 2 / 3], rel=0.01)
    assert workload_from_dict(workload_to_dict(workload)).streams == workload.streams


def test_rates_and_lengths_of_all_models_together() -> None:
    """A new rate keeps popularity; the mean request is weighted by it."""
    workload = workload_from_dict(_two())
    doubled = with_rate(workload, 8.0)
    assert [s.arrivals.rate_per_s for s in doubled.streams] == [6.0, 2.0]  # type: ignore[attr-defined]
    assert mean_lengths(workload) == pytest.approx(((3 * 15 + 100) / 4, (3 * 5 + 20) / 4))


TEXT = st.text('ab,"é', min_size=1, max_size=5)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 10), TEXT, TEXT), min_size=1, max_size=8))
def test_traces_keep_the_model(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, str, str]]
) -> None:
    """Classes and models of a written trace read back, whatever their names."""
    path = tmp_path_factory.mktemp("traces") / "trace.csv"
    requests = [
        Request(i, at_s, 3, 4, name, model) for i, (at_s, name, model) in enumerate(sorted(rows))
    ]
    write_trace(path, requests)
    trace = open_trace(path)
    assert list(trace) == requests
    assert trace.models == tuple(sorted({model for _, _, model in rows}))


def test_a_model_is_its_own_class_in_traces(tmp_path: Path) -> None:
    """A row that names a model and no class is in the class of that name."""
    (tmp_path / "t.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens,model\n0,1,1,a\n1,1,1,b\n2,1,1,a\n"
    )
    path = tmp_path / "w.yaml"
    path.write_text("trace: t.csv\nclasses: [{name: a, ttft: 1}, {name: b, ttft: 2}]\n")
    workload = load_workload(path)
    assert workload.models == ("a", "b")
    assert [request.class_name for request in workload.requests()] == ["a", "b", "a"]


Change = Callable[[dict[str, Any]], Any]
MISTAKES: list[tuple[Change, str]] = [
    (lambda d: d.update(arrivals={"poisson": {"rate": 1}}), "arrivals.*names several"),
    (lambda d: d.update(classes=[{"name": "x"}]), "classes.*one model"),
    (lambda d: d["models"][0].pop("arrivals"), r"models.0..arrivals.*missing"),
    (lambda d: (d.pop("lengths"), d["models"][1].pop("lengths", 0)), r"models.1..lengths"),
    (lambda d: d["models"][1].update(name="chat"), r"models.1..name.*twice"),
    (lambda d: d["models"][1]["classes"][0].update(name="chat"), "class of this name"),
    (lambda d: d["models"][1].update(slo={"ttft": 1}), r"models.1..slo"),
    (lambda d: d["models"][0].update(arrivals={"saturating": {}}), r"models.0.*completions"),
    (lambda d: d["models"][0].update(arivals={}), "arivals.*'arrivals'"),
    (lambda d: d.update(popularity={"rate": 1}), r"models.0..arrivals.*popularity"),
    (lambda d: (d.pop("models"), d.update(popularity={"rate": 1})), "name the models once"),
    (
        lambda d: (d.pop("models"), d.update(popularity={"rate": 1, "models": ["a"], "law": "x"})),
        "popularity.law",
    ),
    (lambda d: d.update(duration=0), "duration.*nothing is left"),
    (
        lambda d: (d.pop("models"), d.update(minute_bins={"counts": [1], "models": ["a", "b"]})),
        "minute_bins.*1 bins",
    ),
    (
        lambda d: (d.pop("models"), d.update(functions={"counts": "no.csv", "models": ["a"]})),
        "no.csv.*not found",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_one_line_that_names_the_key(change: Change, message: str) -> None:
    """What is missing, doubled or contradictory says where it is."""
    data = _two()
    change(data)
    with pytest.raises(SpecError, match=message) as raised:
        workload_from_dict(data, "w.yaml")
    assert "\n" not in str(raised.value)
