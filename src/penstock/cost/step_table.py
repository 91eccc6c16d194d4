"""Step times a user measured: a YAML file (format in ``docs/cost_models.md``).

Decode steps of one batch size are taken as a line over the summed context (least squares over
its points), and lines of neighbouring batch sizes are interpolated; so spans have a closed form.
Prefill steps are piecewise linear in prompt tokens. A step of both costs its prefill and what the
decodes add to reading the weights. Beyond the measured range lines go on, marked extrapolated.
"""

from __future__ import annotations

import csv
import hashlib
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from penstock.cost.base import Provenance
from penstock.cost.step_line import LineTimer, StepLine
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape, PrefillChunk
from penstock.errors import SpecError
from penstock.spec.catalogue import catalogue
from penstock.spec.files import read_text, read_yaml
from penstock.spec.model import ModelSpec
from penstock.spec.names import normalise
from penstock.spec.strict import Bandwidth, Count, Duration, Strict, validate

CSV_COLUMNS = ("phase", "seqs", "context_tokens", "tokens", "cached_tokens", "seconds")


class DecodePoint(Strict):
    seqs: Count
    context_tokens: int = Field(ge=0)
    seconds: Duration


class PrefillPoint(Strict):
    tokens: Count
    cached_tokens: int = Field(default=0, ge=0)
    seconds: Duration


class HostTimes(Strict):
    """What a request takes outside of steps: ``fixed`` and so much for each prompt token."""

    fixed: Duration
    per_prompt_token: Duration = 0.0


class LinkTimes(Strict):
    """A line over bytes: what two workers take to hand something over."""

    bandwidth: Bandwidth
    latency: Duration = 0.0


class StepTableFile(Strict):
    """Step times of one model on one engine shape.

    ``mixed_saves``: seconds that a step of prompts and decodes together saves against a step of
    each; None = what reading the weights takes. ``beside``: what a step takes longer, as a share,
    while another engine of the machine is busy. ``host``, ``hidden_states`` (between pipeline
    stages) and ``kv_transfer`` (from a prefill to a decode engine) are of the server around the
    steps.
    """

    model: str
    accelerator: str
    source: str
    tensor_parallel_size: Count = 1
    pipeline_parallel_size: Count = 1
    kv_capacity_tokens: Count | None = None
    decode: tuple[DecodePoint, ...] = ()
    prefill: tuple[PrefillPoint, ...] = ()
    csv: str | None = None
    provenance: Literal["measured", "fitted"] = "measured"
    error: str = ""
    mixed_saves: Duration | None = None
    beside: float = Field(default=0.0, ge=0)
    host: HostTimes | None = None
    hidden_states: LinkTimes | None = None
    kv_transfer: LinkTimes | None = None


class StepTable:
    """``StepCostModel`` of the one engine shape that was measured.

    Raises ``SpecError`` for a file that cannot be read, lacks points of a phase, or belongs to
    another model.
    """

    def __init__(self, model: ModelSpec, path: Path | str) -> None:
        self._model, self._path = model, Path(path)
        file = validate(StepTableFile, read_yaml(self._path), self._path)
        decode, prefill = list(file.decode), list(file.prefill)
        text = read_text(self._path)
        if file.csv is not None:
            beside = self._path.parent / file.csv
            more = read_points(beside)
            text += read_text(beside)
            decode += more[0]
            prefill += more[1]
        for phase, points in (("decode", decode), ("prefill", prefill)):
            if not points:
                raise SpecError("no points were measured", source=self._path, key=phase)
            if any(point.seconds <= 0 for point in points):
                raise SpecError("seconds must be above 0", source=self._path, key=phase)
        if normalise(file.model) != normalise(model.name):
            raise SpecError(
                f"was measured with {file.model}, not {model.name}", source=self._path, key="model"
            )
        self._file = file
        self._lines = decode_lines(decode)
        try:
            self._prompts, self._pair_s = prefill_curve(prefill)
        except SpecError as error:
            raise error.at(self._path) from None
        self._error = _decode_error(decode, self._lines)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def model(self) -> ModelSpec:
        return self._model

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        seqs = [line.seqs for line in self._lines]
        tokens = [size for size, _ in self._prompts]
        notes = (
            [] if self._pair_s else ["no prefill point has cached tokens: their cost is left out"]
        )
        if not any(line.context_s for line in self._lines):
            notes.append("one context per batch size: decode time does not grow with context")
        return (
            Provenance(
                self._file.provenance,
                f"{self._file.source} ({self._path.name})",
                error=self._file.error or f"decode lines: largest residual {self._error:.1%}",
                domain=f"{self._file.accelerator}, {seqs[0]} to {seqs[-1]} sequences, "
                f"prompts of {tokens[0]} to {tokens[-1]} tokens",
                notes=tuple(notes),
            ),
        )

    def step_timer(self, shape: EngineShape) -> TableTimer:
        self._check(shape)
        return TableTimer(
            self._lines,
            self._prompts,
            self._pair_s,
            shape.pipeline_parallel_size,
            self._file.mixed_saves,
        )

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        """As the file states; else what the roofline finds beside the weights."""
        self._check(shape)
        if self._file.kv_capacity_tokens is not None:
            return self._file.kv_capacity_tokens
        return StepRoofline(self._model).kv_capacity_tokens(shape)

    def to_dict(self) -> dict[str, object]:
        return {"kind": "step-table", "path": str(self._path), "digest": self.digest}

    def _check(self, shape: EngineShape) -> None:
        measured = self._file
        if _accelerator(measured.accelerator) != _accelerator(shape.accelerator.name):
            raise SpecError(
                f"was measured on {measured.accelerator}, not {shape.accelerator.name}",
                source=self._path,
                key="accelerator",
            )
        for key in ("tensor_parallel_size", "pipeline_parallel_size"):
            if getattr(measured, key) != getattr(shape, key):
                raise SpecError(
                    f"was measured with {getattr(measured, key)}, not {getattr(shape, key)}",
                    source=self._path,
                    key=key,
                )

    @property
    def beside(self) -> float:
        """See ``penstock.cost.steps.SharedMachineCost``."""
        return self._file.beside

    @property
    def file(self) -> StepTableFile:
        """The document as it was read."""
        return self._file


class HostedStepTable(StepTable):
    """A step table whose file also says what requests take outside of steps (``HostedCost``)."""

    def request_s(self, prompt_tokens: int) -> float:
        """See ``penstock.cost.steps.HostedCost``."""
        host = self._file.host
        assert host is not None
        return host.fixed + host.per_prompt_token * prompt_tokens


def read_step_table(model: ModelSpec, path: Path | str) -> StepTable:
    """The step times in ``path``, with the host's share where the file states it."""
    table = StepTable(model, path)
    return table if table.file.host is None else HostedStepTable(model, path)


def _accelerator(name: str) -> str:
    """The catalogue's name where it has one: a CPU, say, is in no catalogue."""
    known = catalogue()
    try:
        return known.get(name).name
    except SpecError:
        return normalise(name)


class TableTimer(LineTimer):
    """``StepTimer`` over measured lines; measured steps pass all stages, hence the division."""

    def __init__(
        self,
        lines: Sequence[StepLine],
        prompts: Sequence[tuple[int, float]],
        pair_s: float,
        stages: int,
        mixed_saves_s: float | None = None,
    ) -> None:
        super().__init__()
        self._measured = lines
        self._prompts, self._pair_s, self._stages = prompts, pair_s, stages
        self._saved_s = self._line(1).fixed_s if mixed_saves_s is None else mixed_saves_s / stages

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        if not prefill:
            return self.decode_s(seqs, context_tokens)
        tokens = sum(chunk for chunk, _ in prefill)
        pairs = sum(chunk * cached for chunk, cached in prefill)
        prompt_s = (self._prompt_s(tokens) + pairs * self._pair_s) / self._stages
        if not seqs:
            return prompt_s
        decode_s = self.decode_s(seqs, context_tokens)
        return max(prompt_s, decode_s, prompt_s + decode_s - self._saved_s)

    def _new_line(self, seqs: int) -> StepLine:
        low, high, share = _between([line.seqs for line in self._measured], seqs)
        a, b = self._measured[low], self._measured[high]
        fixed_s = max(a.fixed_s + share * (b.fixed_s - a.fixed_s), 1e-9)
        context_s = max(a.context_s + share * (b.context_s - a.context_s), 0.0)
        return StepLine(seqs, fixed_s / self._stages, context_s / self._stages)

    def _prompt_s(self, tokens: int) -> float:
        sizes = [size for size, _ in self._prompts]
        if tokens <= sizes[0]:
            return self._prompts[0][1]
        low, high, share = _between(sizes, tokens)
        a, b = self._prompts[low][1], self._prompts[high][1]
        if low == high:
            return a * tokens / sizes[low]
        return max(a + share * (b - a), 1e-9)


def _between(sizes: Sequence[int], wanted: int) -> tuple[int, int, float]:
    """(left, right, share of the right) of ``wanted``; lines go on beyond the last size."""
    if len(sizes) == 1 or wanted <= sizes[0]:
        return 0, 0, 0.0
    right = min(bisect_left(sizes, wanted), len(sizes) - 1)
    left = right - 1
    return left, right, (wanted - sizes[left]) / (sizes[right] - sizes[left])


def decode_lines(points: Sequence[DecodePoint]) -> list[StepLine]:
    """One line per batch size; sizes with one context borrow the nearest slope."""
    groups: dict[int, list[DecodePoint]] = {}
    for point in points:
        groups.setdefault(point.seqs, []).append(point)
    slopes = {}
    for seqs, own in groups.items():
        if len({point.context_tokens for point in own}) > 1:
            context = np.array([float(point.context_tokens) for point in own])
            seconds = np.array([point.seconds for point in own])
            centred = context - context.mean()
            slopes[seqs] = max(0.0, float(centred @ seconds / (centred @ centred)))
    lines = []
    for seqs in sorted(groups):
        own = groups[seqs]
        near = sorted((abs(known - seqs), known) for known in slopes)
        slope = slopes[near[0][1]] if near else 0.0
        fixed = sum(point.seconds - slope * point.context_tokens for point in own) / len(own)
        if fixed <= 0:
            slope, fixed = 0.0, sum(point.seconds for point in own) / len(own)
        lines.append(StepLine(seqs, fixed, slope))
    return lines


def prefill_curve(points: Sequence[PrefillPoint]) -> tuple[list[tuple[int, float]], float]:
    """(seconds by prompt tokens, seconds per pair of prompt token and cached token)."""
    whole: dict[int, list[float]] = {}
    for point in points:
        if point.cached_tokens == 0:
            whole.setdefault(point.tokens, []).append(point.seconds)
    if not whole:
        raise SpecError("needs points without cached tokens", key="prefill")
    curve = [(size, sum(own) / len(own)) for size, own in sorted(whole.items())]
    base = TableTimer([StepLine(1, 1.0, 0.0)], curve, 0.0, 1)
    pairs = [
        (point.tokens * point.cached_tokens, point.seconds - base.step_s([(point.tokens, 0)], 0, 0))
        for point in points
        if point.cached_tokens
    ]
    if not pairs:
        return curve, 0.0
    slope = sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs)
    return curve, max(0.0, slope)


def read_points(path: Path) -> tuple[list[DecodePoint], list[PrefillPoint]]:
    """Points of a CSV file with the columns of ``CSV_COLUMNS``; those of one phase may be empty."""
    rows = csv.DictReader(read_text(path).splitlines())
    if set(rows.fieldnames or ()) - set(CSV_COLUMNS) or "phase" not in (rows.fieldnames or ()):
        raise SpecError(
            "unknown columns",
            source=path,
            value=",".join(rows.fieldnames or ()),
            fix="use " + ",".join(CSV_COLUMNS),
        )
    decode: list[DecodePoint] = []
    prefill: list[PrefillPoint] = []
    for number, row in enumerate(rows, start=2):
        place = f"{path}:{number}"
        phase = (row.pop("phase") or "").strip()
        data: Mapping[str, object] = {k: _number(v, k, place) for k, v in row.items() if v}
        if phase == "decode":
            decode.append(validate(DecodePoint, data, place))
        elif phase == "prefill":
            prefill.append(validate(PrefillPoint, data, place))
        else:
            raise SpecError("must be decode or prefill", source=place, key="phase", value=phase)
    return decode, prefill


def _number(text: str, key: str, place: str) -> float | int:
    try:
        value = float(text) if key == "seconds" else int(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError("must be a number", source=place, key=key, value=text)
    return value


def _decode_error(points: Sequence[DecodePoint], lines: Sequence[StepLine]) -> float:
    timer = TableTimer(lines, [(1, 1.0)], 0.0, 1)
    return max(abs(timer.decode_s(p.seqs, p.context_tokens) / p.seconds - 1) for p in points)
