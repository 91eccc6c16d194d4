"""The shape of a transformer, and the bytes and FLOPs that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# fp4 counts the block scales of its formats (NVFP4: one byte per 16 values).
DTYPE_BYTES = {
    "fp32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5625,
    "int4": 0.5,
}
Dtype = Literal["fp32", "fp16", "bf16", "fp8", "int8", "fp4", "int4"]


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Expert layers. ``first_dense_layers`` at the bottom keep a dense MLP; above them every
    ``layer_step``-th layer has experts, except those named in ``dense_layers``.
    """

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    num_shared_experts: int = 0
    first_dense_layers: int = 0
    layer_step: int = 1
    dense_layers: tuple[int, ...] = ()

    def holds(self, layer: int) -> bool:
        """Whether ``layer`` has experts."""
        sparse = layer >= self.first_dense_layers and (layer + 1) % self.layer_step == 0
        return sparse and layer not in self.dense_layers


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """DeepSeek's multi-head latent attention (MLA): what is cached is the latent."""

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer. Names follow Hugging Face ``config.json``.

    ``layer_weight_bytes_override`` replaces the arithmetic where a source states a measured
    figure (Helix counts 1.53 GB for a layer of LLaMA-2 70B). ``embedding_parameters_override``
    counts embeddings that are not vocabulary x hidden size (learned positions, projections).
    """

    name: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    dtype: Dtype = "bf16"
    weight_dtype: Dtype | None = None
    kv_dtype: Dtype | None = None
    gated_mlp: bool = True
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    moe: MixtureOfExperts | None = None
    mla: LatentAttention | None = None
    layer_weight_bytes_override: int | None = None
    embedding_parameters_override: int | None = None
    architecture: str = ""
    source: str = field(default="", compare=False)

    @property
    def attention_parameters(self) -> int:
        """Weights of one attention block."""
        h, heads = self.hidden_size, self.num_attention_heads
        if self.mla is not None:
            m = self.mla
            qk = m.qk_nope_head_dim + m.qk_rope_head_dim
            query = (
                h * heads * qk
                if m.q_lora_rank is None
                else h * m.q_lora_rank + m.q_lora_rank * heads * qk
            )
            latent = h * (m.kv_lora_rank + m.qk_rope_head_dim)
            expand = m.kv_lora_rank * heads * (m.qk_nope_head_dim + m.v_head_dim)
            return query + latent + expand + heads * m.v_head_dim * h
        query_and_output = 2 * h * heads * self.head_dim
        key_and_value = 2 * h * self.num_key_value_heads * self.head_dim
        return query_and_output + key_and_value

    def mlp_parameters(self, layer: int, *, active: bool = False) -> int:
        """Weights of the MLP of ``layer``; with ``active`` only those one token uses."""
        matrices = 3 if self.gated_mlp else 2
        if self.moe is None or not self.moe.holds(layer):
            return matrices * self.hidden_size * self.intermediate_size
        routed = self.moe.num_experts_per_token if active else self.moe.num_experts
        expert = matrices * self.hidden_size * self.moe.intermediate_size
        router = self.hidden_size * self.moe.num_experts
        return expert * (routed + self.moe.num_shared_experts) + router

    def layer_parameters(self, layer: int, *, active: bool = False) -> int:
        """Weights of one layer (norms, below 0.01 %, are left out)."""
        return self.attention_parameters + self.mlp_parameters(layer, active=active)

    @property
    def embedding_parameters(self) -> int:
        if self.embedding_parameters_override is not None:
            return self.embedding_parameters_override
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        layers = sum(self.layer_parameters(i) for i in range(self.num_hidden_layers))
        return layers + self.embedding_parameters

    @property
    def weight_bytes_per_parameter(self) -> float:
        return DTYPE_BYTES[self.weight_dtype or self.dtype]

    @property
    def layer_weight_bytes(self) -> int:
        """Bytes of the largest layer: what a node must hold per layer it serves."""
        if self.layer_weight_bytes_override is not None:
            return self.layer_weight_bytes_override
        largest = max(self.layer_parameters(i) for i in range(self.num_hidden_layers))
        return int(largest * self.weight_bytes_per_parameter)

    def slice_weight_bytes(self, start_layer: int, end_layer: int) -> int:
        """Bytes of layers ``[start_layer, end_layer)`` with the embeddings that lie at the ends."""
        if self.layer_weight_bytes_override is not None:
            layers = float(self.layer_weight_bytes_override * (end_layer - start_layer))
        else:
            held = sum(self.layer_parameters(i) for i in range(start_layer, end_layer))
            layers = held * self.weight_bytes_per_parameter
        ends = (start_layer == 0) + (end_layer == self.num_hidden_layers)
        share = 0.5 * ends if not self.tie_word_embeddings else min(1, ends)
        return int(layers + share * self.embedding_parameters * DTYPE_BYTES[self.dtype])

    @property
    def kv_bytes_per_token_per_layer(self) -> int:
        bytes_per_value = DTYPE_BYTES[self.kv_dtype or self.dtype]
        if self.mla is not None:
            values = self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
        else:
            values = 2 * self.num_key_value_heads * self.head_dim
        return int(values * bytes_per_value)

    @property
    def activation_bytes_per_token(self) -> int:
        """Hidden state handed from one stage to the next."""
        return int(self.hidden_size * DTYPE_BYTES[self.dtype])
