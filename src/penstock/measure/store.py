"""A run as a folder: written whole, read strictly.

``run.json``        schema, name, header, window, names, routes, counters, events
``requests.csv``    one row per request; an empty cell is "did not happen"
``nodes.csv``, ``links.csv``    sums over the run, when recorded
``token_offsets.npy``, ``token_times_s.npy``    ragged iteration times
``series_busy.npy``, ``series_kv_use.npy``, ``series_queued.npy``    ``[buckets, nodes]``

Columns of ``requests.csv`` (seconds are on the run's clock):

id                  number of the request
arrival_s           when it was sent
admitted_s          when it left the queue for its route
first_token_s, last_token_s    completion of its first and its latest output token
prompt_tokens, output_tokens   as asked
generated_tokens    as produced so far
status              finished, running, queued, rejected, dropped or failed
preemptions         how often it lost its KV memory and had to be read again
class_index         position in ``class_names`` of run.json
route_index         position in ``routes`` of run.json; -1 = never routed
model_index         position in ``model_names`` of run.json; only in runs of several models

Equal runs give equal bytes. Text is UTF-8; floats are written so that they read back exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.measure.columns import (
    WRITE_AGAIN,
    cells,
    floats,
    integers,
    read_array,
    read_csv,
    write_csv,
)
from penstock.measure.run import (
    STATUS,
    LinkTotals,
    NodeSeries,
    NodeTotals,
    RequestTable,
    Run,
    RunEvent,
    TokenTimes,
)
from penstock.storage import new_folder

SCHEMA = "penstock.run/1"
RUN_FILE = "run.json"

REQUEST_COLUMNS = (
    "id",
    "arrival_s",
    "admitted_s",
    "first_token_s",
    "last_token_s",
    "prompt_tokens",
    "output_tokens",
    "generated_tokens",
    "status",
    "preemptions",
    "class_index",
    "route_index",
)
_MODEL = "model_index"
_NODE_COLUMNS = (
    "node",
    "busy_s",
    "batches",
    "prefill_tokens",
    "decode_tokens",
    "peak_kv_fraction",
    "prompt_residence_s",
    "prompt_visits",
)
_LINK_COLUMNS = ("src", "dst", "busy_s", "bytes")
_SERIES = ("busy", "kv_use", "queued")
_KEYS = (
    "schema",
    "name",
    "header",
    "window_s",
    "first_iteration_is_token",
    "requests",
    "class_names",
    "counters",
    "events",
    "routes",
    "node_series",
    "has_nodes",
    "has_links",
)
_T = TypeVar("_T")


def write_run(run: Run, directory: Path) -> None:
    """Write ``run`` to ``directory``, replacing an earlier run there.

    Raises ``SpecError`` when the folder holds something else, ``StorageError`` when the disk
    refuses. Either the whole folder appears or nothing changes.
    """
    check_replaceable(directory)
    with new_folder(directory) as folder:
        _fill(run, folder)


def check_replaceable(directory: Path) -> None:
    """Refuse a place that holds something else than a run. Raises ``SpecError``."""
    if directory.exists() and not directory.is_dir():
        raise SpecError("is a file, not a folder", source=directory, fix="choose another -o")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / RUN_FILE).is_file():
        raise SpecError(
            "the folder holds files that are not a run",
            source=directory,
            fix="choose a new folder with -o",
        )


def read_run(directory: Path) -> Run:
    """Read a run folder. Raises ``SpecError`` (file, key, fix) for a corrupt or foreign one."""
    reader = _Reader(directory)
    requests = reader.requests()
    return Run(
        name=reader.value("name", str),
        header=reader.value("header", dict),
        window_s=reader.window(),
        requests=requests,
        tokens=reader.tokens(len(requests.id)),
        nodes=reader.nodes() if reader.value("has_nodes", bool) else None,
        node_series=reader.series(),
        links=reader.links() if reader.value("has_links", bool) else None,
        events=reader.events(),
        routes=reader.routes(),
        class_names=tuple(str(name) for name in reader.value("class_names", list)),
        model_names=reader.model_names(),
        first_iteration_is_token=reader.value("first_iteration_is_token", bool),
        counters=reader.value("counters", dict),
    )


def plain(value: object) -> object:
    """Return ``value`` as JSON types: mappings, lists, numbers, text; non-finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(value)


def _fill(run: Run, folder: Path) -> None:
    series = run.node_series
    document = {
        "schema": SCHEMA,
        "name": run.name,
        "header": run.header,
        "window_s": run.window_s,
        "first_iteration_is_token": run.first_iteration_is_token,
        "requests": len(run.requests.id),
        "class_names": run.class_names,
        **({"model_names": run.model_names} if run.model_names else {}),
        "counters": run.counters,
        "events": [[e.time_s, e.kind, e.detail] for e in run.events],
        "routes": run.routes,
        "node_series": None
        if series is None
        else {"names": series.names, "bucket_s": series.bucket_s, "start_s": series.start_s},
        "has_nodes": run.nodes is not None,
        "has_links": run.links is not None,
    }
    text = json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / RUN_FILE).write_text(text + "\n", encoding="utf-8", newline="\n")
    table = run.requests
    columns: list[Sequence[object]] = [
        [STATUS[i] for i in table.status.tolist()]
        if name == "status"
        else cells(getattr(table, name))
        for name in REQUEST_COLUMNS
    ]
    names: tuple[str, ...] = REQUEST_COLUMNS
    if run.model_names and table.model_index is not None:
        names = (*names, _MODEL)
        columns.append(cells(table.model_index))
    write_csv(folder / "requests.csv", names, columns)
    np.save(folder / "token_offsets.npy", run.tokens.offsets.astype(np.int64), allow_pickle=False)
    np.save(folder / "token_times_s.npy", run.tokens.times_s.astype(np.float64), allow_pickle=False)
    if run.nodes is not None:
        sums = [cells(getattr(run.nodes, name)) for name in _NODE_COLUMNS[1:]]
        write_csv(folder / "nodes.csv", _NODE_COLUMNS, [run.nodes.names, *sums])
    if run.links is not None:
        links = run.links
        ends = [links.src, links.dst]
        sums = [cells(links.busy_s), cells(links.bytes)]
        write_csv(folder / "links.csv", _LINK_COLUMNS, [*ends, *sums])
    if series is not None:
        for name in _SERIES:
            array = getattr(series, name).astype(np.float64)
            np.save(folder / f"series_{name}.npy", array, allow_pickle=False)


class _Reader:
    """Reads the parts of one run folder; every fault is a ``SpecError`` naming the file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / RUN_FILE
        self.document = self._document()

    def _document(self) -> Mapping[str, object]:
        if not self.path.is_file():
            raise SpecError(
                "not a run folder: run.json is missing",
                source=self.directory,
                fix="give a folder written by `penstock simulate`, `serve` or `bench`",
            )
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SpecError(f"unreadable: {error}", source=self.path, fix=WRITE_AGAIN) from error
        schema = document.get("schema") if isinstance(document, dict) else None
        if not isinstance(document, dict) or schema != SCHEMA:
            raise self._fault("schema", f"must be {SCHEMA!r}", schema)
        for key in _KEYS:
            if key not in document:
                raise self._fault(key, "missing")
        return document

    def _fault(self, key: str, problem: str, value: object = None) -> SpecError:
        return SpecError(problem, source=self.path, key=key, value=value, fix=WRITE_AGAIN)

    def value(self, key: str, kind: type[_T]) -> _T:
        value = self.document[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._fault(key, f"must be of type {kind.__name__}", value)
        return value

    def window(self) -> tuple[float, float]:
        window = self.value("window_s", list)
        numbers = [x for x in window if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(window) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
            raise self._fault("window_s", "must be [start, end] in seconds, start < end", window)
        return float(numbers[0]), float(numbers[1])

    def model_names(self) -> tuple[str, ...]:
        names = self.document.get("model_names", [])
        if not isinstance(names, list):
            raise self._fault("model_names", "must be a list of names", names)
        return tuple(str(name) for name in names)

    def requests(self) -> RequestTable:
        path = self.directory / "requests.csv"
        models = len(self.model_names())
        columns = read_csv(path, (*REQUEST_COLUMNS, _MODEL) if models else REQUEST_COLUMNS)
        expected = self.value("requests", int)
        if len(columns["id"]) != expected:
            raise SpecError(
                f"{len(columns['id'])} rows instead of {expected}", source=path, fix=WRITE_AGAIN
            )
        number: dict[str, int] = {name: i for i, name in enumerate(STATUS)}
        unknown = [cell for cell in columns["status"] if cell not in number]
        if unknown:
            raise SpecError(
                f"must be one of {', '.join(STATUS)}",
                source=path,
                key="status",
                value=unknown[0],
                fix=WRITE_AGAIN,
            )

        def whole(name: str) -> NDArray[np.int64]:
            return integers(path, name, columns[name])

        def seconds(name: str) -> NDArray[np.float64]:
            return floats(path, name, columns[name])

        model_index = whole(_MODEL).astype(np.int16) if models else None
        if model_index is not None and not np.all((model_index >= 0) & (model_index < models)):
            raise SpecError(f"there are {models} models", source=path, key=_MODEL, fix=WRITE_AGAIN)
        return RequestTable(
            id=whole("id"),
            arrival_s=seconds("arrival_s"),
            admitted_s=seconds("admitted_s"),
            first_token_s=seconds("first_token_s"),
            last_token_s=seconds("last_token_s"),
            prompt_tokens=whole("prompt_tokens"),
            output_tokens=whole("output_tokens"),
            generated_tokens=whole("generated_tokens"),
            status=np.array([number[cell] for cell in columns["status"]], dtype=np.int8),
            preemptions=whole("preemptions").astype(np.int32),
            class_index=whole("class_index").astype(np.int16),
            route_index=whole("route_index").astype(np.int32),
            model_index=model_index,
        )

    def tokens(self, requests: int) -> TokenTimes:
        path = self.directory / "token_offsets.npy"
        offsets = read_array(path, 1).astype(np.int64)
        times = read_array(self.directory / "token_times_s.npy", 1).astype(np.float64)
        if (
            len(offsets) != requests + 1
            or offsets[0] != 0
            or offsets[-1] != len(times)
            or bool(np.any(np.diff(offsets) < 0))
        ):
            raise SpecError(
                f"does not divide {len(times)} times among {requests} requests",
                source=path,
                fix=WRITE_AGAIN,
            )
        return TokenTimes(offsets=offsets, times_s=times)

    def nodes(self) -> NodeTotals:
        path = self.directory / "nodes.csv"
        columns = read_csv(path, _NODE_COLUMNS)
        return NodeTotals(
            names=tuple(columns["node"]),
            busy_s=floats(path, "busy_s", columns["busy_s"]),
            batches=integers(path, "batches", columns["batches"]),
            prefill_tokens=integers(path, "prefill_tokens", columns["prefill_tokens"]),
            decode_tokens=integers(path, "decode_tokens", columns["decode_tokens"]),
            peak_kv_fraction=floats(path, "peak_kv_fraction", columns["peak_kv_fraction"]),
            prompt_residence_s=floats(path, "prompt_residence_s", columns["prompt_residence_s"]),
            prompt_visits=integers(path, "prompt_visits", columns["prompt_visits"]),
        )

    def links(self) -> LinkTotals:
        path = self.directory / "links.csv"
        columns = read_csv(path, _LINK_COLUMNS)
        return LinkTotals(
            src=tuple(columns["src"]),
            dst=tuple(columns["dst"]),
            busy_s=floats(path, "busy_s", columns["busy_s"]),
            bytes=floats(path, "bytes", columns["bytes"]),
        )

    def series(self) -> NodeSeries | None:
        if self.document["node_series"] is None:
            return None
        head = self.value("node_series", dict)
        names, bucket_s, start_s = (head.get(key) for key in ("names", "bucket_s", "start_s"))
        if not isinstance(names, list) or not all(
            isinstance(x, int | float) and not isinstance(x, bool) for x in (bucket_s, start_s)
        ):
            raise self._fault("node_series", "must hold names, bucket_s and start_s", head)
        arrays = {}
        for name in _SERIES:
            path = self.directory / f"series_{name}.npy"
            arrays[name] = read_array(path, 2).astype(np.float64)
            if arrays[name].shape != (len(arrays["busy"]), len(names)):
                raise SpecError(
                    f"has shape {arrays[name].shape}, not (buckets, {len(names)} nodes)",
                    source=path,
                    fix=WRITE_AGAIN,
                )
        return NodeSeries(
            names=tuple(str(name) for name in names),
            bucket_s=float(bucket_s),  # type: ignore[arg-type]
            start_s=float(start_s),  # type: ignore[arg-type]
            **arrays,
        )

    def events(self) -> tuple[RunEvent, ...]:
        events = []
        for item in self.value("events", list):
            if not (isinstance(item, list) and len(item) == 3):
                raise self._fault("events", "each must be [seconds, kind, detail]", item)
            events.append(RunEvent(float(item[0]), str(item[1]), str(item[2])))
        return tuple(events)

    def routes(self) -> tuple[tuple[str, ...], ...]:
        routes = self.value("routes", list)
        for route in routes:
            if not isinstance(route, list):
                raise self._fault("routes", "each must be a list of names", route)
        return tuple(tuple(str(name) for name in route) for route in routes)
