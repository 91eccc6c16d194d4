"""Result files other tools read and write: vLLM bench JSON and DistServe ``.exp``.

Both describe a whole experiment from the client's side and know no warm-up, so figures in them
are over all requests of the run, not over its window.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.measure.metrics import Distribution, summarise
from penstock.measure.run import STATUS, RequestTable, Run, TokenTimes
from penstock.measure.store import plain
from penstock.storage import write_text

_UNKNOWN_ARRIVALS = "the file has no start_times: every arrival is taken as 0 s"


def whole(run: Run) -> Run:
    """Return ``run`` with a window from its first arrival to its last token."""
    table, times = run.requests, run.tokens.times_s
    ends = [float(np.nanmax(times))] if len(times) else []
    starts = [float(table.arrival_s.min())] if len(table.id) else [run.window_s[0]]
    end = max([*ends, starts[0] + 1e-9])
    return replace(run, window_s=(starts[0], end))


def vllm_bench(run: Run) -> dict[str, object]:
    """Return ``run`` as the result document of ``vllm bench serve --save-detailed``.

    Latencies are in ms under vLLM's names; ``start_times``, ``ttfts`` and ``itls`` in seconds.
    A request that did not finish has ttft 0, no itls and its status as error text.
    """
    run = whole(run)
    summary = summarise(run)
    group, table = summary.overall, run.requests
    done = table.status == STATUS.index("finished")
    gaps = _gaps(run)
    workload = run.header.get("workload")
    workload = workload if isinstance(workload, Mapping) else {}
    document: dict[str, object] = {
        "backend": f"penstock-{summary.kind}",
        "label": run.name,
        "model_id": str(run.header.get("model", "")),
        "num_prompts": len(table.id),
        "request_rate": workload.get("request_rate"),
        "max_concurrency": workload.get("max_concurrency"),
        "duration": summary.window_length_s,
        "completed": group.finished,
        "failed": len(table.id) - group.finished,
        "total_input_tokens": int(table.prompt_tokens[done].sum()),
        "total_output_tokens": int(table.generated_tokens[done].sum()),
        "request_throughput": group.request_throughput_per_s,
        "request_goodput": group.goodput_requests_per_s,
        "output_throughput": group.output_throughput_tokens_per_s,
        "total_token_throughput": group.total_throughput_tokens_per_s,
        "input_lens": table.prompt_tokens,
        "output_lens": np.where(done, table.generated_tokens, 0),
        "ttfts": [gap[0] if ok else 0.0 for gap, ok in zip(gaps, done, strict=True)],
        "itls": [gap[1:] if ok else [] for gap, ok in zip(gaps, done, strict=True)],
        "start_times": table.arrival_s,
        "errors": ["" if ok else STATUS[i] for ok, i in zip(done, table.status, strict=True)],
    }
    for name, values in (
        ("ttft", group.ttft),
        ("tpot", group.tpot),
        ("itl", group.itl),
        ("e2el", group.e2e),
    ):
        document.update(_milliseconds(name, values))
    result = plain(document)
    assert isinstance(result, dict)
    return result


def write_vllm_bench(run: Run, path: Path) -> None:
    """Write ``vllm_bench(run)`` to ``path``, whole or not at all."""
    write_text(path, json.dumps(vllm_bench(run), indent=1, ensure_ascii=False) + "\n")


def read_vllm_bench(path: Path) -> Run:
    """Read a result of ``vllm bench serve`` saved with its details (``--save-detailed``).

    The run's clock starts at the first request. Raises ``SpecError`` where details are missing.
    """
    document = _read_json(path)
    if not isinstance(document, dict):
        raise SpecError("must be one JSON object", source=path, fix="give a vLLM bench result")
    names = ("input_lens", "output_lens", "ttfts", "itls")
    for name in names:
        if not isinstance(document.get(name), list):
            raise SpecError(
                "missing: the file holds no request details",
                source=path,
                key=name,
                fix="run `vllm bench serve` with --save-result --save-detailed",
            )
    prompts, outputs, ttfts, itls = (document[name] for name in names)
    count = len(prompts)
    errors = document.get("errors") or [""] * count
    known = document.get("start_times")
    starts = known if isinstance(known, list) and len(known) == count else [0.0] * count
    rows = []
    try:
        first = min((float(start) for start in starts), default=0.0)
        for prompt, output, ttft, itl, error, start in zip(
            prompts, outputs, ttfts, itls, errors, starts, strict=True
        ):
            ok = not error and int(output) > 0
            times = float(start) - first + float(ttft) + np.concatenate([[0.0], np.cumsum(itl)])
            rows.append(
                _Row(
                    arrival_s=float(start) - first,
                    prompt_tokens=int(prompt),
                    output_tokens=int(output),
                    times_s=times if ok else np.zeros(0),
                    status="finished" if ok else "failed",
                )
            )
    except (TypeError, ValueError) as error_found:
        raise SpecError(
            f"request details do not fit together: {error_found}",
            source=path,
            fix="give an unedited vLLM bench result",
        ) from error_found
    end = document.get("duration")
    header = {
        "kind": "measured",
        "format": "vllm bench",
        "model": document.get("model_id", ""),
        "backend": document.get("backend") or document.get("endpoint_type") or "",
        "workload": {
            "request_rate": document.get("request_rate"),
            "max_concurrency": document.get("max_concurrency"),
        },
        "notes": [] if starts is known else [_UNKNOWN_ARRIVALS],
    }
    name = str(document.get("label") or path.stem)
    return _run(name, header, rows, end if isinstance(end, int | float) else None, path)


def distserve_exp(run: Run) -> list[dict[str, object]]:
    """Return finished requests of ``run`` in DistServe's ``.exp`` layout, in order of arrival.

    Nine fields a request, seconds on the run's clock. ``tpot`` is 0 for one output token.
    """
    table = run.requests
    skip = 0 if run.first_iteration_is_token else 1
    rows: list[dict[str, object]] = []
    for i in np.flatnonzero(table.status == STATUS.index("finished")).tolist():
        times = run.tokens.times_s[run.tokens.offsets[i] + skip : run.tokens.offsets[i + 1]]
        start, output = float(table.arrival_s[i]), int(table.generated_tokens[i])
        first, last = float(times[0]), float(times[-1])
        stamps = (
            ("issued", start),
            ("context_begin", float(table.admitted_s[i])),
            ("context_end", float(run.tokens.times_s[run.tokens.offsets[i]])),
            ("decoding_end", last),
        )
        rows.append(
            {
                "prompt_len": int(table.prompt_tokens[i]),
                "output_len": output,
                "start_time": start,
                "end_time": last,
                "token_timestamps": times.tolist(),
                "lifecycle_events": [
                    {"timestamp": at, "event_type": kind}
                    for kind, at in stamps
                    if math.isfinite(at)
                ],
                "latency": last - start,
                "ftl": first - start,
                "tpot": (last - first) / (output - 1) if output > 1 else 0.0,
            }
        )
    return rows


def write_distserve_exp(run: Run, path: Path) -> None:
    """Write ``distserve_exp(run)`` to ``path`` (``<prefix>-<prompts>-<rate>.exp`` by custom)."""
    write_text(path, json.dumps(distserve_exp(run)) + "\n")


def read_distserve_exp(path: Path) -> Run:
    """Read a ``.exp`` file; the run's clock starts at the first request."""
    document = _read_json(path)
    if not isinstance(document, list):
        raise SpecError("must be a JSON list of requests", source=path, fix="give a .exp file")
    rows = []
    try:
        first = min((float(entry["start_time"]) for entry in document), default=0.0)
        for entry in document:
            start = float(entry["start_time"])
            times = np.asarray(entry["token_timestamps"], dtype=float) - first
            if "ftl" in entry and len(times):
                # Tokens are stamped by the server's clock, requests by the client's.
                times = times - times[0] + start - first + float(entry["ftl"])
            rows.append(
                _Row(
                    arrival_s=start - first,
                    prompt_tokens=int(entry["prompt_len"]),
                    output_tokens=int(entry["output_len"]),
                    times_s=times,
                    status="finished" if len(times) else "failed",
                )
            )
    except (TypeError, KeyError, ValueError) as error:
        raise SpecError(
            f"a request lacks or garbles {error}", source=path, fix="give an unedited .exp file"
        ) from error
    rows.sort(key=lambda row: row.arrival_s)
    return _run(path.stem, {"kind": "measured", "format": "distserve exp"}, rows, None, path)


@dataclass(frozen=True, slots=True)
class _Row:
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    times_s: NDArray[np.float64]
    status: str


def _run(
    name: str, header: Mapping[str, object], rows: Sequence[_Row], end: float | None, path: Path
) -> Run:
    if not rows:
        raise SpecError("holds no request", source=path, fix="give a result with requests")
    times = [row.times_s for row in rows]
    counts = [len(t) for t in times]
    numbers = {status: i for i, status in enumerate(STATUS)}
    finished = np.array([row.status == "finished" for row in rows])
    arrival = np.array([row.arrival_s for row in rows])
    pooled = np.concatenate(times)
    if not (np.isfinite(pooled).all() and np.isfinite(arrival).all()):
        raise SpecError("a time is not finite", source=path, fix="give an unedited result")
    latest = max(float(pooled.max()) if len(pooled) else 0.0, float(arrival.max()), 1e-9)
    none = np.full(len(rows), np.nan)
    output = np.array([row.output_tokens for row in rows], dtype=np.int64)
    return Run(
        name=name,
        header=header,
        window_s=(0.0, max(latest, end or 0.0)),
        requests=RequestTable(
            id=np.arange(len(rows), dtype=np.int64),
            arrival_s=arrival,
            admitted_s=none,
            first_token_s=np.array([t[0] if len(t) else np.nan for t in times]),
            last_token_s=np.array([t[-1] if len(t) else np.nan for t in times]),
            prompt_tokens=np.array([row.prompt_tokens for row in rows], dtype=np.int64),
            output_tokens=output,
            generated_tokens=np.where(finished, output, 0),
            status=np.array([numbers[row.status] for row in rows], dtype=np.int8),  # type: ignore[index]
            preemptions=np.zeros(len(rows), dtype=np.int32),
            class_index=np.zeros(len(rows), dtype=np.int16),
            route_index=np.zeros(len(rows), dtype=np.int32),
        ),
        tokens=TokenTimes(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), pooled),
    )


def _gaps(run: Run) -> list[list[float]]:
    """Seconds from arrival to the first token and between tokens, per request."""
    skip = 0 if run.first_iteration_is_token else 1
    offsets, times = run.tokens.offsets, run.tokens.times_s
    result = []
    for i, arrival in enumerate(run.requests.arrival_s):
        own = times[offsets[i] + skip : offsets[i + 1]]
        result.append(np.diff(own, prepend=arrival).tolist())
    return result


def _milliseconds(name: str, values: Distribution) -> dict[str, object]:
    entries = {
        f"mean_{name}_ms": values.mean,
        f"median_{name}_ms": values.p50,
        f"std_{name}_ms": values.std,
        f"p25_{name}_ms": values.p25,
        f"p50_{name}_ms": values.p50,
        f"p75_{name}_ms": values.p75,
        f"p90_{name}_ms": values.p90,
        f"p95_{name}_ms": values.p95,
        f"p99_{name}_ms": values.p99,
    }
    return {key: value * 1e3 for key, value in entries.items()}


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError("no such file", source=path, fix="check the path") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"unreadable: {error}", source=path, fix="give a JSON file") from error
