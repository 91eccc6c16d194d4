"""FLOPs and bytes of one transformer layer: exact counts, no efficiencies.

Counts follow the usual conventions: a multiply-add is 2 FLOPs, causal attention of a prompt sees
half of its square, weights are read once a step. A tensor-parallel group splits all of it evenly
and pays two all-reduces of the hidden state (after attention and after the MLP).
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.spec.hardware import Accelerator
from penstock.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class LayerWork:
    """What one layer costs per unit. The last layer stands for all (most are like it).

    always_read_bytes      weights every step reads (attention, dense MLP, shared experts, router)
    expert_bytes           weights of all routed experts; 0 in dense models
    expert_miss            chance that one token leaves a given expert untouched
    flops_per_token        of all matrix products, active experts only
    flops_per_pair         of attention, per (query token, context token) pair
    kv_bytes_per_token     read per context token in decode
    hidden_bytes_per_token one hidden state
    """

    always_read_bytes: float
    expert_bytes: float
    expert_miss: float
    flops_per_token: float
    flops_per_pair: float
    kv_bytes_per_token: float
    hidden_bytes_per_token: float
    window_tokens: int | None

    def weight_bytes_read(self, tokens: int) -> float:
        """Weights ``tokens`` tokens touch; expected value under even routing."""
        return self.always_read_bytes + self.expert_bytes * (1 - self.expert_miss**tokens)


def layer_work(model: ModelSpec) -> LayerWork:
    """Count the last layer of ``model``."""
    last = model.num_hidden_layers - 1
    bytes_each = model.weight_bytes_per_parameter
    total = model.layer_parameters(last)
    routed, miss = 0, 0.0
    if model.moe is not None and last >= model.moe.first_dense_layers:
        matrices = 3 if model.gated_mlp else 2
        routed = matrices * model.hidden_size * model.moe.intermediate_size * model.moe.num_experts
        miss = 1 - model.moe.num_experts_per_token / model.moe.num_experts
    # A stated layer size replaces the count; the ratio keeps the split between experts and rest.
    scale = model.layer_weight_bytes / (total * bytes_each)
    return LayerWork(
        always_read_bytes=(total - routed) * bytes_each * scale,
        expert_bytes=routed * bytes_each * scale,
        expert_miss=miss,
        flops_per_token=2.0 * model.layer_parameters(last, active=True),
        flops_per_pair=_attention_flops_per_pair(model),
        kv_bytes_per_token=model.kv_bytes_per_token_per_layer,
        hidden_bytes_per_token=model.activation_bytes_per_token,
        window_tokens=model.sliding_window,
    )


def _attention_flops_per_pair(model: ModelSpec) -> float:
    """Scores and weighted sum: 2 FLOPs per head and value each."""
    if model.mla is not None:
        m = model.mla
        return 2.0 * model.num_attention_heads * (2 * m.kv_lora_rank + m.qk_rope_head_dim)
    return 4.0 * model.num_attention_heads * model.head_dim


def matrix_flops_per_s(accelerator: Accelerator, model: ModelSpec) -> float:
    """Dense peak of the dtype the products run in.

    fp8 weights use fp8 units; int8 and int4 weights are widened to the activation dtype, the
    usual weight-only kernels. Without bf16 units an engine computes in fp16, else in fp32.
    """
    peaks = accelerator.flops_per_s
    wanted = "fp8" if model.weight_dtype == "fp8" or model.dtype == "fp8" else model.dtype
    for dtype in (wanted, "bf16", "fp16", "fp32"):
        if dtype in peaks:
            return peaks[dtype]
    return max(peaks.values())


def activation_bytes(model: ModelSpec, tokens: int) -> float:
    """Peak of the live tensors of one layer: MLP inputs and outputs beside the hidden state."""
    width = model.intermediate_size
    if model.moe is not None:
        routed = model.moe.num_experts_per_token + model.moe.num_shared_experts
        width = max(width, routed * model.moe.intermediate_size)
    values = (2 if model.gated_mlp else 1) * width + 4 * model.hidden_size
    return tokens * values * model.activation_bytes_per_token / model.hidden_size


def all_reduce_bytes(hidden_bytes: float, group: int) -> float:
    """Bytes each member sends in one ring all-reduce of ``hidden_bytes``."""
    return 2.0 * (group - 1) / group * hidden_bytes
