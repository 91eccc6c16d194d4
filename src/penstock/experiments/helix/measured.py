"""What an experiment keeps of a run, and how runs of sub-clusters become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.measure.metrics import rank_percentiles
from penstock.measure.run import STATUS, Run
from penstock.measure.samples import collect, windowed_gaps_s

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Figures of one run, or of several that count as one system.

    ``decode_tokens_per_s`` is decode iterations completed in the window over its length; the
    latency samples [s] are those completed in the window. ``residence_s`` is the mean time prompts
    spend on each node. ``issued`` requests ended ``finished`` or ``rejected`` or still ran.
    """

    decode_tokens_per_s: float
    prompt_latency_s: Floats
    decode_latency_s: Floats
    issued: int
    finished: int
    rejected: int
    preemptions: int
    served_prompt_tokens: float
    residence_s: Mapping[str, float]


def measured(run: Run) -> Measured:
    """Reduce a run to what the published tables need."""
    samples = collect(run, ())
    start, end = run.window_s
    decode = windowed_gaps_s(run)
    prompts = run.requests.prompt_tokens[samples.prompt_in_window]
    turned_away = [STATUS.index("rejected"), STATUS.index("dropped")]
    residence: dict[str, float] = {}
    if run.nodes is not None:
        visits = run.nodes.prompt_visits
        for i, name in enumerate(run.nodes.names):
            if visits[i]:
                residence[name] = float(run.nodes.prompt_residence_s[i] / visits[i])
    return Measured(
        decode_tokens_per_s=len(decode) / (end - start),
        prompt_latency_s=samples.prompt_latency_s[samples.prompt_in_window],
        decode_latency_s=decode,
        issued=len(run.requests.id),
        finished=int(np.count_nonzero(run.requests.status == STATUS.index("finished"))),
        rejected=int(np.count_nonzero(np.isin(run.requests.status, turned_away))),
        preemptions=int(run.requests.preemptions.sum()),
        served_prompt_tokens=float(prompts.mean()) if len(prompts) else float("nan"),
        residence_s=residence,
    )


def together(parts: Sequence[Measured]) -> Measured:
    """Several systems side by side: throughputs add up, latency samples are pooled."""
    if len(parts) == 1:
        return parts[0]
    prompts = np.concatenate([part.prompt_latency_s for part in parts])
    weights = [len(part.prompt_latency_s) for part in parts]
    tokens = sum(
        part.served_prompt_tokens * weight
        for part, weight in zip(parts, weights, strict=True)
        if weight
    )
    return Measured(
        decode_tokens_per_s=sum(part.decode_tokens_per_s for part in parts),
        prompt_latency_s=prompts,
        decode_latency_s=np.concatenate([part.decode_latency_s for part in parts]),
        issued=sum(part.issued for part in parts),
        finished=sum(part.finished for part in parts),
        rejected=sum(part.rejected for part in parts),
        preemptions=sum(part.preemptions for part in parts),
        served_prompt_tokens=tokens / len(prompts) if len(prompts) else float("nan"),
        residence_s={name: s for part in parts for name, s in part.residence_s.items()},
    )


def figures(result: Measured) -> Mapping[str, float]:
    """Every figure by the name the published tables give it."""
    found = {"decode throughput": result.decode_tokens_per_s}
    for phase, seconds in (
        ("prompt latency", result.prompt_latency_s),
        ("decode latency", result.decode_latency_s),
    ):
        ranks = rank_percentiles(seconds)
        found |= {
            f"{phase} mean": ranks.mean,
            f"{phase} p5": ranks.p5,
            f"{phase} p25": ranks.p25,
            f"{phase} p50": ranks.p50,
            f"{phase} p75": ranks.p75,
            f"{phase} p95": ranks.p95,
        }
    return found
