"""From logits to tokens: penalties, filters, seeded draws, log probabilities.

A draw takes one uniform number that depends on (seed, position) alone and inverts the cumulative
distribution. So it does not depend on the batch it runs in, a request that is computed again
continues as it would have, and a verified tree gives the tokens that plain decoding gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from penstock.serve.protocol import SamplingParams, TokenLogprobs

_CANDIDATES = 1024
"""Most likely tokens that are sorted first; all are where these hold too little probability."""


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """What one row of logits is asked for.

    ``position`` counts the output tokens before this one; it must equal ``len(output)`` where
    penalties apply. ``seed`` names the request's stream of random numbers. ``stop_ids`` are EOS
    and stop tokens, banned below ``min_tokens``. ``prompt`` and ``output`` are read for penalties
    only.
    """

    params: SamplingParams
    seed: int = 0
    position: int = 0
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()
    stop_ids: Sequence[int] = ()

    @property
    def plain(self) -> bool:
        """Whether the most likely token is the whole answer."""
        p = self.params
        return (
            p.greedy
            and not p.penalised
            and p.logprobs is None
            and not (self.stop_ids and self.position < p.min_tokens)
        )


@dataclass(frozen=True, slots=True)
class Drawn:
    """``tokens`` ``[n]``, and ``logprobs`` ``[n]`` with None where none were asked for."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]


@torch.inference_mode()
def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> Drawn:
    """Draw one token per row of ``logits`` ``[n, vocab]``.

    Order of operations as in vLLM: ban, penalties, temperature, min-p, top-k, top-p. Log
    probabilities are those of the raw logits.
    """
    tokens = logits.argmax(dim=-1) if len(draws) else logits.new_zeros(0, dtype=torch.int64)
    if all(draw.plain for draw in draws):
        return Drawn(tokens.tolist(), [None] * len(draws))
    adjusted = _adjust(logits, draws)
    if adjusted is not logits:
        tokens = adjusted.argmax(dim=-1)
    random = [row for row, draw in enumerate(draws) if not draw.params.greedy]
    if random:
        index = torch.tensor(random, device=logits.device)
        tokens[index] = _draw(adjusted[index], [draws[row] for row in random])
    chosen: list[int] = tokens.tolist()
    return Drawn(chosen, _logprobs(logits, draws, chosen))


@torch.inference_mode()
def tree_choices(
    logits: torch.Tensor, draw: Draw, tokens: Sequence[int], parents: Sequence[int]
) -> list[int]:
    """The target's own token at every row of a token tree, for ``policy`` ``verify``.

    ``logits`` ``[n, vocab]``, ``tokens`` ``[n]`` and ``parents`` ``[n]`` are those of
    ``TokenTree.of``; row 0 is the root, whose choice has ``draw.position``. Deeper rows are drawn
    at the position they would have, so that the accepted path and the token after it are what
    decoding one by one would give.
    """
    return sample(logits, tree_draws(draw, tokens, parents)).tokens


def tree_draws(draw: Draw, tokens: Sequence[int], parents: Sequence[int]) -> list[Draw]:
    """One ``Draw`` per row of a tree, each with the output that leads to it."""
    if draw.plain:
        return [draw] * len(parents)
    draws: list[Draw] = []
    for token, parent in zip(tokens, parents, strict=True):
        if parent < 0:
            draws.append(draw)
        else:
            above = draws[parent]
            output = (*above.output, token) if draw.params.penalised else ()
            draws.append(replace(above, position=above.position + 1, output=output))
    return draws


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else: Philox with the position as counter."""
    bits = np.random.Philox(key=seed & (2**64 - 1), counter=position).random_raw()
    return int(bits >> 11) * 2.0**-53


def _adjust(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Ban stop tokens below ``min_tokens`` and apply penalties, in float32."""
    changed = [
        row
        for row, draw in enumerate(draws)
        if draw.params.penalised or (draw.stop_ids and draw.position < draw.params.min_tokens)
    ]
    if not changed:
        return logits
    logits = logits.float().clone()
    for row in changed:
        draw = draws[row]
        if draw.stop_ids and draw.position < draw.params.min_tokens:
            logits[row, list(draw.stop_ids)] = -torch.inf
        if draw.params.penalised:
            _penalise(logits[row], draw)
    return logits


def _penalise(row: torch.Tensor, draw: Draw) -> None:
    """Change ``row`` ``[vocab]`` in place; repetition counts the prompt, the others do not."""
    params, device = draw.params, row.device
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.fromiter((*draw.prompt, *draw.output), np.int64))
        index = torch.as_tensor(seen, device=device)
        scores = row[index]
        factor = params.repetition_penalty
        row[index] = torch.where(scores > 0, scores / factor, scores * factor)
    if draw.output and (params.frequency_penalty or params.presence_penalty):
        ids, counts = np.unique(np.asarray(draw.output, np.int64), return_counts=True)
        malus = params.frequency_penalty * counts + params.presence_penalty
        row[torch.as_tensor(ids, device=device)] -= torch.as_tensor(
            malus, dtype=row.dtype, device=device
        )


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Seeded tokens ``[n]`` of ``logits`` ``[n, vocab]``."""
    device, vocab = logits.device, logits.shape[-1]

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)[:, None]

    params = [draw.params for draw in draws]
    scaled = logits.float() / column([max(p.temperature, 1e-5) for p in params])
    probabilities = scaled.softmax(dim=-1)
    top_k = [p.top_k if 0 < p.top_k < vocab else vocab for p in params]
    top_p = [p.top_p for p in params]
    least = [p.min_p for p in params]
    random = column([uniform(d.seed, d.position) for d in draws], torch.float64)
    if min(top_k) == vocab and min(top_p) >= 1.0 and max(least) <= 0.0:
        return _invert(probabilities.double(), random)
    best, ids = _candidates(probabilities, top_k, top_p)
    kept = best.double()
    kept = kept.masked_fill(kept < column(least) * kept[:, :1], 0.0)
    ranks = torch.arange(kept.shape[1], device=device)
    kept = kept.masked_fill(ranks >= column([float(k) for k in top_k]), 0.0)
    limit = column(top_p, torch.float64) * kept.sum(dim=-1, keepdim=True)
    before = kept.cumsum(dim=-1) - kept
    kept = kept.masked_fill((before >= limit) & (ranks > 0), 0.0)
    return ids.gather(1, _invert(kept, random)[:, None])[:, 0]


def _candidates(
    probabilities: torch.Tensor, top_k: list[int], top_p: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely tokens in falling order, at least those that filters may keep.

    Sorting a whole vocabulary is slow; where few tokens suffice for every row, few are sorted.
    """
    vocab = probabilities.shape[-1]
    width = max(top_k) if max(top_k) < vocab else _CANDIDATES
    if width < vocab:
        best, ids = probabilities.topk(width, dim=-1)
        held = best.sum(dim=-1).tolist()
        enough = all(
            k <= width or total > p + 1e-3 for k, total, p in zip(top_k, held, top_p, strict=True)
        )
        if enough:
            return best, ids
    best, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    return best, ids


def _invert(weights: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """The first column ``[n]`` at which the running sum of ``weights`` exceeds its share."""
    running = weights.cumsum(dim=-1)
    total = running[:, -1:]
    # The product may round up to the total, which no running sum exceeds.
    threshold = torch.minimum(random * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(running, threshold, right=True)[:, 0]


def _logprobs(
    logits: torch.Tensor, draws: Sequence[Draw], tokens: Sequence[int]
) -> list[TokenLogprobs | None]:
    found: list[TokenLogprobs | None] = [None] * len(draws)
    rows = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
    if not rows:
        return found
    index = torch.tensor(rows, device=logits.device)
    logs = logits[index].float().log_softmax(dim=-1)
    counts = [draws[row].params.logprobs or 0 for row in rows]
    widest = min(max(counts), logits.shape[-1])
    values, ids = logs.topk(widest, dim=-1)
    own = logs.gather(1, torch.tensor([[tokens[row]] for row in rows], device=logits.device))
    lists = zip(rows, counts, own[:, 0].tolist(), ids.tolist(), values.tolist(), strict=True)
    for row, count, chosen, best, logs_of in lists:
        top = tuple(zip(best[:count], logs_of[:count], strict=True))
        found[row] = TokenLogprobs(tokens[row], chosen, top)
    return found
