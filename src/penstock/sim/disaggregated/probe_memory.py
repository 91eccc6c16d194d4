"""A file of probes, so that a search that was stopped goes on where it was.

JSON lines: the first says what the probes are about, each other one is a job and its answer. A
probe counts again only under the same subject; which GPUs are on offer, their prices and the rate
that is asked for may change between searches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

from penstock.errors import SpecError, StorageError
from penstock.plan.goodput.fleet import EngineChoice, Job, Probe

VERSION = 1


class ProbeMemory:
    """Probes by job, in ``path``. ``about`` is the subject, as text by key.

    Raises ``SpecError`` for a file that is not one of probes or is about something else, and
    ``StorageError`` when the disk refuses.
    """

    def __init__(self, path: Path, about: Mapping[str, str]) -> None:
        self._path = path
        self._known: dict[str, Probe] = {}
        head = {"penstock_probes": VERSION, "about": dict(about)}
        if path.exists() and path.stat().st_size:
            self._read(head)
        else:
            self._append(head)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, job: Job) -> Probe | None:
        return self._known.get(job_key(job))

    def keep(self, job: Job, probe: Probe) -> None:
        key = job_key(job)
        if key not in self._known:
            self._known[key] = probe
            self._append({"job": key, "probe": _plain(probe)})

    def _read(self, head: Mapping[str, Any]) -> None:
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")
            found = json.loads(lines[0])
            about, version = dict(found["about"]), found["penstock_probes"]
            for line in lines[1:-1]:
                entry = json.loads(line)
                self._known[str(entry["job"])] = _probe(entry["probe"])
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}; name another file") from error
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"is not a file of probes ({error})",
                source=self._path,
                fix="name another file, or delete this one",
            ) from error
        if version != VERSION:
            self._refuse("penstock_probes", version, VERSION)
        for key, asked in head["about"].items():
            if about.get(key) != asked:
                self._refuse(key, about.get(key), asked)
        if lines[-1]:
            # The last write was cut off: what follows must start on a line of its own.
            self._cut(len(lines[-1].encode()))

    def _refuse(self, key: str, found: object, asked: object) -> None:
        raise SpecError(
            f"answers another question: its {key} is {found}, not {asked}",
            source=self._path,
            key="--resume",
            fix="name another file",
        )

    def _cut(self, size: int) -> None:
        with self._path.open("r+b") as stream:
            stream.truncate(self._path.stat().st_size - size)

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry, allow_nan=False) + "\n")
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}; name another file") from error


def job_key(job: Job) -> str:
    """The same text for jobs whose runs are the same: prices do not matter."""
    engines = tuple((_priceless(choice), count) for choice, count in job.fleet.engines)
    digest = sha256(repr(replace(job.fleet, engines=engines)).encode()).hexdigest()[:16]
    stop = "verdict" if job.verdict_only else "full"
    return f"{job.fleet} | {digest} | {job.rate_per_s!r}/s | {job.seed} | {job.phase} | {stop}"


def _priceless(choice: EngineChoice) -> EngineChoice:
    accelerator = replace(choice.shape.accelerator, price_per_hour=None, source="")
    return replace(choice, shape=replace(choice.shape, accelerator=accelerator))


def _plain(probe: Probe) -> dict[str, Any]:
    return {key: None if value == inf else value for key, value in asdict(probe).items()}


def _probe(entry: Mapping[str, Any]) -> Probe:
    fields: dict[str, Any] = {key: inf if v is None else v for key, v in entry.items()}
    return Probe(**fields)
