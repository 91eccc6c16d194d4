"""One decoder layer: norms, fused projections, gated or plain MLP, experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom

from penstock.serve.model.config import Activation, ModelConfig
from penstock.serve.model.parallel import TensorParallel
from penstock.serve.model.weights import ExpertWeights, LayerWeights, LinearWeights, NormWeights

Rotation = tuple[torch.Tensor, torch.Tensor]


class Attention(Protocol):
    """Where the keys of a step are, and who sees them: ``AttentionPlan``, or a caller's own."""

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``AttentionPlan.attend``."""
        ...


_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class RMSNorm:
    """Root mean square norm over the last dimension; ``weight`` ``[width]`` or one row per head."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight = weight
        self._width = weight.shape[-1]
        self._eps = eps
        self._eps_tensor = torch.tensor(eps, device=weight.device)
        self._by_length = weight.device.type == "cpu" and weight.dtype is torch.float32

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._by_length:  # on CPUs torch has no fused kernel, and this takes 0.6 of its time
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            square = torch.addcmul(self._eps_tensor, length, length, value=1 / self._width)
            return (x * square.rsqrt_()).mul_(self._weight)
        if self._weight.dim() == 1:
            return F.rms_norm(x, (self._width,), self._weight, self._eps)
        return F.rms_norm(x, (self._width,), None, self._eps) * self._weight


def make_norm(weights: NormWeights, config: ModelConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """RMSNorm or LayerNorm of hidden states ``[t, h]``, as the model wants it."""
    if config.norm == "rms":
        assert weights.weight is not None
        return RMSNorm(weights.weight, config.norm_eps)
    shape = (config.shape.hidden_size,)

    def layer_norm(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, shape, weights.weight, weights.bias, config.norm_eps)

    return layer_norm


class Layer:
    """A layer (or one rank's shard of it). Tensors are flat over the batch: ``[t, ...]``."""

    def __init__(self, config: ModelConfig, weights: LayerWeights, tp: TensorParallel) -> None:
        shape = config.shape
        self._heads = shape.num_attention_heads // tp.size
        self._kv_heads = shape.num_key_value_heads // tp.size
        self._dim = shape.head_dim
        self._tp = tp
        self._gated = shape.gated_mlp
        self._activation = _ACTIVATIONS[config.activation]
        self._before_attention = make_norm(weights.attention_norm, config)
        self._before_mlp = make_norm(weights.mlp_norm, config)
        self._qkv = weights.qkv
        self._qk_norm = (
            None if weights.qk_norm is None else RMSNorm(weights.qk_norm, config.norm_eps)
        )
        self._out = weights.out
        self._mlp = weights.mlp

    def forward(
        self, x: torch.Tensor, layer: int, plan: Attention, rotation: Rotation | None
    ) -> torch.Tensor:
        """Hidden states ``[t, h]`` after layer number ``layer``."""
        qkv = F.linear(self._before_attention(x), self._qkv.weight, self._qkv.bias)
        qkv = qkv.view(len(x), self._heads + 2 * self._kv_heads, self._dim)
        turned = qkv[:, : self._heads + self._kv_heads]
        if self._qk_norm is not None:
            turned.copy_(self._qk_norm(turned))
        if rotation is not None:
            _rotate(turned, rotation)
        x = self._add(x, plan.attend(layer, qkv), self._out)
        normed = self._before_mlp(x)
        if isinstance(self._mlp, ExpertWeights):
            return x + self._tp.all_reduce(_experts(normed, self._mlp))
        up, down = self._mlp
        inner = F.linear(normed, up.weight, up.bias)
        if self._gated:
            gate, value = inner.chunk(2, dim=-1)
            inner = F.silu(gate).mul_(value)
        else:
            inner = self._activation(inner)
        return self._add(x, inner, down)

    def _add(self, x: torch.Tensor, inner: torch.Tensor, weights: LinearWeights) -> torch.Tensor:
        """``x`` plus a projection whose input is split over the ranks."""
        return x + self._tp.all_reduce(F.linear(inner, weights.weight, weights.bias))


def _rotate(x: torch.Tensor, rotation: Rotation) -> None:
    """Turn ``x`` ``[t, heads, dim]`` in place (RoFormer, halves as pairs)."""
    cos, sin = rotation
    swapped = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cos).addcmul_(swapped, sin)


def _experts(x: torch.Tensor, weights: ExpertWeights) -> torch.Tensor:
    """Mixtral: the best experts by softmax over all, their shares scaled to sum to one."""
    shares = F.linear(x, weights.router).float().softmax(dim=-1)
    best, chosen = shares.topk(weights.per_token, dim=-1)
    best = (best / best.sum(dim=-1, keepdim=True)).to(x.dtype)
    out = torch.zeros_like(x)
    order = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=len(weights.up)).tolist()
    first = 0
    for expert, count in enumerate(counts):
        if count:
            slot = order[first : first + count]
            row = slot // weights.per_token
            first += count
            gate, value = F.linear(x[row], weights.up[expert]).chunk(2, dim=-1)
            inner = F.linear(F.silu(gate).mul_(value), weights.down[expert])
            out.index_add_(0, row, inner * best.flatten()[slot, None])
    return out
