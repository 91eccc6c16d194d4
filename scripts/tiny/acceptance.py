"""How many of the draft's tokens the target would have chosen itself, both decoding greedily."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Acceptance of a chain of draft tokens.

    `by_position[k]` is the share of accepted tokens at depth k among chains accepted up to
    there. `tokens_per_step` counts the accepted tokens and the one the target adds.
    """

    by_position: tuple[float, ...]
    tokens_per_step: float


@torch.inference_mode()
def accepted_lengths(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, rows: Tensor, lengths: Tensor, depth: int
) -> Tensor:
    """Accepted tokens, shape (n,), after the first `lengths` tokens of `rows`, shape (n, width).

    What stands behind a row's length is overwritten; causal attention never looks there.
    """
    chains = torch.cat([rows, rows.new_zeros(len(rows), depth)], dim=1)
    number = torch.arange(len(rows))
    for k in range(depth):
        chains[number, lengths + k] = _choice_after(draft, chains, lengths + k)
    accepted = torch.ones(len(rows), dtype=torch.bool)
    count = torch.zeros(len(rows), dtype=torch.long)
    hidden = target.model(chains, use_cache=False).last_hidden_state
    for k in range(depth):
        choice = target.lm_head(hidden[number, lengths - 1 + k]).argmax(-1)
        accepted &= choice == chains[number, lengths + k]
        count += accepted
    return count


def _choice_after(model: LlamaForCausalLM, rows: Tensor, lengths: Tensor) -> Tensor:
    hidden = model.model(rows, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(rows)), lengths - 1]
    return torch.as_tensor(model.lm_head(last).argmax(-1))


def on_text(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, contexts: Tensor, depth: int
) -> Acceptance:
    """Acceptance right after each context, shape (n, tokens): the text of others."""
    parts = torch.split(contexts, 32)
    lengths = torch.cat(
        [
            accepted_lengths(target, draft, part, torch.full((len(part),), part.shape[1]), depth)
            for part in parts
        ]
    )
    return _summary(lengths.tolist(), depth)


@torch.inference_mode()
def in_generation(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, prompts: Tensor, tokens: int, depth: int
) -> Acceptance:
    """Acceptance along the target's own continuation of each prompt, step by step."""
    found: list[int] = []
    for prompt in prompts:
        text = greedy(target, prompt, tokens)
        starts = torch.arange(len(prompt), len(text))
        ahead = accepted_lengths(target, draft, text.repeat(len(starts), 1), starts, depth)
        position = 0
        while position < len(ahead):
            found.append(int(ahead[position]))
            position += found[-1] + 1
    return _summary(found, depth)


@torch.inference_mode()
def greedy(model: LlamaForCausalLM, prompt: Tensor, tokens: int) -> Tensor:
    """The prompt and its greedy continuation, at most `tokens` long and cut at the end token."""
    text = model.generate(prompt[None], max_new_tokens=tokens, do_sample=False)
    return torch.as_tensor(text)[0]


def _summary(lengths: list[int], depth: int) -> Acceptance:
    by_position = []
    for k in range(depth):
        reached = sum(length >= k for length in lengths)
        by_position.append(sum(length > k for length in lengths) / max(reached, 1))
    return Acceptance(tuple(by_position), 1 + sum(lengths) / len(lengths))
