"""The document of a fingerprint: what cuts of one checkpoint took on one machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from penstock.cost.fingerprint import Cut, Fingerprint, Measurement
from penstock.errors import SpecError
from penstock.spec.files import read_text, read_yaml
from penstock.spec.strict import Bytes, Count, Duration, Strict, validate
from penstock.spec.variants import Precision
from penstock.storage import write_text

_INLINE: dict[str, Any] = {"sort_keys": False, "default_flow_style": True, "width": 1000}
_DIGITS = 6


class Shape(Strict):
    """What must be known of the whole model: parameters of a layer, KV values of a token in it."""

    layers: Count
    hidden_size: Count
    layer_parameters: Count
    kv_values: Count


class Machine(Strict):
    """Where it was measured; ``threads`` are those of each worker."""

    name: str
    cores: Count
    memory: Bytes
    threads: Count
    torch: str


class CutRun(Strict):
    """A batch through a cut, from start to end.

    ``prefill`` ends with the first token of every sequence, ``latency`` with the last one.
    ``memory`` is resident over all processes, with KV memory for ``kv_tokens``.
    """

    dtype: str
    tp: Count
    pp: Count
    layers: Count
    prompt_tokens: Count
    output_tokens: Count
    batch: Count
    prefill: Duration
    latency: Duration
    memory: Bytes
    kv_tokens: Count


class CutChunk(Strict):
    """A chunk of a prompt of which ``cached_tokens`` have KV entries already."""

    dtype: str
    tp: Count
    pp: Count
    layers: Count
    tokens: Count
    cached_tokens: Count
    seconds: Duration


class ServerTimes(Strict):
    """What a server adds: to a step, to each of its sequences, to a request, to a prompt token."""

    step: Duration
    sequence: Duration
    request: Duration
    prompt_token: Duration


class FingerprintFile(Strict):
    """Measured cuts of ``model``, whose checkpoint is ``stored`` in that dtype."""

    penstock_fingerprint: Literal[1]
    model: str
    stored: str
    accelerator: str
    source: str
    shape: Shape
    machine: Machine
    notes: tuple[str, ...] = ()
    server: ServerTimes | None = None
    runs: tuple[CutRun, ...] = Field(min_length=1)
    chunks: tuple[CutChunk, ...] = ()

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.dtype for run in self.runs))


def read_fingerprint(path: Path | str) -> FingerprintFile:
    """Raises ``SpecError`` for a file that cannot be read, is no fingerprint or has odd times."""
    found = validate(FingerprintFile, read_yaml(Path(path)), path)
    for i, run in enumerate(found.runs):
        if not 0 < run.prefill <= run.latency:
            raise SpecError(
                "must be above 0 and at most the latency",
                source=path,
                key=f"runs[{i}].prefill",
                value=run.prefill,
            )
    return found


def is_fingerprint(path: Path | str) -> bool:
    """Whether the document in ``path`` says that it is a fingerprint."""
    document = read_yaml(Path(path))
    return isinstance(document, Mapping) and "penstock_fingerprint" in document


def digest_of(path: Path | str) -> str:
    """Short hash of the file: documents that refer to it notice when it changes."""
    return hashlib.sha256(read_text(Path(path)).encode()).hexdigest()[:16]


def fingerprint_text(document: FingerprintFile) -> str:
    """``document`` as YAML, one run a line."""
    given = document.model_dump(exclude_defaults=True)
    rows = {name: given.pop(name, ()) for name in ("runs", "chunks")}
    parts = [yaml.safe_dump(_plain(given), sort_keys=False, allow_unicode=True)]
    for name, lines in rows.items():
        if lines:
            parts.append(f"{name}:\n")
            parts += ["  - " + yaml.safe_dump(_plain(line), **_INLINE) for line in lines]
    return "".join(parts)


def write_fingerprint(document: FingerprintFile, path: Path) -> None:
    """Write ``fingerprint_text`` to ``path``, whole or not at all."""
    write_text(path, fingerprint_text(document))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def cuts_of(document: FingerprintFile, prompt_tokens: int) -> Mapping[Precision, Fingerprint]:
    """The cuts at one prompt length, in the form that MaverIQ's estimator takes."""
    cuts: dict[Precision, dict[Cut, Measurement]] = {}
    for run in document.runs:
        if run.prompt_tokens == prompt_tokens:
            cut = Cut(run.tp, run.pp, run.layers, run.output_tokens, run.batch)
            own = cuts.setdefault(Precision(run.dtype), {})
            own[cut] = Measurement(run.latency, float(run.memory))
    return {
        precision: Fingerprint(document.model, precision, own) for precision, own in cuts.items()
    }
