"""Step costs of a whole model from the fingerprint of its first layers.

A step takes what its layers and all else take on the workers, the hand-overs between stages, and
what the server adds. TP and PP that were not measured follow from those that were
(``fingerprint_local``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penstock.cost.base import Provenance
from penstock.cost.fingerprint_file import (
    FingerprintFile,
    ServerTimes,
    digest_of,
    read_fingerprint,
)
from penstock.cost.fingerprint_local import HandOver, LocalEstimator
from penstock.cost.fingerprint_times import LayerTimes, visible_pairs
from penstock.cost.step_line import LineTimer, StepLine
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape, PrefillChunk
from penstock.errors import InputError, SpecError
from penstock.spec.model import ModelSpec
from penstock.spec.names import normalise

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_NOTHING = ServerTimes(step=0.0, sequence=0.0, request=0.0, prompt_token=0.0)


class FingerprintStepCost:
    """``StepCostModel`` (and ``HostedCost``) of a model whose cuts were measured.

    Raises ``SpecError`` for a file that cannot be read, or is of another model or precision.
    """

    def __init__(self, model: ModelSpec, path: Path | str) -> None:
        self._model, self._path = model, Path(path)
        self._document = read_fingerprint(path)
        self.digest = digest_of(path)
        self._check_model()
        self._estimator = LocalEstimator(self._document)
        self._server = self._document.server or _NOTHING

    @property
    def model(self) -> ModelSpec:
        return self._model

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        document = self._document
        sizes = sorted({run.batch for run in document.runs})
        prompts = sorted({run.prompt_tokens for run in document.runs})
        depths = sorted({run.layers for run in document.runs if run.pp == 1})
        notes = list(document.notes)
        if document.server is None:
            notes.append("no server was measured: what it adds to steps is left out")
        return (
            Provenance(
                "extrapolated",
                f"{document.source} ({self._path.name})",
                error=f"from cuts of {' and '.join(map(str, depths))} layers to "
                f"{document.shape.layers}",
                domain=f"{document.machine.name}, {self._dtype}, {sizes[0]} to {sizes[-1]} "
                f"sequences, prompts of {prompts[0]} to {prompts[-1]} tokens",
                notes=tuple(notes),
            ),
        )

    def step_timer(self, shape: EngineShape) -> FingerprintTimer:
        stages = shape.pipeline_parallel_size
        self._check_shape(shape)
        try:
            times = self._estimator.times(self._dtype, shape.tensor_parallel_size)
            hop = self._estimator.hand_over(self._dtype) if stages > 1 else HandOver(0.0, 0.0)
        except InputError as error:
            raise SpecError(str(error), source=self._path) from None
        return FingerprintTimer(
            times, self._document.shape.layers, stages=stages, hop=hop, server=self._server
        )

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        """What the roofline finds beside the weights."""
        return StepRoofline(self._model).kv_capacity_tokens(shape)

    def request_s(self, prompt_tokens: int) -> float:
        """See ``penstock.cost.steps.HostedCost``."""
        return self._server.request + self._server.prompt_token * prompt_tokens

    def to_dict(self) -> dict[str, object]:
        return {"kind": "fingerprint", "path": str(self._path), "digest": self.digest}

    @property
    def document(self) -> FingerprintFile:
        """As it was read."""
        return self._document

    @property
    def _dtype(self) -> str:
        """The dtype of the runs. Checkpoints of float32 have the shape of fp16 ones."""
        name, document = _stored_as(self._model), self._document
        return document.stored if name not in document.dtypes and name == "float16" else name

    def _check_model(self) -> None:
        model, document = self._model, self._document
        if normalise(document.model) != normalise(model.name):
            raise SpecError(
                f"was measured with {document.model}, not {model.name}",
                source=self._path,
                key="model",
            )
        for key, wanted, found in (
            ("shape.layers", model.num_hidden_layers, document.shape.layers),
            ("shape.hidden_size", model.hidden_size, document.shape.hidden_size),
        ):
            if wanted != found:
                raise SpecError(
                    f"{model.name} has {wanted} of it", source=self._path, key=key, value=found
                )
        known = _stored_as(model) in document.dtypes or self._dtype in document.dtypes
        if not known or model.kv_dtype not in (None, model.dtype):
            raise SpecError(
                f"has no runs of {model.name} in {_stored_as(model)}"
                + (f" with {model.kv_dtype} KV values" if model.kv_dtype else ""),
                source=self._path,
                key="runs",
                fix=f"it has {', '.join(document.dtypes)}; profile the precision you want",
            )

    def _check_shape(self, shape: EngineShape) -> None:
        measured = self._document.accelerator
        if normalise(measured) != normalise(shape.accelerator.name):
            raise SpecError(
                f"was measured on {measured}, not {shape.accelerator.name}",
                source=self._path,
                key="accelerator",
            )
        if shape.data_parallel_size > 1 or shape.expert_parallel_size > 1:
            raise SpecError(
                "knows no data or expert parallel engines", source=self._path, key="runs"
            )


def _stored_as(model: ModelSpec) -> str:
    dtype = model.weight_dtype or model.dtype
    return _DTYPES.get(dtype, dtype)


class FingerprintTimer(LineTimer):
    """``StepTimer``: a step passes all stages, each takes its share."""

    def __init__(
        self, times: LayerTimes, layers: int, *, stages: int, hop: HandOver, server: ServerTimes
    ) -> None:
        super().__init__()
        self._times, self._layers, self._stages = times, layers, stages
        self._hop, self._server = hop, server

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        """Prompts and decodes together share what does not depend on their number."""
        if not prefill:
            return self.decode_s(seqs, context_tokens)
        tokens = sum(chunk for chunk, _ in prefill)
        pairs = sum(visible_pairs(chunk, cached) for chunk, cached in prefill)
        prompts = len(prefill)
        total = self._times.prompt_s(prompts, tokens, pairs, self._layers)
        total += self._around_s(tokens, prompts)
        prompt_s = total / self._stages
        if not seqs:
            return prompt_s
        decode_s = self.decode_s(seqs, context_tokens)
        return max(prompt_s, decode_s, prompt_s + decode_s - self._line(1).fixed_s)

    def _new_line(self, seqs: int) -> StepLine:
        whole = self._times.decode_line(seqs, self._layers)
        fixed_s = (whole.fixed_s + self._around_s(seqs, seqs)) / self._stages
        return StepLine(seqs, fixed_s, whole.context_s / self._stages)

    def _around_s(self, tokens: int, seqs: int) -> float:
        """Hand-overs of ``tokens``, and what the server adds to a step of ``seqs`` sequences."""
        added = self._server.step + self._server.sequence * seqs
        return added + (self._stages - 1) * self._hop.at(tokens)
