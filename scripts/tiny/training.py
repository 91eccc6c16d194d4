"""One training loop for both models: seeded batches, a cosine schedule, checkpoints."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

SEQUENCE_TOKENS = 256
BATCH_SEQUENCES = 4
WARMUP_STEPS = 60
FINAL_RATE = 0.03
CHECKPOINT_EVERY_S = 90.0
REPORT_EVERY_STEPS = 25

StepLoss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train and how fast. `limit_s` stops early on a slow machine."""

    steps: int
    limit_s: float
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended: steps done, and whether all planned steps were."""

    steps: int
    complete: bool


def target_config(vocab_size: int) -> LlamaConfig:
    """The shape of the target: six layers, 5.8 M parameters with a vocabulary of 4096."""
    return _config(vocab_size, hidden=256, intermediate=768, layers=6, heads=8, kv_heads=4)


def draft_config(vocab_size: int) -> LlamaConfig:
    """The shape of the draft: two layers, 0.9 M parameters with a vocabulary of 4096."""
    return _config(vocab_size, hidden=128, intermediate=384, layers=2, heads=4, kv_heads=2)


def _config(
    vocab_size: int, *, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        # On a CPU, with heads this small, this is faster than fused attention.
        attn_implementation="eager",
    )


def train(
    model: LlamaForCausalLM,
    loss_of: StepLoss,
    stream: NDArray[np.int64],
    schedule: Schedule,
    checkpoint: Path,
) -> Outcome:
    """Train `model` in place and return how it ended; continues from `checkpoint` if there.

    The rate follows whichever is further: steps done or time spent. So a run cut by the limit
    still ends with a small rate, but only a run of all its steps can be repeated bit for bit.
    """
    optimizer = torch.optim.AdamW(
        _groups(model), lr=schedule.learning_rate, betas=(0.9, 0.95), fused=True
    )
    step, spent_s = _restore(model, optimizer, checkpoint)
    started_s = time.monotonic() - spent_s
    saved_s = spent_s
    recent: list[float] = []
    while step < schedule.steps and spent_s < schedule.limit_s:
        progress = max(step / schedule.steps, spent_s / schedule.limit_s)
        rate = schedule.learning_rate * _rate(progress, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(batch(stream, step, schedule.seed))
        torch.autograd.backward(loss)
        mean_loss, spent_s = _share(model, loss.item(), time.monotonic() - started_s)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(mean_loss)
        step += 1
        if step % REPORT_EVERY_STEPS == 0 and dist.get_rank() == 0:
            mean = sum(recent[-REPORT_EVERY_STEPS:]) / len(recent[-REPORT_EVERY_STEPS:])
            print(
                f"step {step}/{schedule.steps}  loss {mean:.3f}  rate {rate:.1e}  {spent_s:.0f} s"
            )
        if spent_s - saved_s > CHECKPOINT_EVERY_S:
            _save(model, optimizer, checkpoint, step, spent_s)
            saved_s = spent_s
    _save(model, optimizer, checkpoint, step, spent_s)
    return Outcome(step, step >= schedule.steps)


def _share(model: LlamaForCausalLM, loss: float, spent_s: float) -> tuple[float, float]:
    """Average gradients, loss and time over the processes: all then take the same step."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([loss, spent_s])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return float(flat[-2]), float(flat[-1])


def batch(stream: NDArray[np.int64], step: int, seed: int) -> Tensor:
    """This process's sequences of one step, shape (BATCH_SEQUENCES, SEQUENCE_TOKENS + 1).

    Each pass over the stream cuts it at another offset and visits the pieces in another order.
    """
    pieces = (len(stream) - 1) // SEQUENCE_TOKENS - 1
    rows = []
    first = (step * dist.get_world_size() + dist.get_rank()) * BATCH_SEQUENCES
    for index in range(first, first + BATCH_SEQUENCES):
        number, place = divmod(index, pieces)
        generator = np.random.default_rng([seed, number])
        offset = int(generator.integers(SEQUENCE_TOKENS))
        start = offset + int(generator.permutation(pieces)[place]) * SEQUENCE_TOKENS
        rows.append(stream[start : start + SEQUENCE_TOKENS + 1])
    return torch.from_numpy(np.stack(rows))


def next_token_loss(model: LlamaForCausalLM) -> StepLoss:
    """Cross-entropy of the next token, in nats."""

    def loss_of(tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(tokens[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    return loss_of


def distillation_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM) -> StepLoss:
    """Divergence of the draft's next-token distribution from the target's, KL, in nats."""

    def loss_of(tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                wanted = target(tokens[:, :-1], use_cache=False).logits
            given = draft(tokens[:, :-1], use_cache=False).logits
        return functional.kl_div(
            functional.log_softmax(given.float().flatten(0, 1), -1),
            functional.log_softmax(wanted.float().flatten(0, 1), -1),
            reduction="batchmean",
            log_target=True,
        )

    return loss_of


@torch.inference_mode()
def held_out_loss(
    model: LlamaForCausalLM, stream: NDArray[np.int64], sequences: int
) -> tuple[float, list[int]]:
    """Mean loss in nats per token over the first sequences, and the tokens it was taken over."""
    total = 0.0
    predicted: list[int] = []
    for index in range(min(sequences, (len(stream) - 1) // SEQUENCE_TOKENS)):
        start = index * SEQUENCE_TOKENS
        tokens = torch.from_numpy(stream[start : start + SEQUENCE_TOKENS + 1])[None]
        logits = model(tokens[:, :-1], use_cache=False).logits.float()
        total += float(functional.cross_entropy(logits[0], tokens[0, 1:], reduction="sum"))
        predicted.extend(tokens[0, 1:].tolist())
    return total / len(predicted), predicted


def _rate(progress: float, step: int) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return warm * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


def _groups(model: LlamaForCausalLM) -> list[dict[str, object]]:
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    scales = [weight for weight in model.parameters() if weight.dim() == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]


def _save(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    path: Path,
    step: int,
    spent_s: float,
) -> None:
    if dist.get_rank() != 0:
        return
    partial = path.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "spent_s": spent_s,
    }
    torch.save(state, partial)
    partial.replace(path)


def _restore(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, path: Path
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"continue {path.name} at step {state['step']}")
    return int(state["step"]), float(state["spent_s"])
