"""Layer times without tables: a roofline of each phase with fitted efficiencies.

One layer takes, for P prompt tokens and S decode sequences over C context tokens,

    prefill = launch + |P F / compute_p, W / memory| + attention(P) + passes + all-reduce(P)
    decode  = launch + |S F / compute_d, W / memory| + C K / memory + passes + all-reduce(S)

with F FLOPs per token, W weight bytes read, K KV bytes per token, and |x, y| the Euclidean norm, a
smooth maximum. Both phases are added: the fitted engine ran them as separate steps.
"""

from __future__ import annotations

from math import hypot, inf

from penstock.cost.arithmetic import (
    LayerWork,
    activation_bytes,
    all_reduce_bytes,
    layer_work,
    matrix_flops_per_s,
)
from penstock.cost.base import BatchLimits, LayerTimer, Provenance
from penstock.cost.coefficients import Coefficients, bundled_coefficients
from penstock.errors import InputError, SpecError
from penstock.spec.hardware import Node
from penstock.spec.model import ModelSpec

# vLLM's default for gpu_memory_utilization.
GPU_MEMORY_UTILIZATION = 0.9
# Prompts attend within themselves; a batch tells only its sum, so longer ones count as several.
TYPICAL_PROMPT_TOKENS = 1024
MAX_DECODE_SEQS = 512
_ONE_SEQUENCE_TOKENS = 1000
_ROOM_FOR_WHOLE_MODEL_TOKENS = 16 * _ONE_SEQUENCE_TOKENS
_PROMPT_TOKENS = 2048
# A prefill batch may hold up a layer about this long (published limits: 1 to 3 prompts).
_PREFILL_BATCH_S = 0.05
_MAX_PREFILL_SEQS = 4


class RooflineCost:
    """Cost model of any ``ModelSpec`` on any ``Accelerator``.

    ``gpu_memory_utilization`` is the share of the visible memory an engine may take, as in vLLM.
    """

    def __init__(
        self,
        model: ModelSpec,
        coefficients: Coefficients | None = None,
        *,
        gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
    ) -> None:
        if not 0 < gpu_memory_utilization <= 1:
            raise InputError(
                f"gpu_memory_utilization must be in (0, 1] (got {gpu_memory_utilization!r})"
            )
        self._model = model
        self._work = layer_work(model)
        self._coefficients = coefficients or bundled_coefficients()
        self.gpu_memory_utilization = gpu_memory_utilization
        # Each layer carries its part of the embeddings: exact for a whole model on one node.
        embeddings = model.embedding_parameters * model.weight_bytes_per_parameter
        self._held_bytes_per_layer = model.layer_weight_bytes + embeddings / model.num_hidden_layers
        self._activation_bytes = activation_bytes(model, _PROMPT_TOKENS)
        self._kv_bytes = model.kv_bytes_per_token_per_layer

    @property
    def model(self) -> ModelSpec:
        return self._model

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        c = self._coefficients
        return (
            Provenance("fitted", c.source, c.error, c.domain, c.notes),
            Provenance(
                "extrapolated",
                "all other accelerators: datasheet peaks times the median fitted efficiencies",
                domain="accelerators outside: " + ", ".join(sorted(c.chips)),
            ),
        )

    def source_of(self, node: Node) -> Provenance:
        fitted = self._coefficients.chip(node.accelerator.name)[1]
        return self.provenance[0 if fitted else 1]

    def layer_timer(self, node: Node) -> LayerTimer:
        return roofline_timer(self._work, self._model, node, self._coefficients)

    def planning_timer(self, node: Node) -> LayerTimer:
        return self.layer_timer(node)

    @property
    def layer_weight_bytes(self) -> int:
        return self._model.layer_weight_bytes

    def max_layers(self, node: Node) -> int:
        """Half of the memory for weights; the whole model where 16 sequences fit beside it."""
        whole = self._model.num_hidden_layers
        if self._kv_tokens(node, whole) >= _ROOM_FOR_WHOLE_MODEL_TOKENS:
            return whole
        half = int(node.memory_bytes / 2 // self.layer_weight_bytes)
        hard = self.hard_max_layers(node)
        return min(max(1, half), hard)

    def hard_max_layers(self, node: Node) -> int:
        low, high = 0, self._model.num_hidden_layers
        while low < high:
            middle = (low + high + 1) // 2
            if self._kv_tokens(node, middle) >= _ONE_SEQUENCE_TOKENS:
                low = middle
            else:
                high = middle - 1
        return low

    def kv_capacity_layer_tokens(self, node: Node, layers: int) -> int:
        if layers <= 0:
            return 0
        seen = node.memory_bytes * self._coefficients.shared.usable_memory
        usable = seen * self.gpu_memory_utilization - self._activation_bytes
        return max(0, int((usable - layers * self._held_bytes_per_layer) / self._kv_bytes))

    def _kv_tokens(self, node: Node, layers: int) -> float:
        return self.kv_capacity_layer_tokens(node, layers) / layers if layers else inf

    def batch_limits(self, node: Node, layers: int) -> BatchLimits:
        """Prompts by time, decode sequences by number, context by KV memory; any prompt fits."""
        prompt_s = self.layer_timer(node)(_PROMPT_TOKENS, 0, 0)
        prompts = max(1, min(_MAX_PREFILL_SEQS, int(_PREFILL_BATCH_S / prompt_s)))
        return BatchLimits(
            max_prefill_seqs=prompts,
            max_prefill_tokens=max(self._model.max_position_embeddings, prompts * _PROMPT_TOKENS),
            max_decode_seqs=MAX_DECODE_SEQS,
            max_decode_context_tokens=max(
                self._model.max_position_embeddings, int(self._kv_tokens(node, max(1, layers)))
            ),
        )

    def to_dict(self) -> dict[str, object]:
        return {"kind": "roofline", "gpu_memory_utilization": self.gpu_memory_utilization}


def roofline_timer(
    work: LayerWork, model: ModelSpec, node: Node, coefficients: Coefficients
) -> LayerTimer:
    """Seconds of one layer on ``node``; all rates are folded into constants beforehand."""
    chip, shared = coefficients.chip(node.accelerator.name)[0], coefficients.shared
    gpus = node.count
    peak = matrix_flops_per_s(node.accelerator, model) * gpus
    bytes_per_s = node.accelerator.memory_bandwidth_bytes_per_s * gpus * chip.memory
    prefill_s_per_token = work.flops_per_token / (peak * chip.prefill_compute)
    decode_s_per_seq = work.flops_per_token / (peak * chip.decode_compute)
    # Causal: on average half of the prompt is visible.
    pair_s = 0.5 * work.flops_per_pair / (peak * chip.prefill_compute)
    kv_s_per_token = work.kv_bytes_per_token / bytes_per_s
    extra_s_per_token = shared.hidden_passes * work.hidden_bytes_per_token / bytes_per_s
    fixed_s = shared.launch_s
    if gpus > 1:
        group = coefficients.group(node.accelerator.interconnect)
        ring = all_reduce_bytes(work.hidden_bytes_per_token, gpus)
        extra_s_per_token += 2 * ring / (_interconnect(node) * group.bandwidth)
        fixed_s += 2 * group.latency_of(gpus)
    dense_s = work.always_read_bytes / bytes_per_s
    experts_s = work.expert_bytes / bytes_per_s
    miss = work.expert_miss
    longest = min(TYPICAL_PROMPT_TOKENS, work.window_tokens or TYPICAL_PROMPT_TOKENS)
    window = work.window_tokens

    def seconds(prefill_tokens: int, decode_seqs: int, decode_context_tokens: int) -> float:
        total = 0.0
        if prefill_tokens > 0:
            weights_s = dense_s + experts_s * (1 - miss**prefill_tokens) if miss else dense_s
            visible = prefill_tokens if prefill_tokens < longest else longest
            total = (
                fixed_s
                + hypot(prefill_tokens * prefill_s_per_token, weights_s)
                + prefill_tokens * (visible * pair_s + extra_s_per_token)
            )
        if decode_seqs > 0:
            weights_s = dense_s + experts_s * (1 - miss**decode_seqs) if miss else dense_s
            context = decode_context_tokens
            if window is not None and context > window * decode_seqs:
                context = window * decode_seqs
            total += (
                fixed_s
                + hypot(decode_seqs * decode_s_per_seq, weights_s)
                + context * kv_s_per_token
                + decode_seqs * extra_s_per_token
            )
        return total

    return seconds


def _interconnect(node: Node) -> float:
    bandwidth = node.accelerator.interconnect_bytes_per_s
    if bandwidth > 0:
        return bandwidth
    raise SpecError(
        f"{node.count} accelerators of node {node.name} share no interconnect",
        key=f"{node.accelerator.name}.interconnect_bandwidth",
        value=bandwidth,
        fix="state its bandwidth or use nodes of one accelerator",
    )
