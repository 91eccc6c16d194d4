"""Traces: every format read, mistakes by line number, windows and scaling, writing."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.errors import SpecError
from penstock.spec.load import load_workload
from penstock.spec.traces import detect_format, open_trace, read_lengths, write_trace
from penstock.spec.workload import SLO, Request, SLOClass
from penstock.spec.workloads import with_rate

FORMATS = {
    "penstock": (
        "t.csv",
        "arrival_s,prompt_tokens,output_tokens,class\n0.5,10,5,chat\n2.0,20,6,batch\n",
    ),
    "azure": (
        "t.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.5000000,10,5\n2023-11-16 18:15:48.0000000,20,6\n",
    ),
    "azure 2024": (
        "t.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens,NumImages\r\n"
        "2024-05-10 00:00:00.009930+00:00,10,5,0\r\n2024-05-10 00:00:01.509930+00:00,20,6,1\r\n",
    ),
    "burstgpt": (
        "t.csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,10,5,15,Conversation log\n6,GPT-4,9,0,9,API log\n6.5,GPT-4,20,6,26,API log\n",
    ),
    "splitwise": (
        "t.csv",
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
        "0,2,0,0.5,1,10,5\n1,2,0,2.0,1,20,6\n",
    ),
    "vidur": ("t.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,5\n2.0,20,6\n"),
    "mooncake": (
        "t.jsonl",
        '{"timestamp": 500, "input_length": 10, "output_length": 5, "hash_ids": [1, 2]}\n\n'
        '{"timestamp": 2000, "input_length": 20, "output_length": 6, "hash_ids": [1, 3]}\n',
    ),
    "llmservingsim": (
        "t.jsonl",
        '{"input_toks": 10, "output_toks": 5, "arrival_time_ns": 500000000}\n'
        '{"input_toks": 20, "output_toks": 6, "arrival_time_ns": 2000000000}\n',
    ),
}


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_format_gives_the_same_requests(tmp_path: Path, kind: str) -> None:
    """All formats agree on lengths and on the time between the two requests."""
    path = write(tmp_path, *FORMATS[kind])
    assert detect_format(path) == kind.split(maxsplit=1)[0]
    first, second = open_trace(path)
    assert (first.prompt_tokens, first.output_tokens) == (10, 5)
    assert (second.prompt_tokens, second.output_tokens) == (20, 6)
    assert second.arrival_s - first.arrival_s == pytest.approx(1.5, abs=1e-6)
    assert first.prefix_hashes == ((1, 2) if kind == "mooncake" else ())
    assert first.class_name == ("chat" if kind == "penstock" else "")


def test_absolute_times_start_at_zero(tmp_path: Path) -> None:
    """Azure's wall-clock times count from the first request."""
    assert next(iter(open_trace(write(tmp_path, *FORMATS["azure"])))).arrival_s == 0.0


def test_compressed_traces(tmp_path: Path) -> None:
    """A .csv.gz is read as it is."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(FORMATS["vidur"][1].encode()))
    assert len(open_trace(path)) == 2


def test_sharegpt_gives_lengths_only(tmp_path: Path) -> None:
    """Tokens are estimated at four characters; arrivals have to come from elsewhere."""
    data = [
        {"id": "a", "conversations": [{"from": "human", "value": "x" * 40}, {"value": "y" * 8}]},
        {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
    ]
    path = write(tmp_path, "share.json", json.dumps(data))
    assert read_lengths(path) == ((10, 2),)
    with pytest.raises(SpecError, match=r"no arrival times; use it as `lengths"):
        open_trace(path)


HEADER = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the trace is empty"),
        ("\n\n", "the trace is empty"),
        (HEADER, "the trace is empty"),
        (HEADER + "0,1,1\n2,1,1\n1,1,1\n", "t.csv:4: arrival_s: arrivals must not go back"),
        (HEADER + "0,1,1\nnan,1,1\n", "t.csv:3: arrival_s: not a time (got 'nan')"),
        (HEADER + "0,1,1\n1,1\n", "t.csv:3: 2 values for 3 columns"),
        (HEADER + "0,1,1\n1,1.5,1\n", "t.csv:3: prompt_tokens: must be a whole number"),
        (HEADER + "0,1,1\n1,inf,1\n", "t.csv:3: prompt_tokens: must be a whole number"),
        (HEADER + "0,1,0\n", "t.csv:2: output_tokens: must be at least 1 token"),
        (HEADER + "-1,1,1\n", "t.csv:2: arrivals start before 0"),
        ("a,b\n1,2\n", "no known trace format"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "t.csv:2: TIMESTAMP: not a"),
    ],
)
def test_bad_traces_name_the_line(tmp_path: Path, text: str, expected: str) -> None:
    """Whatever is wrong with a trace, the error is one line with the line number."""
    path = write(tmp_path, "t.csv", text)
    with pytest.raises(SpecError) as caught:
        open_trace(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_bad_jsonl_names_the_line(tmp_path: Path) -> None:
    """A cut-off JSON line, and a line that is no object."""
    good = FORMATS["mooncake"][1]
    for bad in ('{"timestamp"', "[1]", '{"timestamp": 9000, "input_length": 1}'):
        with pytest.raises(SpecError, match=r"t\.jsonl:4: "):
            open_trace(write(tmp_path, "t.jsonl", good + bad + "\n"))


def many(tmp_path: Path) -> Path:
    requests = [Request(i, i / 2, 100 + i, 10 + i) for i in range(100)]
    write_trace(tmp_path / "many.csv", requests)
    return tmp_path / "many.csv"


def test_windows_scaling_and_limits(tmp_path: Path) -> None:
    """A window counts from its start; scaling divides times; the limit stops early."""
    path = many(tmp_path)
    cut = open_trace(path, start_s=10.0, end_s=20.0, rate_scale=2.0)
    assert len(cut) == 20
    assert [r.prompt_tokens for r in cut][:2] == [120, 121]
    assert [r.arrival_s for r in cut][:2] == [0.0, 0.25]
    assert len(open_trace(path, max_requests=7)) == 7
    with pytest.raises(SpecError, match="no request in this window"):
        open_trace(path, start_s=1e6, end_s=2e6)


def test_with_rate_plays_a_trace_at_a_rate(tmp_path: Path) -> None:
    """The mean rate is the asked one, and the duration follows."""
    traffic = with_rate(load_workload(many(tmp_path)), 8.0)
    requests = list(traffic.requests())
    assert len(requests) / requests[-1].arrival_s == pytest.approx(8.0)
    assert traffic.duration_s == pytest.approx(requests[-1].arrival_s)
    explicit = with_rate(replace(traffic, trace=tuple(requests)), 4.0)
    assert list(explicit.requests())[-1].arrival_s == pytest.approx(25.0)


@pytest.mark.parametrize("azure", [False, True])
def test_written_traces_read_back(tmp_path: Path, azure: bool) -> None:
    """Our CSV is exact; Azure's keeps 100 ns."""
    requests = [Request(i, i * 0.1234567891, 5 + i, 7) for i in range(50)]
    write_trace(tmp_path / "out.csv", requests, azure=azure)
    again = list(open_trace(tmp_path / "out.csv"))
    assert [r.arrival_s for r in again] == pytest.approx(
        [r.arrival_s for r in requests], abs=5e-7 if azure else 0
    )
    assert [(r.prompt_tokens, r.output_tokens) for r in again] == [(5 + i, 7) for i in range(50)]


def test_classes_of_a_trace(tmp_path: Path) -> None:
    """Written classes stay and must be known; requests without one get theirs by share."""
    path = write(tmp_path, *FORMATS["penstock"])
    classes = (SLOClass("chat", SLO()), SLOClass("batch", SLO()))
    assert [r.class_name for r in open_trace(path, classes=classes)] == ["chat", "batch"]
    with pytest.raises(SpecError, match="no such class"):
        open_trace(path, classes=(SLOClass("other", SLO()),))
    drawn = open_trace(many(tmp_path), classes=classes, seed=3)
    names = [r.class_name for r in drawn]
    assert set(names) == {"chat", "batch"}
    assert names == [r.class_name for r in drawn]


@pytest.mark.reference
def test_published_traces_parse(reference: Path) -> None:
    """The Azure 2023 traces as Vidur ships them: counts and published means."""
    folder = reference / "vidur" / "traces"
    for name, count, prompt, output in (
        ("splitwise_conv.csv.gz", 19_366, 1154.7, 211.1),
        ("splitwise_code.csv.gz", 8_819, 2047.8, 27.9),
    ):
        trace = open_trace(folder / name)
        assert len(trace) == count
        table = read_lengths(folder / name)
        assert sum(p for p, _ in table) / count == pytest.approx(prompt, abs=0.1)
        assert sum(o for _, o in table) / count == pytest.approx(output, abs=0.1)
    arxiv = folder / "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz"
    assert len(read_lengths(arxiv)) == 28_257
