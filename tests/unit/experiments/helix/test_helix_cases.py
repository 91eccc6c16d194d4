"""The published experiments are read whole and each figure finds its simulations."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from penstock.experiments.helix.cases import PERCENTILES, Case, read_cases
from penstock.experiments.helix.flows import fleet_of, read_edge_flows, read_published_flows

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def cases(reference: Path) -> tuple[Case, ...]:
    return read_cases(reference / "helix")


def test_every_published_figure_belongs_to_one_case(
    reference: Path, cases: tuple[Case, ...]
) -> None:
    """No line of the guide is lost and none is counted twice."""
    with (reference / "helix" / "expected" / "expected_results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    printed = sum(bool(row[c]) for row in rows for c in ("value", *PERCENTILES))
    assert sum(len(case.figures) for case in cases) == printed == 633


def test_the_total_of_experiments_csv_is_a_figure_of_the_guide(
    reference: Path, cases: tuple[Case, ...]
) -> None:
    """Two files state the throughput of each case; they agree to the printed digit."""
    with (reference / "helix" / "expected" / "experiments.csv").open() as stream:
        stated = {
            float(row["expected_decode_tokens_per_s"])
            for row in csv.DictReader(stream)
            if row["scope"] == "total"
        }
    found = {
        round(figure.value, 5)
        for case in cases
        for figure in case.figures
        if figure.scope == "total" and figure.metric == "decode throughput"
    }
    assert stated <= found


def test_separate_plus_is_separate_and_one_more_pipeline(cases: tuple[Case, ...]) -> None:
    """SP+ shares the simulations of SP, so each is run once."""
    by_method = {c.method: c for c in cases if c.section == "6.5" and c.mode == "online"}
    plus, plain = by_method["sp_plus"].parts, by_method["separate"].parts
    assert set(plus) - set(plain) == {"v100_t4"}
    assert all(plus[scope] == plain[scope] for scope in plain)


def test_settings_follow_the_method(cases: tuple[Case, ...]) -> None:
    """Only Helix feeds by KV memory; online runs have a rate, offline runs a number in flight."""
    for case in cases:
        for part in case.parts.values():
            traffic = part.traffic
            assert (traffic.token_rate is None) == (case.mode == "offline")
            assert (traffic.in_flight is None) == (case.mode == "online")
            assert (traffic.feed_mark is not None) == (
                part.router == "maxflow" and case.mode == "offline"
            )
            assert (part.kv_high_water_mark is not None) == (part.router == "maxflow")


def test_words_choose_cases(cases: tuple[Case, ...]) -> None:
    """``--only`` takes words in any order and any case."""
    chosen = [c for c in cases if c.matches("OFFLINE helix single24 70b simulation")]
    assert [c.labels.case for c in chosen] == ["llama2-70b offline helix"]


def test_every_stored_placement_has_its_files_and_fleet(reference: Path) -> None:
    """All rows of max_flow.csv lead to one pair of files and to a fleet of the same machines."""
    helix = reference / "helix"
    flows = read_published_flows(helix)
    assert len(flows) == 54
    for flow in flows:
        cluster, solution = flow.stored.files(helix)
        assert cluster.parent == solution.parent
    for mix in sorted({flow.machines for flow in flows}):
        assert len(fleet_of(helix, mix).nodes) == sum(count for _, count in mix)


def test_stored_edge_flows_conserve(reference: Path) -> None:
    """What flows into a node flows out, and the coordinator takes back what it gave."""
    for edges in read_edge_flows(reference / "helix").values():
        net: dict[str, float] = {}
        for (src, dst), flow in edges.items():
            net[src] = net.get(src, 0.0) - flow
            net[dst] = net.get(dst, 0.0) + flow
        assert all(abs(value) < 1e-3 for value in net.values())
