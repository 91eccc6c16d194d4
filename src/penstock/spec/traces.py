"""Request traces: the public formats read row by row, and two of them written.

A reader never holds the file; ``TraceFile`` walks it again for each run. Arrivals are seconds
from the first request for formats with absolute times (Azure), as written otherwise.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TextIO

from penstock.errors import SpecError
from penstock.spec.files import read_json
from penstock.spec.workload import Request, SLOClass, class_picker
from penstock.storage import write_lines

TRACE_SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".json")
CHARACTERS_PER_TOKEN = 4.0
_EPOCH = datetime(2020, 1, 1)
_AZURE_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d+)?(?:Z|[+-]\d\d:?\d\d)?")

TraceFormat = Literal[
    "penstock",
    "azure",
    "burstgpt",
    "splitwise",
    "vidur",
    "helix",
    "mooncake",
    "llmservingsim",
    "sharegpt",
    "lengths",
]
Row = Mapping[str, Any]
NO_ARRIVALS: tuple[TraceFormat, ...] = ("sharegpt", "lengths")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where a format keeps its numbers, and how a time becomes seconds."""

    arrival: str | None
    prompt: str
    output: str
    seconds: Callable[[Any], float] = float
    absolute: bool = False
    class_name: str | None = None
    model: str | None = None
    hashes: str | None = None
    skip_empty_output: bool = False


def _azure_seconds(text: str) -> float:
    """``2023-11-16 18:15:46.6805900`` (any number of decimals, optional UTC offset)."""
    match = _AZURE_TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    moment = datetime.fromisoformat(match[1])
    return (moment - _EPOCH) // timedelta(seconds=1) + float(match[2] or 0.0)


_FORMATS: Mapping[TraceFormat, _Columns] = {
    "penstock": _Columns(
        "arrival_s", "prompt_tokens", "output_tokens", class_name="class", model="model"
    ),
    "azure": _Columns(
        "TIMESTAMP", "ContextTokens", "GeneratedTokens", _azure_seconds, absolute=True
    ),
    "burstgpt": _Columns("Timestamp", "Request tokens", "Response tokens", skip_empty_output=True),
    "splitwise": _Columns("arrival_timestamp", "prompt_size", "token_size"),
    "vidur": _Columns("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    "helix": _Columns("arrival_s", "input_tokens", "output_tokens"),
    "mooncake": _Columns(
        "timestamp", "input_length", "output_length", lambda ms: float(ms) / 1e3, hashes="hash_ids"
    ),
    "llmservingsim": _Columns(
        "arrival_time_ns", "input_toks", "output_toks", lambda ns: float(ns) / 1e9
    ),
    "lengths": _Columns(None, "input_tokens", "output_tokens"),
}


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A text file, gzipped or not. Raises ``SpecError`` where it cannot be read."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield file
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield file
    except FileNotFoundError:
        raise SpecError("file not found", source=path, fix="check the path") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError):
        raise SpecError("not a text trace", source=path, fix="give CSV, JSON or JSONL") from None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", source=path) from None


def detect_format(path: str | Path) -> TraceFormat:
    """Tell the format from the columns (or keys) of the file."""
    path = Path(path)
    with opened(path) as file:
        head = ""
        while not head.strip():
            head = file.readline(1 << 20)
            if not head:
                raise SpecError("the trace is empty", source=path, fix="give a file with requests")
    head = head.strip()
    if head[0] == "[" or (head[0] == "{" and path.suffix == ".json"):
        return "sharegpt"
    if head[0] == "{":
        try:
            names = set(json.loads(head))
        except json.JSONDecodeError:
            raise SpecError("not valid JSON", source=f"{path}:1") from None
    else:
        names = {name.strip() for name in next(csv.reader([head]))}
    for name, columns in _FORMATS.items():
        needed = {columns.prompt, columns.output}
        if columns.arrival is not None and name != "vidur":
            needed.add(columns.arrival)
        if needed <= names:
            return name
    known = "; ".join(
        f"{name}: " + ",".join(filter(None, (c.arrival, c.prompt, c.output)))
        for name, c in _FORMATS.items()
    )
    raise SpecError(
        f"no known trace format has these columns: {', '.join(sorted(names))[:120]}",
        source=path,
        fix=f"known: {known}",
    )


def _rows(path: Path, trace_format: TraceFormat) -> Iterator[tuple[int, Row]]:
    """(line number, row), streaming."""
    if trace_format == "sharegpt":
        yield from enumerate(_sharegpt(path), start=1)
        return
    if trace_format in ("mooncake", "llmservingsim"):
        with opened(path) as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, _json_row(path, line, text)
        return
    with opened(path) as file:
        reader = csv.reader(file)
        header: list[str] | None = None
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if header is None:
                header = [name.strip() for name in values]
                continue
            if len(values) != len(header):
                raise SpecError(
                    f"{len(values)} values for {len(header)} columns",
                    source=f"{path}:{reader.line_num}",
                )
            yield reader.line_num, dict(zip(header, values, strict=True))


def _json_row(path: Path, line: int, text: str) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"not valid JSON: {error.msg}", source=f"{path}:{line}") from None
    if not isinstance(row, dict):
        raise SpecError("a line must be one JSON object", source=f"{path}:{line}")
    return row


def _sharegpt(path: Path) -> Iterator[Row]:
    """First question and answer of each conversation; tokens estimated at 4 characters each."""
    data = read_json(path)
    if not isinstance(data, list):
        raise SpecError("ShareGPT files hold a list of conversations", source=path)
    for entry in data:
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list) or len(turns) < 2:
            continue
        texts = [turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2]]
        if all(isinstance(text, str) and text for text in texts):
            sizes = [max(1, round(len(str(text)) / CHARACTERS_PER_TOKEN)) for text in texts]
            yield {"input_tokens": sizes[0], "output_tokens": sizes[1]}


class _Reader:
    """Turns rows of one format into checked numbers."""

    def __init__(self, path: Path, trace_format: TraceFormat) -> None:
        self.path = path
        self.columns = _FORMATS["lengths" if trace_format == "sharegpt" else trace_format]
        self.format = trace_format

    def tokens(self, line: int, row: Row, key: str) -> int:
        value = self._value(line, row, key)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not number.is_integer() or number < 0:
            raise SpecError(
                "must be a whole number of tokens",
                source=f"{self.path}:{line}",
                key=key,
                value=value,
            )
        return int(number)

    def _value(self, line: int, row: Row, key: str) -> Any:
        if row.get(key) is None:
            raise SpecError("column is missing", source=f"{self.path}:{line}", key=key)
        return row[key]

    def arrival_s(self, line: int, row: Row) -> float:
        key = self.columns.arrival
        if key is None or (self.format == "vidur" and key not in row):
            raise SpecError(
                "this trace has lengths but no arrival times",
                source=self.path,
                fix=f"use it as `lengths: {{trace: {self.path.name}}}` with `arrivals:`",
            )
        value = self._value(line, row, key)
        try:
            seconds = self.columns.seconds(value)
        except (TypeError, ValueError):
            seconds = math.nan
        if not math.isfinite(seconds):
            raise SpecError("not a time", source=f"{self.path}:{line}", key=key, value=value)
        return seconds

    def lengths(self, line: int, row: Row) -> tuple[int, int] | None:
        """(prompt, output), or None for a failed request of formats that record those."""
        prompt = self.tokens(line, row, self.columns.prompt)
        output = self.tokens(line, row, self.columns.output)
        if output == 0 and self.columns.skip_empty_output:
            return None
        for key, value in ((self.columns.prompt, prompt), (self.columns.output, output)):
            if value < 1:
                raise SpecError(
                    "must be at least 1 token",
                    source=f"{self.path}:{line}",
                    key=key,
                    value=value,
                    fix="drop the row",
                )
        return prompt, output

    def hashes(self, line: int, row: Row) -> tuple[int, ...]:
        raw = row.get(self.columns.hashes) if self.columns.hashes else None
        if raw is None:
            return ()
        if not isinstance(raw, list) or not all(isinstance(item, int) for item in raw):
            raise SpecError(
                "must be a list of whole numbers",
                source=f"{self.path}:{line}",
                key=self.columns.hashes,
            )
        return tuple(raw)


def read_lengths(path: str | Path) -> tuple[tuple[int, int], ...]:
    """(prompt tokens, output tokens) of every row of a trace or a table of lengths, in order."""
    path = Path(path)
    reader = _Reader(path, detect_format(path))
    pairs = (reader.lengths(line, row) for line, row in _rows(path, reader.format))
    table = tuple(pair for pair in pairs if pair is not None)
    if not table:
        raise SpecError("the trace is empty", source=path, fix="give a file with requests")
    return table


@dataclass(frozen=True)
class TraceFile:
    """The requests of a trace file, streamed each time it is walked.

    ``start_s``/``end_s`` cut a window out of the file (arrivals then count from its start),
    ``rate_scale`` 2 makes requests come twice as fast, ``max_requests`` stops early. Requests of
    a file without classes get one of ``classes`` by share, from ``seed``. ``count`` and
    ``last_arrival_s`` are what ``open_trace`` counted, ``models`` those it met. A request of a
    model that names no class is in the class of the model's name, where there is one.
    """

    path: str
    trace_format: TraceFormat
    rate_scale: float = 1.0
    start_s: float = 0.0
    end_s: float = math.inf
    max_requests: int | None = None
    classes: tuple[SLOClass, ...] = ()
    seed: int = 0
    count: int = 0
    last_arrival_s: float = 0.0
    models: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    @property
    def rate_per_s(self) -> float:
        """Mean arrival rate."""
        return self.count / self.last_arrival_s if self.last_arrival_s > 0 else math.inf

    def at_rate(self, rate_per_s: float) -> TraceFile:
        """Return the trace sped up or slowed down to a mean rate."""
        factor = rate_per_s / self.rate_per_s if math.isfinite(self.rate_per_s) else 1.0
        return replace(
            self,
            rate_scale=self.rate_scale * factor,
            last_arrival_s=self.last_arrival_s / factor,
        )

    def __iter__(self) -> Iterator[Request]:
        """Yield the requests; raise ``SpecError`` with the line number at the first bad row."""
        reader = _Reader(Path(self.path), self.trace_format)
        pick = class_picker(self.classes, self.seed)
        names = [entry.name for entry in self.classes]
        origin = previous = None
        number = 0
        for line, row in _rows(reader.path, self.trace_format):
            time_s = reader.arrival_s(line, row)
            if previous is not None and time_s < previous:
                raise SpecError(
                    "arrivals must not go back in time",
                    source=f"{self.path}:{line}",
                    key=reader.columns.arrival,
                    value=row[reader.columns.arrival or ""],
                    fix="sort the trace by arrival",
                )
            previous = time_s
            if origin is None:
                origin = time_s if reader.columns.absolute else 0.0
                if time_s < 0:
                    raise SpecError("arrivals start before 0", source=f"{self.path}:{line}")
            lengths = reader.lengths(line, row)
            time_s -= origin
            if lengths is None or time_s < self.start_s:
                continue
            if time_s >= self.end_s or number == self.max_requests:
                return
            written = row.get(reader.columns.class_name) if reader.columns.class_name else None
            if written and names and written not in names:
                raise SpecError(
                    "no such class", source=f"{self.path}:{line}", key="class", value=written
                )
            model = (row.get(reader.columns.model) or "") if reader.columns.model else ""
            yield Request(
                id=number,
                arrival_s=(time_s - self.start_s) / self.rate_scale,
                prompt_tokens=lengths[0],
                output_tokens=lengths[1],
                class_name=written or (model if model and model in names else pick()),
                model=model,
                prefix_hashes=reader.hashes(line, row),
            )
            number += 1


def open_trace(
    path: str | Path,
    *,
    rate_scale: float = 1.0,
    start_s: float = 0.0,
    end_s: float = math.inf,
    max_requests: int | None = None,
    classes: tuple[SLOClass, ...] = (),
    seed: int = 0,
) -> TraceFile:
    """Check a trace from end to end (in constant memory) and return it, counted."""
    trace = TraceFile(
        str(path), detect_format(path), rate_scale, start_s, end_s, max_requests, classes, seed
    )
    count, last_s = 0, 0.0
    models: dict[str, None] = {}
    for request in trace:
        count, last_s = count + 1, request.arrival_s
        models[request.model] = None
    if count == 0:
        raise SpecError(
            "the trace is empty" if end_s == math.inf else "no request in this window",
            source=path,
            fix="give a file with requests, or a wider window",
        )
    named = tuple(sorted(model for model in models if model))
    return replace(trace, count=count, last_arrival_s=last_s, models=named)


def read_column(path: str | Path, name: str) -> tuple[int, ...]:
    """The whole numbers (0 or more) of one column of a CSV file."""
    path = Path(path)
    values = []
    for line, row in _rows(path, "lengths"):
        text = str(row.get(name) or "").strip()
        if not (text.isascii() and text.isdigit()):
            raise SpecError(
                "must be a whole number", source=f"{path}:{line}", key=name, value=row.get(name)
            )
        values.append(int(text))
    return tuple(values)


def penstock_lines(requests: Iterable[Request]) -> Iterator[str]:
    """Our CSV: ``arrival_s,prompt_tokens,output_tokens[,class][,model]``. Times keep every digit.

    The first request decides which of the last two there are.
    """
    stream = iter(requests)
    first = next(stream, None)
    named = first is not None and bool(first.class_name)
    modelled = first is not None and bool(first.model)
    extra = (",class" if named else "") + (",model" if modelled else "")
    yield f"arrival_s,prompt_tokens,output_tokens{extra}\n"
    for request in chain([first] if first is not None else [], stream):
        line = f"{request.arrival_s!r},{request.prompt_tokens},{request.output_tokens}"
        line += f",{_cell(request.class_name)}" if named else ""
        yield line + (f",{_cell(request.model)}" if modelled else "") + "\n"


def _cell(text: str) -> str:
    """``text`` as a CSV cell."""
    if not any(mark in text for mark in ',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'


def azure_lines(requests: Iterable[Request]) -> Iterator[str]:
    """The Azure LLM format (100 ns resolution), counted from 2024-01-01."""
    yield "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    start = datetime(2024, 1, 1)
    for request in requests:
        ticks = round(request.arrival_s * 10_000_000)
        moment = start + timedelta(seconds=ticks // 10_000_000)
        stamp = f"{moment:%Y-%m-%d %H:%M:%S}.{ticks % 10_000_000:07d}"
        yield f"{stamp},{request.prompt_tokens},{request.output_tokens}\n"


def write_trace(path: str | Path, requests: Iterable[Request], *, azure: bool = False) -> None:
    """Write ``requests`` row by row, in our CSV or Azure's; the file appears when it is whole."""
    lines = azure_lines(requests) if azure else penstock_lines(requests)
    write_lines(Path(path), lines)
