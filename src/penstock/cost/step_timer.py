"""Step times of one model on one engine shape, all rates folded in beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from penstock.cost.step_arithmetic import (
    ACTIVATION_BYTES,
    LayerGroup,
    all_reduce_s,
    experts_s,
    product_s,
    visible_pairs,
)
from penstock.cost.step_coefficients import AttentionShare, EngineHost, StepCoefficients
from penstock.cost.step_line import StepLine
from penstock.cost.step_rates import AcceleratorRates, link_bytes_per_s
from penstock.cost.steps import EngineShape, PrefillChunk
from penstock.spec.model import ModelSpec


class RooflineStepTimer:
    """``StepTimer`` of one model on one engine shape; see ``penstock.cost.steps``."""

    def __init__(
        self,
        model: ModelSpec,
        shape: EngineShape,
        groups: Sequence[LayerGroup],
        coefficients: StepCoefficients,
        *,
        host: EngineHost,
        enforce_eager: bool = False,
    ) -> None:
        self._model, self._shape, self._groups = model, shape, groups
        chip = coefficients.chip(shape.accelerator)
        self._arch = coefficients.architecture(chip)
        self._host = host
        self._shared = coefficients.shared
        launches = self._shared.eager_layer_s * model.num_hidden_layers
        self._eager_s = launches if enforce_eager else 0.0
        self._link = coefficients.link(shape.accelerator.interconnect)
        self._stages = shape.pipeline_parallel_size
        self._rates = AcceleratorRates(
            shape.accelerator,
            self._arch,
            chip,
            kernel_share=host.kernel_share,
        )
        self._tokens_s: dict[int, float] = {}
        self._lines: dict[int, StepLine] = {}
        self._heads_s: dict[int, float] = {}
        self._context_s = sum(g.count * self._context_token_s(g) for g in groups) / (
            self._stages * shape.data_parallel_size
        )
        self._window = groups[0].attention.window_tokens
        self._seq_s = self._sequence_s()
        self._pair_s, self._prompt_token_s = self._prompt_s()

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        line = self._lines.get(seqs) or self._line(seqs)
        window = self._window
        if window is not None and context_tokens > window * seqs:
            context_tokens = window * seqs
        return line.fixed_s + line.context_s * context_tokens

    def decode_span_s(self, seqs: int, context_tokens: int, steps: int) -> float:
        line = self._lines.get(seqs) or self._line(seqs)
        if self._window is None:
            return line.span_s(context_tokens, steps)
        growing = self._growing(seqs, context_tokens, steps)
        full_s = (steps - growing) * line.at(self._window * seqs)
        return line.span_s(context_tokens, growing) + full_s

    def decode_span_times_s(
        self, seqs: int, context_tokens: int, steps: int
    ) -> NDArray[np.float64]:
        line = self._line(seqs)
        growing = self._growing(seqs, context_tokens, steps)
        times = line.span_times_s(context_tokens, growing)
        if growing == steps or self._window is None:
            return times
        before_s = float(times[-1]) if growing else 0.0
        full_s = line.at(self._window * seqs)
        return np.concatenate([times, before_s + full_s * np.arange(1, steps - growing + 1)])

    def steps_within(self, seqs: int, context_tokens: int, seconds: float, most: int) -> int:
        line = self._line(seqs)
        if self._window is None:
            return line.steps_within(context_tokens, seconds, most)
        growing = self._growing(seqs, context_tokens, most)
        grown_s = line.span_s(context_tokens, growing)
        if growing == most or grown_s >= seconds:
            return line.steps_within(context_tokens, seconds, growing)
        left_s = seconds - grown_s
        k = min(most, growing + max(1, ceil(left_s / line.at(self._window * seqs))))
        while k > growing + 1 and self.decode_span_s(seqs, context_tokens, k - 1) >= seconds:
            k -= 1
        while k < most and self.decode_span_s(seqs, context_tokens, k) < seconds:
            k += 1
        return k

    def _growing(self, seqs: int, context_tokens: int, steps: int) -> int:
        """Steps of ``steps`` before every sequence sees a full window (on average)."""
        if self._window is None:
            return steps
        room = self._window * seqs - context_tokens
        return min(steps, max(0, -(-room // seqs)))

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        if not prefill:
            return self.decode_s(seqs, context_tokens)
        tokens = seqs
        for chunk, _ in prefill:
            tokens += chunk
        total = self._token_s(tokens) + self._prefill_attention_s(prefill)
        sampled = seqs + len(prefill)
        if seqs:
            if self._window is not None:
                context_tokens = min(context_tokens, self._window * seqs)
            total += seqs * self._seq_s + self._context_s * context_tokens
        return total + self._head_s(sampled) + self._host_s(sampled, self._shared.prefill_s)

    def parts_s(
        self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int
    ) -> Mapping[str, float]:
        """Where a step goes: seconds by kind of operator (their sum is ``step_s``)."""
        tokens = seqs + sum(chunk for chunk, _ in prefill)
        sampled = seqs + len(prefill)
        window = self._window
        context = context_tokens if window is None else min(context_tokens, window * seqs)
        parts = dict(self._token_parts(tokens))
        parts["decode attention"] = seqs * self._seq_s + (self._context_s * context)
        parts["prefill attention"] = self._prefill_attention_s(prefill)
        parts["LM head"] = self._head_s(sampled)
        parts["host"] = self._host_s(sampled, self._shared.prefill_s if prefill else 0.0)
        return parts

    def _line(self, seqs: int) -> StepLine:
        """Decode steps of ``seqs`` sequences."""
        found = self._lines.get(seqs)
        if found is None:
            busy = self._token_s(seqs) + seqs * self._seq_s + self._head_s(seqs)
            found = StepLine(seqs, busy + self._host_s(seqs, 0.0), self._context_s)
            self._lines[seqs] = found
        return found

    def _host_s(self, sampled: int, prefill_s: float) -> float:
        busy = self._host.step_s + prefill_s + sampled * self._shared.sequence_s
        return busy / self._stages

    def _token_s(self, tokens: int) -> float:
        """All that depends on the number of tokens alone, on one stage."""
        found = self._tokens_s.get(tokens)
        if found is None:
            busy = sum(seconds for _, seconds in self._token_parts(tokens))
            found = self._tokens_s[tokens] = max(busy, self._eager_s / self._stages)
        return found

    def _token_parts(self, tokens: int) -> list[tuple[str, float]]:
        products = experts = small = wire = 0.0
        own = max(1.0, tokens / self._shape.data_parallel_size)
        hidden = self._model.hidden_size
        for group in self._groups:
            for p in group.products:
                rates = self._rates.product(p.weight_dtype)
                products += group.count * product_s(own, p.n, p.k, rates)
            if group.experts is not None:
                e = group.experts
                rate = self._rates.experts(e.weight_dtype)
                experts += group.count * experts_s(
                    float(tokens),
                    rate,
                    hidden=e.hidden,
                    width=e.width,
                    held=e.held,
                    total=e.total,
                    per_token=e.per_token,
                    matrices=e.matrices,
                )
            values = self._shared.passes * hidden + group.activation_values
            moved_s = own * values * ACTIVATION_BYTES * self._rates.s_per_byte
            floor_s = self._share(group).kernel_s
            if group.attention.latent:
                floor_s *= self._shared.latent_floor
            kernels = self._host.layer_s + floor_s * self._host.kernel_share
            if group.experts is not None:
                kernels += self._shared.expert_layer_s
            small += group.count * (kernels + moved_s)
            wire += group.count * self._all_reduces_s(group, tokens, own)
        if self._stages > 1:
            wire += self._stages * self._send_s(own)
        parts = (
            ("products", products),
            ("experts", experts),
            ("small kernels", small),
            ("all-reduce", wire),
        )
        return [(name, seconds / self._stages) for name, seconds in parts]

    def _all_reduces_s(self, group: LayerGroup, tokens: float, own: float) -> float:
        """One after attention, one after the MLP; experts shared by attention copies reduce over
        all of them (all-gather and reduce-scatter together cost one all-reduce)."""
        shape = self._shape
        if group.experts is not None and shape.data_parallel_size > 1:
            everyone = shape.tensor_parallel_size * shape.data_parallel_size
            return self._all_reduce_s(own, shape.tensor_parallel_size) + self._all_reduce_s(
                tokens, everyone
            )
        return 2 * self._all_reduce_s(own, shape.tensor_parallel_size)

    def _all_reduce_s(self, tokens: float, members: int) -> float:
        if members == 1:
            return 0.0
        link = self._link
        size = tokens * self._model.hidden_size * ACTIVATION_BYTES
        s_per_byte = 1.0 / (link.bandwidth * link_bytes_per_s(self._shape.accelerator, members))
        return all_reduce_s(size, float(members), link.latency_s, link.growth, s_per_byte)

    def _send_s(self, tokens: float) -> float:
        size = tokens * self._model.hidden_size * ACTIVATION_BYTES
        speed = self._link.bandwidth * link_bytes_per_s(self._shape.accelerator, 2)
        return self._link.latency_s + size / speed

    def _head_s(self, sampled: int) -> float:
        """LM head of the sequences that get a token."""
        found = self._heads_s.get(sampled)
        if found is None:
            own = max(1.0, sampled / self._shape.data_parallel_size)
            vocabulary = self._model.vocab_size / self._shape.tensor_parallel_size
            rates = self._rates.product(self._model.dtype)
            seconds = product_s(own, vocabulary, float(self._model.hidden_size), rates)
            found = self._heads_s[sampled] = seconds / self._stages
        return found

    def _share(self, group: LayerGroup) -> AttentionShare:
        return self._arch.latent if group.attention.latent else self._arch.attention

    def _context_token_s(self, group: LayerGroup) -> float:
        """Seconds of one layer per token of context: reading it or computing with it."""
        share, attention = self._share(group), group.attention
        reading = attention.kv_bytes * self._rates.peak_s_per_byte / share.decode_memory
        computing = attention.flops_per_context * self._rates.peak_s_per_flop / share.decode_compute
        return max(reading, computing)

    def _sequence_s(self) -> float:
        """Attention of one decoding sequence beside reading its context."""
        heads_s = sum(
            g.count * g.attention.query_heads * self._share(g).head_s for g in self._groups
        )
        return heads_s / (self._shape.data_parallel_size * self._stages)

    def _prompt_s(self) -> tuple[float, float]:
        """(seconds per visible pair, seconds per token) of attention on prompts."""
        pair_s = token_s = 0.0
        for group in self._groups:
            share, attention = self._share(group), group.attention
            flops_s = attention.flops_per_pair * self._rates.peak_s_per_flop
            moved_s = attention.io_bytes * self._rates.peak_s_per_byte
            pair_s += group.count * flops_s / share.prefill_compute
            token_s += group.count * moved_s / share.prefill_memory
        split = self._stages * self._shape.data_parallel_size
        return pair_s / split, token_s / split

    def _prefill_attention_s(self, prefill: Sequence[PrefillChunk]) -> float:
        total = 0.0
        for chunk, cached in prefill:
            pairs = visible_pairs(chunk, cached, self._window)
            total += pairs * self._pair_s + chunk * self._prompt_token_s
        return total
