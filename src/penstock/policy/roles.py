"""Which engine computes prompts and which decodes, when engines come and go.

SDS (DistServe on spot GPUs): a prefill engine feeds ``1/a`` decode engines, so P prefill and D
decode engines are worth ``T(P, D) = min(D, P/a)`` decode engines. After every change the pool is
brought back to the best split. Old GPUs are likelier to be reclaimed and prompts are short-lived
while decodes are expensive to lose: old GPUs compute prompts, young ones decode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

from penstock.cost.steps import StepTimer
from penstock.errors import SpecError

PoolRole = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One engine of the pool. ``role`` None = it has just come."""

    id: int
    role: PoolRole | None
    age_s: float = 0.0


def pool_throughput(prefill: int, decode: int, a: float) -> float:
    """``min(D, P/a)``: requests per second in units of one saturated decode engine."""
    return min(float(decode), prefill / a)


def best_split(engines: int, a: float) -> tuple[int, int]:
    """(prefill, decode) with the largest throughput; on ties the smallest number of decodes."""
    if not 0 < a < float("inf"):
        raise SpecError("must be finite and above 0", key="a", value=a)
    if engines < 2:
        return engines, 0
    decode = max(range(1, engines), key=lambda d: (pool_throughput(engines - d, d, a), -d))
    return engines - decode, decode


def rebalance(gpus: Sequence[Gpu], a: float) -> Mapping[int, PoolRole]:
    """The roles of all ``gpus`` (live ones, newcomers with role None) at the best throughput.

    A role that still allows the best throughput is kept. Newcomers fill prefill up to its target,
    then decode; beyond that the youngest prefill engines become decode engines, or the oldest
    decode engines prefill engines.
    """
    want_prefill, want_decode = best_split(len(gpus), a)
    best = pool_throughput(want_prefill, want_decode, a)
    prefill = _oldest_first(gpu for gpu in gpus if gpu.role == "prefill")
    decode = _oldest_first(gpu for gpu in gpus if gpu.role == "decode")
    new = sorted((gpu for gpu in gpus if gpu.role is None), key=lambda gpu: gpu.id)
    short = len(prefill) / a < len(decode)
    surplus_prefill = 0 if short else max(len(prefill) - ceil(a * len(decode)), 0)
    surplus_decode = max(len(decode) - ceil(len(prefill) / a), 0) if short else 0
    if surplus_prefill:
        while new and len(decode) < want_decode:
            decode.append(new.pop(0))
        while len(prefill) > want_prefill and len(decode) < want_decode:
            decode.append(prefill.pop())
    elif surplus_decode:
        # Newcomers take the places of the old ones that go to prefill.
        while surplus_decode and len(prefill) < want_prefill:
            prefill.append(decode.pop(0))
            surplus_decode -= 1
    for gpu in new:
        (prefill if len(prefill) < want_prefill else decode).append(gpu)
    # The rules above keep roles; where that costs throughput, move until it does not.
    while pool_throughput(len(prefill), len(decode), a) < best - 1e-12:
        if len(decode) < want_decode:
            decode.append(prefill.pop())
        else:
            prefill.append(decode.pop(0))
    roles: dict[int, PoolRole] = {gpu.id: "prefill" for gpu in prefill}
    roles |= {gpu.id: "decode" for gpu in decode}
    return roles


def _oldest_first(gpus: object) -> list[Gpu]:
    return sorted(gpus, key=lambda gpu: (-gpu.age_s, gpu.id))  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Mean lengths in tokens and what decodes may take."""

    prompt_tokens: float
    output_tokens: float
    tpot_s: float | None = None


def prefill_per_decode(
    timer: StepTimer, kv_capacity_tokens: int, traffic: Traffic, max_num_seqs: int = 256
) -> float:
    """``a`` from profile and traffic: prefill engines that saturate one decode engine.

    A prefill engine serves prompts of mean length one by one. A decode engine holds as many
    requests, half-way through their outputs on average, as memory, ``max_num_seqs`` and the TPOT
    limit allow. Raises ``SpecError`` where not even one request fits or meets the limit.
    """
    context = traffic.prompt_tokens + traffic.output_tokens / 2
    seqs = min(max_num_seqs, floor(kv_capacity_tokens / context))
    if traffic.tpot_s is not None:
        low, high = 0, seqs
        while low < high:
            middle = (low + high + 1) // 2
            if timer.decode_s(middle, round(middle * context)) <= traffic.tpot_s:
                low = middle
            else:
                high = middle - 1
        seqs = low
    if seqs < 1:
        raise SpecError(
            "one decode engine cannot serve a single request of this traffic",
            key="a",
            value=traffic,
            fix="use larger engines or a wider TPOT limit",
        )
    step_s = timer.decode_s(seqs, round(seqs * context))
    prompt_s = timer.step_s([(round(traffic.prompt_tokens), 0)], 0, 0)
    return prompt_s * seqs / (max(1.0, traffic.output_tokens - 1) * step_s)
