"""Weights of a run of layers, read from safetensors: only what the slice and the rank need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from penstock.errors import SpecError
from penstock.serve.model.checkpoint import Checkpoint
from penstock.serve.model.parallel import TensorParallel
from penstock.serve.model.tensor_files import TensorFiles


@dataclass(frozen=True, slots=True, eq=False)
class LinearWeights:
    """``weight`` ``[out, in]``; ``bias`` ``[out]`` or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NormWeights:
    """Both ``[h]`` or None."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """``router`` ``[experts, h]``; per expert ``up`` (gate and up) ``[2 * i, h]`` and ``down``
    ``[h, i]``."""

    router: torch.Tensor
    up: Sequence[torch.Tensor]
    down: Sequence[torch.Tensor]
    per_token: int


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """``qkv`` joins the projections; ``mlp`` is (up, down), where a gated up joins gate and up.

    ``qk_norm`` ``[query heads + KV heads, head_dim]`` or None.
    """

    attention_norm: NormWeights
    qkv: LinearWeights
    qk_norm: torch.Tensor | None
    out: LinearWeights
    mlp_norm: NormWeights
    mlp: tuple[LinearWeights, LinearWeights] | ExpertWeights


@dataclass(frozen=True, slots=True, eq=False)
class SliceWeights:
    """``embedding``, ``positions`` only at the first layer; ``norm``, ``head`` only at the last."""

    layers: Sequence[LayerWeights]
    embedding: torch.Tensor | None
    positions: torch.Tensor | None
    norm: NormWeights | None
    head: torch.Tensor | None


def read_weights(
    checkpoint: Checkpoint,
    start: int,
    end: int,
    *,
    tp: TensorParallel,
    dtype: torch.dtype,
    device: torch.device,
) -> SliceWeights:
    """Read layers ``[start, end)``, this rank's share of each.

    Raises ``SpecError`` for a shape that the ranks cannot share, and where a file or tensor is
    missing, damaged or of another shape than the config says.
    """
    check_shares(checkpoint, tp.size)
    reader = _Reader(checkpoint, tp, dtype, device)
    return reader.layers(start, end)


def check_shares(checkpoint: Checkpoint, size: int) -> None:
    """Refuse a ``tensor_parallel_size`` that does not divide what is split."""
    shape = checkpoint.config.shape
    width = shape.moe.intermediate_size if shape.moe else shape.intermediate_size
    split = {
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "intermediate_size": width,
    }
    for key, value in split.items():
        if value % size:
            raise SpecError(
                f"{key} {value} of {shape.name} cannot be shared by {size} ranks",
                key="tensor_parallel_size",
                value=size,
                fix=f"choose a divisor of {value}",
            )


class _Reader:
    def __init__(
        self, checkpoint: Checkpoint, tp: TensorParallel, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config = checkpoint.config
        self._shape = checkpoint.config.shape
        self._files = TensorFiles(checkpoint.folder, checkpoint.files, dtype, device)
        self._rank = tp.rank
        self._size = tp.size
        self._opt = self._config.family == "opt"
        self._root = "model.decoder" if self._opt else "model"

    def layers(self, start: int, end: int) -> SliceWeights:
        shape, config = self._shape, self._config
        vocab, h = shape.vocab_size, shape.hidden_size
        first, last = start == 0, end == shape.num_hidden_layers
        with self._files:
            layers = [self._layer(i) for i in range(start, end)]
            embedding = positions = norm = head = None
            name = f"{self._root}.embed_tokens.weight"
            if first or (last and shape.tie_word_embeddings):
                embedding = self._files.read(name, (vocab, h))
            if first and config.rope is None:
                rows = shape.max_position_embeddings + config.learned_position_offset
                positions = self._files.read(f"{self._root}.embed_positions.weight", (rows, h))
            if last:
                tied = shape.tie_word_embeddings
                head = embedding if tied else self._files.read("lm_head.weight", (vocab, h))
                assert head is not None
                head = fast_layout(head)
                embedding = head if tied else embedding
                last_norm = "final_layer_norm" if self._opt else "norm"
                if config.final_norm:
                    norm = self._norm(f"{self._root}.{last_norm}")
        return SliceWeights(layers, embedding if first else None, positions, norm, head)

    def _layer(self, layer: int) -> LayerWeights:
        at = f"{self._root}.layers.{layer}"
        names = ("self_attn_layer_norm", "final_layer_norm", "out_proj")
        if not self._opt:
            names = ("input_layernorm", "post_attention_layernorm", "o_proj")
        before_attention, before_mlp, out = names
        shape, config = self._shape, self._config
        wide = shape.num_attention_heads * shape.head_dim
        return LayerWeights(
            attention_norm=self._norm(f"{at}.{before_attention}"),
            qkv=self._qkv(f"{at}.self_attn"),
            qk_norm=self._qk_norm(f"{at}.self_attn") if config.qk_norm else None,
            out=self._rows_in(f"{at}.self_attn.{out}", shape.hidden_size, wide, config.output_bias),
            mlp_norm=self._norm(f"{at}.{before_mlp}"),
            mlp=self._experts(at) if shape.moe else self._mlp(at),
        )

    def _norm(self, name: str) -> NormWeights:
        if not self._config.norm_weights:
            return NormWeights(None)
        h = (self._shape.hidden_size,)
        weight = self._files.read(f"{name}.weight", h)
        biased = self._config.norm == "layer"
        return NormWeights(weight, self._files.read(f"{name}.bias", h) if biased else None)

    def _qkv(self, at: str) -> LinearWeights:
        shape = self._shape
        q, kv = (
            heads * shape.head_dim
            for heads in (shape.num_attention_heads, shape.num_key_value_heads)
        )
        widths = {f"{at}.q_proj": q, f"{at}.k_proj": kv, f"{at}.v_proj": kv}
        return self._columns(widths, self._config.qkv_bias)

    def _qk_norm(self, at: str) -> torch.Tensor:
        """One row per head, so that queries and keys are scaled in one go."""
        shape, dim = self._shape, (self._shape.head_dim,)
        q = self._files.read(f"{at}.q_norm.weight", dim)
        k = self._files.read(f"{at}.k_norm.weight", dim)
        heads = shape.num_attention_heads // self._size
        kv_heads = shape.num_key_value_heads // self._size
        return torch.cat((q.expand(heads, -1), k.expand(kv_heads, -1)))

    def _mlp(self, at: str) -> tuple[LinearWeights, LinearWeights]:
        h, width, biased = (
            self._shape.hidden_size,
            self._shape.intermediate_size,
            self._config.mlp_bias,
        )
        if self._opt:
            up = self._columns({f"{at}.fc1": width}, biased)
            return up, self._rows_in(f"{at}.fc2", h, width, biased)
        up = self._columns({f"{at}.mlp.gate_proj": width, f"{at}.mlp.up_proj": width}, biased)
        return up, self._rows_in(f"{at}.mlp.down_proj", h, width, biased)

    def _experts(self, at: str) -> ExpertWeights:
        moe, h = self._shape.moe, self._shape.hidden_size
        assert moe is not None
        at = f"{at}.block_sparse_moe"
        up, down = [], []
        for expert in range(moe.num_experts):
            name = f"{at}.experts.{expert}"
            width = moe.intermediate_size
            up.append(self._columns({f"{name}.w1": width, f"{name}.w3": width}, False).weight)
            down.append(self._rows_in(f"{name}.w2", h, width, False).weight)
        router = self._files.read(f"{at}.gate.weight", (moe.num_experts, h))
        return ExpertWeights(router, up, down, moe.num_experts_per_token)

    def _columns(self, widths: dict[str, int], biased: bool) -> LinearWeights:
        """Projections side by side, each split over the ranks by its outputs."""
        h = self._shape.hidden_size
        weights, biases = [], []
        for name, width in widths.items():
            share = self._share(width)
            weights.append(self._files.read(f"{name}.weight", (width, h), rows=share))
            if biased:
                biases.append(self._files.read(f"{name}.bias", (width,), rows=share))
        return LinearWeights(fast_layout(_join(weights)), _join(biases) if biased else None)

    def _rows_in(self, name: str, out: int, width: int, biased: bool) -> LinearWeights:
        """A projection split over the ranks by its inputs; one rank adds the bias."""
        weight = self._files.read(f"{name}.weight", (out, width), columns=self._share(width))
        own = biased and self._rank == 0
        weight = fast_layout(weight)
        return LinearWeights(weight, self._files.read(f"{name}.bias", (out,)) if own else None)

    def _share(self, width: int) -> slice:
        part = width // self._size
        return slice(self._rank * part, (self._rank + 1) * part)


def fast_layout(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` ``[out, in]`` with its columns contiguous where that multiplies faster.

    For one row of fp32 on a CPU a wide output is better summed up input by input: measured 1.3
    to 2.5 times as fast as one dot product per output, and no slower for many rows.
    """
    wide = weight.shape[0] >= weight.shape[1]
    if weight.device.type == "cpu" and weight.dtype is torch.float32 and wide:
        return weight.t().contiguous().t()
    return weight


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
