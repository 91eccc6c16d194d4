"""Metrics of a run, against hand figures and a request-by-request oracle."""

from __future__ import annotations

import csv
import json
import statistics
import time
from dataclasses import astuple, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from tests.unit.measure.runs import busy_run, run_of, runs

from penstock.measure.definitions import DEFINITIONS, metrics
from penstock.measure.fleet import Fleet, classes_of, fleet_of, fleet_of_run, header_entries
from penstock.measure.metrics import distribution, rank_percentiles, summarise, summary_to_dict
from penstock.measure.run import STATUS, Run, TokenTimes
from penstock.spec.cluster import Cluster
from penstock.spec.hardware import Accelerator, Coordinator, Node
from penstock.spec.workload import SLO, SLOClass


def _hand_run() -> Run:
    return run_of(
        [
            (0.0, 100, [1.0, 1.5, 2.5], "finished"),
            (1.0, 200, [4.0], "finished"),
            (2.0, 300, [3.0, 11.0], "running"),
            (3.0, 400, [], "rejected"),
        ],
        window_s=(0.0, 10.0),
    )


def test_latencies_of_a_run_counted_by_hand() -> None:
    """TTFT, TPOT, ITL and end-to-end latency follow their definitions."""
    overall = summarise(_hand_run()).overall

    assert (overall.sent, overall.finished, overall.rejected, overall.unfinished) == (4, 2, 1, 1)
    assert (overall.ttft.count, overall.ttft.p50, overall.ttft.maximum) == (3, 1.0, 3.0)
    assert (overall.tpot.count, overall.tpot.mean) == (1, 0.75)
    assert (overall.itl.count, overall.itl.mean) == (2, 0.75)
    assert (overall.e2e.count, overall.e2e.mean) == (2, 2.75)
    assert overall.tokens_per_s_per_user == pytest.approx(1 / 0.75)


def test_throughput_counts_what_completes_in_the_window() -> None:
    """The token at 11 s lies outside the window of 10 s."""
    overall = summarise(_hand_run()).overall

    assert overall.output_throughput_tokens_per_s == pytest.approx(0.5)
    assert overall.decode_throughput_tokens_per_s == pytest.approx(0.2)
    assert overall.total_throughput_tokens_per_s == pytest.approx((5 + 600) / 10)
    assert overall.request_throughput_per_s == pytest.approx(0.2)
    assert overall.mean_prompt_tokens == pytest.approx(200)


def test_published_semantics_take_the_first_decode_iteration_as_first_token() -> None:
    """Without a token from the prompt iteration, TTFT ends with the next iteration."""
    run = run_of(
        [(0.0, 10, [1.0, 1.5, 2.5, 2.75], "finished")],
        window_s=(0.0, 10.0),
        first_iteration_is_token=False,
    )
    overall = summarise(run).overall

    assert overall.ttft.p50 == 1.5
    assert overall.prompt_latency.p50 == 1.0
    assert overall.decode_latency.count == 3
    assert overall.itl.count == 2
    assert overall.tpot.p50 == pytest.approx(1.25 / 2)
    assert overall.decode_throughput_tokens_per_s == pytest.approx(0.3)
    assert overall.output_throughput_tokens_per_s == pytest.approx(0.3)


def test_attainment_counts_requests_never_served_as_misses() -> None:
    """Of four requests sent one meets both limits: attainment is a quarter."""
    classes = [SLOClass("", SLO(ttft_s=2.0, tpot_s=1.0))]
    overall = summarise(_hand_run(), classes).overall

    assert overall.slo_attainment == 0.25
    assert overall.ttft_attainment == 0.25
    assert overall.tpot_attainment == 0.5
    assert overall.goodput_requests_per_s == pytest.approx(0.1)
    assert overall.goodput_tokens_per_s == pytest.approx(0.3)


def test_an_itl_limit_holds_for_every_gap() -> None:
    """One slow gap makes a request miss, however good its mean."""
    run = run_of([(0.0, 1, [0.1, 0.2, 0.3, 2.0, 2.1], "finished")])

    assert summarise(run, [SLOClass("", SLO(itl_s=1.0))]).overall.slo_attainment == 0
    assert summarise(run, [SLOClass("", SLO(itl_s=1.8))]).overall.slo_attainment == 1


def test_each_class_is_held_to_its_own_limits() -> None:
    """Limits go by class; the figure over all judges each request by its class."""
    run = run_of(
        [(0.0, 1, [1.0, 2.0], "finished"), (0.0, 1, [1.0, 2.0], "finished")],
        class_index=[0, 1],
        class_names=("chat", "batch"),
    )
    classes = [SLOClass("chat", SLO(ttft_s=0.5)), SLOClass("batch", SLO(ttft_s=5.0))]
    summary = summarise(run, classes)

    assert [group.slo_attainment for group in summary.classes] == [0.0, 1.0]
    assert summary.overall.slo_attainment == 0.5


def test_limits_come_from_the_header_when_not_given() -> None:
    """A run on its own knows what it was held to."""
    header = {"workload": {"classes": [{"name": "", "slo": {"ttft_s": 2.0}}]}}
    overall = summarise(replace(_hand_run(), header=header)).overall

    assert overall.slo == SLO(ttft_s=2.0)
    assert overall.slo_attainment == 0.25


def test_what_a_driver_puts_into_the_header_reads_back() -> None:
    """Fleet and limits survive the header; a class without limits judges nothing."""
    gpu = Accelerator("L4", 24, 3e11, {}, "pcie", 1e10, 0.8, "")
    node = Node("n", gpu, 2, "L4x2", "eu", 1, 1, 1, 1, None)
    cluster = Cluster("c", (node,), Coordinator("eu", 1, 1), {}, {})
    classes = (SLOClass("chat", SLO(ttft_s=0.5)), SLOClass("batch", SLO()))
    header = header_entries(cluster, classes)

    assert fleet_of_run(header) == Fleet(2, 1.6)
    assert classes_of(header) == classes[:1]


def test_without_limits_there_is_no_goodput() -> None:
    """Nothing is called good when no limit was set."""
    overall = summarise(_hand_run()).overall

    assert overall.slo_attainment is None
    assert overall.goodput_requests_per_s is None


def test_figures_per_gpu_and_per_price_cover_the_whole_fleet() -> None:
    """Per GPU means per provisioned GPU; 3.6 $/h at 0.5 tok/s is 2000 $ a million tokens."""
    summary = summarise(_hand_run(), fleet=Fleet(num_gpus=5, price_per_hour=3.6))

    assert summary.tokens_per_s_per_gpu == pytest.approx(0.1)
    assert summary.cost_per_million_output_tokens == pytest.approx(2000.0)
    assert summarise(_hand_run()).tokens_per_s_per_gpu is None


def test_a_fleet_without_a_price_has_none() -> None:
    """One GPU type without a price makes the price of the fleet unknown."""
    gpu = Accelerator("L4", 24, 3e11, {}, "pcie", 1e10, 0.8, "")
    nodes = [
        Node(f"n{i}", replace(gpu, price_per_hour=price), 2, "L4x2", "eu", 1, 1, 1, 1, None)
        for i, price in enumerate((0.8, None))
    ]
    where = Coordinator("eu", 1, 1)

    assert fleet_of(Cluster("c", tuple(nodes[:1]), where, {}, {})) == Fleet(2, 1.6)
    assert fleet_of(Cluster("c", tuple(nodes), where, {}, {})) == Fleet(4, None)


def test_utilisation_is_taken_over_the_window() -> None:
    """Buckets outside the window do not count; a cut bucket counts by its part."""
    run = busy_run()
    assert run.node_series is not None
    series = replace(run.node_series, busy=np.zeros((100, 3)))
    series.busy[10:20] = 1.0
    half = summarise(replace(run, node_series=series, window_s=(15.5, 24.5)))

    assert [node.utilisation for node in half.nodes] == pytest.approx([0.5] * 3)


@settings(max_examples=150, deadline=None)
@given(run=runs())
def test_any_run_agrees_with_counting_one_request_at_a_time(run: Run) -> None:
    """Vectorised samples equal those of a plain loop over requests and tokens."""
    limits = SLO(ttft_s=2.0, tpot_s=1.0, itl_s=2.5, e2e_s=8.0)
    classes = [SLOClass(name, limits) for name in run.class_names or ("",)]
    start, end = run.window_s
    skip = 0 if run.first_iteration_is_token else 1
    ttft, tpot, itl, e2e, tokens, decode, sent, good = [], [], [], [], 0, 0, 0, 0
    for i, arrival in enumerate(run.requests.arrival_s.tolist()):
        times = run.tokens.times_s[run.tokens.offsets[i] : run.tokens.offsets[i + 1]].tolist()
        out = times[skip:]
        finished = STATUS[run.requests.status[i]] == "finished"
        pairs = list(pairwise(out))
        tokens += sum(start <= t <= end for t in out)
        decode += sum(start <= t <= end for t in times[1:])
        itl += [b - a for a, b in pairs if start <= b <= end]
        if out and start <= out[0] <= end:
            ttft.append(out[0] - arrival)
        own_tpot = (out[-1] - out[0]) / (len(out) - 1) if len(out) > 1 else 0.0
        if finished and start <= out[-1] <= end:
            e2e.append(out[-1] - arrival)
            if len(out) > 1:
                tpot.append(own_tpot)
        if start <= arrival <= end:
            sent += 1
            good += (
                finished
                and out[0] - arrival <= 2.0
                and own_tpot <= 1.0
                and all(b - a <= 2.5 for a, b in pairs)
                and out[-1] - arrival <= 8.0
            )
    overall = summarise(run, classes).overall

    for wanted, got in ((ttft, overall.ttft), (tpot, overall.tpot), (itl, overall.itl)):
        assert got.count == len(wanted)
        if wanted:
            assert got.mean == pytest.approx(statistics.fmean(wanted), abs=1e-9)
            assert got.p90 == pytest.approx(float(np.percentile(wanted, 90)), abs=1e-9)
    assert overall.e2e.count == overall.finished == len(e2e)
    assert overall.output_throughput_tokens_per_s == pytest.approx(tokens / (end - start))
    assert overall.decode_throughput_tokens_per_s == pytest.approx(decode / (end - start))
    assert overall.sent == sent
    if sent:
        assert overall.slo_attainment == pytest.approx(good / sent)


@settings(max_examples=50, deadline=None)
@given(run=runs())
def test_classes_add_up_to_the_whole(run: Run) -> None:
    """Counts and rates of the classes sum to those over all requests."""
    summary = summarise(run)
    for field in ("sent", "finished", "rejected", "unfinished", "output_throughput_tokens_per_s"):
        if summary.classes:
            parts = sum(getattr(group, field) for group in summary.classes)
            assert parts == pytest.approx(getattr(summary.overall, field))


@settings(max_examples=50, deadline=None)
@given(run=runs())
def test_a_summary_is_valid_json(run: Run) -> None:
    """No NaN or infinity reaches a program that reads the summary."""
    text = json.dumps(summary_to_dict(summarise(run)), allow_nan=False)

    assert json.loads(text)["overall"]["sent"] >= 0


def test_percentiles_interpolate_as_numpy_does() -> None:
    """Order statistics equal NumPy's; p99.9 appears from 1,000 samples on."""
    sample = np.random.default_rng(1).lognormal(size=1500)
    got = distribution(sample)

    for p, value in ((25, got.p25), (50, got.median), (99, got.p99), (99.9, got.p999)):
        assert value == pytest.approx(float(np.percentile(sample, p)))
    assert np.isnan(distribution(sample[:999]).p999)


@pytest.mark.reference
def test_rank_percentiles_equal_the_published_convention(reference: Path) -> None:
    """Percentile p of a published trace is the sorted value at rank int(n p)."""
    path = reference / "helix" / "traces" / "azure_conv_lengths.csv"
    with open(path, newline="") as file:
        lengths = [float(row["input_tokens"]) for row in csv.DictReader(file)]
    ordered = sorted(lengths)
    got = rank_percentiles(np.array(lengths))

    assert (got.p5, got.p50, got.p95) == tuple(
        ordered[int(len(ordered) * p)] for p in (0.05, 0.5, 0.95)
    )
    assert got.mean == pytest.approx(statistics.fmean(lengths))


def test_a_million_tokens_are_summarised_within_a_second() -> None:
    """Metrics are array work: a million tokens take well under a second of CPU."""
    run = busy_run(requests=8500, mean_tokens=120)
    assert len(run.tokens.times_s) > 950_000
    before = time.process_time()
    summarise(run, [SLOClass("", SLO(ttft_s=1.0, tpot_s=0.1))])

    assert time.process_time() - before < 1.0


def test_every_metric_is_defined_in_words() -> None:
    """Whatever a table shows, the definitions explain."""
    for word in ("TTFT", "TPOT", "ITL", "E2EL", "goodput", "SLO attainment", "window"):
        assert DEFINITIONS[word].endswith(".")
    assert len({metric.key for metric in metrics()}) == len(metrics())


def _of_models(names: tuple[str, ...], model_index: list[int], class_index: list[int]) -> Run:
    rows = [
        (0.0, 10, [0.5, 0.6, 0.7], "finished"),
        (1.0, 20, [3.0, 3.4], "finished"),
        (2.0, 30, [2.1, 2.2, 2.3, 2.4], "finished"),
        (3.0, 40, [], "rejected"),
    ]
    run = run_of(rows, class_index=class_index, class_names=("fast", "slow"), model_names=names)
    table = replace(run.requests, model_index=np.array(model_index, np.int16))
    return replace(run, requests=table)


def test_each_model_has_the_metrics_of_its_requests_alone() -> None:
    """A model's figures are those of a run that holds nothing but its requests."""
    limits = (SLOClass("fast", SLO(ttft_s=1.0)), SLOClass("slow", SLO(ttft_s=9.0)))
    index = [0, 1, 0, 1]
    run = _of_models(("chat", "code"), index, [0, 0, 1, 1])
    summary = summarise(run, limits)
    assert [group.name for group in summary.models] == ["chat", "code"]
    for number, group in enumerate(summary.models):
        own = [i for i, model in enumerate(index) if model == number]
        starts, ends = run.tokens.offsets[:-1][own], run.tokens.offsets[1:][own]
        spans = [run.tokens.times_s[a:b] for a, b in zip(starts, ends, strict=True)]
        table = replace(
            run.requests,
            **{
                field.name: getattr(run.requests, field.name)[own] for field in fields(run.requests)
            },
        )
        offsets = np.concatenate([[0], np.cumsum([len(span) for span in spans])])
        alone = replace(
            run,
            requests=replace(table, model_index=None),
            tokens=TokenTimes(offsets.astype(np.int64), np.concatenate(spans)),
            model_names=(),
        )
        expected = summarise(alone, limits).overall
        assert group.sent == expected.sent == 2
        for latency in ("ttft", "tpot", "itl", "e2e"):
            wanted = astuple(getattr(expected, latency))
            assert astuple(getattr(group, latency)) == pytest.approx(wanted, nan_ok=True)
        assert group.slo_attainment == expected.slo_attainment
    assert [group.slo_attainment for group in summary.models] == [1.0, 0.0]
    assert summary.overall.itl.count == sum(group.itl.count for group in summary.models)


def test_a_class_that_is_a_model_is_shown_once() -> None:
    """Tables list models, then the classes that are not one model's own."""
    run = _of_models(("fast", "other"), [0, 1, 0, 1], [0, 1, 0, 1])
    assert [group.name for group in summarise(run).parts] == ["fast", "other", "slow"]
    document = summary_to_dict(summarise(run))
    assert list(document["models"]) == ["fast", "other"]  # type: ignore[call-overload]
    assert "models" not in summary_to_dict(summarise(run_of([(0.0, 1, [1.0], "finished")])))
