"""Step times and memory of every stored form on every shape, asked once and kept as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from penstock.cost.steps import EngineShape, StepCostModel, StepTimer, WeighedCost, stage_timers
from penstock.errors import Infeasible, SpecError
from penstock.plan.joint.state import CHUNK_TOKENS, MAX_SEQS, Floats, Steps
from penstock.plan.pool_question import CostOf
from penstock.spec.hardware import Accelerator
from penstock.spec.model import ModelSpec

SEQS = (1, 2, 4, 8, 16, 32, 64, 128, MAX_SEQS)
PROMPTS = (1, 16, 64, 128, 256, 512, 1024, CHUNK_TOKENS, 4096, 8192, 16384, 32768)
NEAR_TOKENS, FAR_TOKENS = 128, 2048
"""Context of a sequence at the two points that a line of decode steps goes through."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A shape of groups: ``pipeline`` stages of ``tensor`` GPUs of one type."""

    gpu: str
    tensor: int
    pipeline: int

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        text = f"{self.gpu} TP{self.tensor}"
        return text if self.pipeline == 1 else f"{text} PP{self.pipeline}"


@dataclass(frozen=True, slots=True)
class Row:
    """One stored form on one shape. Bytes are of the fullest GPU.

    ``index`` is its row in ``Steps``; ``kv_tokens`` what it holds with no other model beside it.
    """

    index: int
    weight_bytes: float
    token_bytes: float
    kv_tokens: int

    @property
    def room_bytes(self) -> float:
        """For weights and KV memory together."""
        return self.weight_bytes + self.token_bytes * self.kv_tokens


@dataclass
class CostBook:
    """Rows by form and shape. ``why``: what keeps a form from a shape, in words."""

    cost_of: CostOf
    utilization: float
    accelerators: dict[str, Accelerator] = field(default_factory=dict)
    why: dict[tuple[ModelSpec, Kind], str] = field(default_factory=dict)
    _rows: dict[tuple[ModelSpec, Kind], Row | None] = field(default_factory=dict)
    _costs: dict[ModelSpec, StepCostModel] = field(default_factory=dict)
    _fixed: list[Floats] = field(default_factory=list)
    _slope: list[Floats] = field(default_factory=list)
    _prefill: list[Floats] = field(default_factory=list)
    _steps: Steps | None = None

    def cost(self, spec: ModelSpec) -> StepCostModel:
        found = self._costs.get(spec)
        if found is None:
            found = self._costs[spec] = self.cost_of(spec)
        return found

    def row(self, spec: ModelSpec, kind: Kind) -> Row | None:
        """The row, or None where the form does not fit the shape."""
        key = (spec, kind)
        if key not in self._rows:
            self._rows[key] = self._make(spec, kind)
        return self._rows[key]

    @property
    def steps(self) -> Steps:
        """All rows so far."""
        if self._steps is None or len(self._steps.fixed) < len(self._fixed):
            self._steps = Steps(
                np.array(self._fixed),
                np.array(self._slope),
                np.array(PROMPTS, dtype=np.float64),
                np.array(self._prefill),
            )
        return self._steps

    def alone_s(self, row: Row, prompt: float, output: float) -> float:
        """Seconds of one request on an idle engine."""
        prefill = float(np.interp(prompt, PROMPTS, self._prefill[row.index]))
        context = prompt + output / 2
        step_s = self._fixed[row.index][1] + self._slope[row.index][1] * context
        return prefill + max(0.0, output - 1) * float(step_s)

    def busy_s(self, row: Row, prompt: float, output: float, seqs: int) -> float:
        """Lane seconds that a request costs where ``seqs`` decode together."""
        prefill = float(np.interp(prompt, PROMPTS, self._prefill[row.index]))
        fixed, slope = self._fixed[row.index][seqs], self._slope[row.index][seqs]
        step_s = fixed + slope * seqs * (prompt + output / 2)
        return prefill + max(0.0, output - 1) * float(step_s) / seqs

    def _make(self, spec: ModelSpec, kind: Kind) -> Row | None:
        if kind.pipeline > spec.num_hidden_layers:
            self.why[spec, kind] = f"it has only {spec.num_hidden_layers} layers"
            return None
        accelerator = self.accelerators[kind.gpu]
        shape = EngineShape(accelerator, kind.tensor, kind.pipeline, self.utilization)
        try:
            cost = self.cost(spec)
            tokens = cost.kv_capacity_tokens(shape)
            timers = stage_timers(cost, shape)
        except Infeasible as error:
            self.why[spec, kind] = error.reason
            return None
        except SpecError as error:
            self.why[spec, kind] = str(error)
            return None
        weight, token = stage_bytes(spec, kind)
        # A cost model need not know the memory of this very accelerator.
        tokens = min(tokens, int((accelerator.memory_bytes * self.utilization - weight) / token))
        if tokens < 1:
            self.why[spec, kind] = "its weights fill the GPUs"
            return None
        fixed, slope = _lines(timers)
        self._fixed.append(fixed)
        self._slope.append(slope)
        self._prefill.append(np.array([_prompt_s(timers, tokens) for tokens in PROMPTS]))
        weight, token = stage_bytes(spec, kind)
        if isinstance(cost, WeighedCost):
            weight = cost.weight_bytes_per_accelerator(shape)
        return Row(len(self._fixed) - 1, weight, token, tokens)


def stage_bytes(spec: ModelSpec, kind: Kind) -> tuple[float, float]:
    """(weights, KV memory of a token) of the fullest GPU, in bytes."""
    layers = spec.num_hidden_layers
    each, more = divmod(layers, kind.pipeline)
    weight, start = 0, 0
    for stage in range(kind.pipeline):
        end = start + each + (stage < more)
        weight = max(weight, spec.slice_weight_bytes(start, end))
        start = end
    # Latent caches, and KV heads beyond their number, are held once a GPU.
    split = 1 if spec.mla is not None else min(kind.tensor, spec.num_key_value_heads)
    held = each + (more > 0)
    return weight / kind.tensor, spec.kv_bytes_per_token_per_layer * held / split


def _lines(timers: tuple[StepTimer, ...]) -> tuple[Floats, Floats]:
    """(fixed, slope) [MAX_SEQS + 1] of a decode step through all stages."""
    fixed, slope = [], []
    for seqs in SEQS:
        near = sum(timer.decode_s(seqs, seqs * NEAR_TOKENS) for timer in timers)
        far = sum(timer.decode_s(seqs, seqs * FAR_TOKENS) for timer in timers)
        per_token = max(0.0, (far - near) / (seqs * (FAR_TOKENS - NEAR_TOKENS)))
        slope.append(per_token)
        fixed.append(max(near - per_token * seqs * NEAR_TOKENS, 1e-9))
    counts = np.arange(MAX_SEQS + 1)
    return np.interp(counts, SEQS, fixed), np.interp(counts, SEQS, slope)


def _prompt_s(timers: tuple[StepTimer, ...], tokens: int) -> float:
    """A prompt in chunks through all stages."""
    total, done = 0.0, 0
    while done < tokens:
        chunk = min(CHUNK_TOKENS, tokens - done)
        total += sum(timer.step_s([(chunk, done)], 0, 0) for timer in timers)
        done += chunk
    return total
