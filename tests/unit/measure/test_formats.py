"""Files of other tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.unit.measure.runs import busy_run, run_of

from penstock.errors import SpecError
from penstock.measure.chrome_trace import chrome_trace, write_chrome_trace
from penstock.measure.formats import (
    distserve_exp,
    read_distserve_exp,
    read_vllm_bench,
    vllm_bench,
    whole,
    write_distserve_exp,
    write_vllm_bench,
)
from penstock.measure.metrics import summarise


def test_vllm_bench_names_and_units() -> None:
    """Latencies are in ms under vLLM's names, details in seconds."""
    run = run_of([(5.0, 7, [6.0, 6.5, 7.0], "finished"), (5.5, 9, [], "rejected")])
    document = vllm_bench(run)

    assert document["duration"] == 2.0
    assert (document["completed"], document["failed"]) == (1, 1)
    assert document["mean_ttft_ms"] == pytest.approx(1000)
    assert document["p99_itl_ms"] == pytest.approx(500)
    assert document["median_e2el_ms"] == pytest.approx(2000)
    assert document["output_throughput"] == pytest.approx(1.5)
    assert (document["ttfts"], document["itls"]) == ([1.0, 0.0], [[0.5, 0.5], []])
    assert document["errors"] == ["", "rejected"]


def test_vllm_bench_reads_back_with_the_same_metrics(tmp_path: Path) -> None:
    """A run written for vLLM's tools and read again has the same latencies."""
    run = busy_run()
    write_vllm_bench(run, tmp_path / "bench.json")
    again = read_vllm_bench(tmp_path / "bench.json")
    mine, theirs = summarise(whole(run)).overall, summarise(again).overall

    assert again.header["kind"] == "measured"
    assert theirs.ttft.p95 == pytest.approx(mine.ttft.p95)
    assert theirs.itl.p99 == pytest.approx(mine.itl.p99)
    assert theirs.tpot.p50 == pytest.approx(mine.tpot.p50)
    assert theirs.output_throughput_tokens_per_s == pytest.approx(
        mine.output_throughput_tokens_per_s
    )


def test_a_bench_file_of_vllm_itself_is_read(tmp_path: Path) -> None:
    """Older files have no start times; a note says what that means."""
    document = {
        "duration": 4.0,
        "input_lens": [10, 20],
        "output_lens": [3, 0],
        "ttfts": [0.5, 0.0],
        "itls": [[0.25, 0.25], []],
        "generated_texts": ["abc", ""],
        "errors": ["", "boom"],
    }
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(document))
    run = read_vllm_bench(path)

    assert run.window_s == (0.0, 4.0)
    assert run.tokens.times_s.tolist() == [0.5, 0.75, 1.0]
    assert "start_times" in str(run.header["notes"])
    assert summarise(run).overall.failed == 1


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"duration": 3}',
        '{"input_lens": [1], "output_lens": [1], "ttfts": [1], "itls": [["x"]]}',
    ],
)
def test_a_bench_file_without_details_is_one_line(tmp_path: Path, text: str) -> None:
    """Summaries alone cannot be compared; the message says how to save details."""
    path = tmp_path / "bench.json"
    path.write_text(text)

    with pytest.raises(SpecError, match=r"bench\.json"):
        read_vllm_bench(path)


def test_exp_rows_have_the_nine_fields(tmp_path: Path) -> None:
    """DistServe's own figures follow from its own fields."""
    run = busy_run()
    rows = distserve_exp(run)
    first = rows[0]

    assert list(first) == [
        "prompt_len",
        "output_len",
        "start_time",
        "end_time",
        "token_timestamps",
        "lifecycle_events",
        "latency",
        "ftl",
        "tpot",
    ]
    write_distserve_exp(run, tmp_path / "penstock-400-4.exp")
    again = read_distserve_exp(tmp_path / "penstock-400-4.exp")
    assert np.mean([row["ftl"] for row in rows]) == pytest.approx(
        summarise(again).overall.ttft.mean
    )
    assert np.mean([row["tpot"] for row in rows if row["output_len"] > 1]) == pytest.approx(  # type: ignore[operator]
        summarise(again).overall.tpot.mean
    )


def test_a_trace_tells_each_phase_once_and_lanes_never_overlap(tmp_path: Path) -> None:
    """Phases of a request follow each other; no lane holds two requests at once."""
    run = busy_run(requests=60)
    document = chrome_trace(run)
    spans = [e for e in document["traceEvents"] if e["ph"] == "X"]  # type: ignore[attr-defined]
    lanes: dict[int, list[tuple[float, float]]] = {}
    for span in spans:
        lanes.setdefault(span["tid"], []).append((span["ts"], span["ts"] + span["dur"]))
    finished = int(np.count_nonzero(run.requests.status == 0))

    assert sum(span["name"] == "prefill" for span in spans) == finished
    assert {span["name"] for span in spans} == {"prefill", "decode"}
    for own in lanes.values():
        for (_, end), (begin, _) in zip(sorted(own), sorted(own)[1:], strict=False):
            assert begin >= end - 0.01
    write_chrome_trace(run, tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text()) == document


def test_a_trace_counts_what_nodes_do() -> None:
    """Each bucket of each node is one counter sample."""
    counters = [e for e in chrome_trace(busy_run())["traceEvents"] if e["ph"] == "C"]  # type: ignore[attr-defined]

    assert len(counters) == 300
    assert {entry["name"] for entry in counters} == {"a100-0", "a100-1", "t4-0"}
