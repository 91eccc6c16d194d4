"""A run of layers of one model with its KV pages: what a worker computes with."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom

from penstock.errors import InputError, SpecError
from penstock.serve.model.attention import AttentionPlan
from penstock.serve.model.checkpoint import Checkpoint, read_checkpoint
from penstock.serve.model.config import DTYPES, ModelConfig
from penstock.serve.model.kv import KVCache, KVLayout, PagePool
from penstock.serve.model.layers import Attention, Layer, make_norm
from penstock.serve.model.parallel import SingleRank, TensorParallel
from penstock.serve.model.rope import RotaryTable
from penstock.serve.model.segments import Batch, Segment, arrange
from penstock.serve.model.step import StepInput
from penstock.serve.model.weights import SliceWeights, read_weights
from penstock.spec.names import did_you_mean


class LayerSlice:
    """Layers ``[start, end)`` of a model on one device (one rank of a tensor parallel group).

    ``pool`` hands out the page ids of ``cache``. Under tensor parallelism every rank runs the
    same steps with the same page ids.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: SliceWeights,
        *,
        start: int,
        end: int,
        tp: TensorParallel,
        cache: KVCache,
    ) -> None:
        self.config = config
        self.start = start
        self.end = end
        self.cache = cache
        self.pool = PagePool(cache.num_pages)
        self.dtype = cache.data.dtype
        self.device = cache.data.device
        self._weights = weights
        self._query_heads = config.shape.num_attention_heads // tp.size
        self._layers = [Layer(config, layer, tp) for layer in weights.layers]
        self._final_norm = None if weights.norm is None else make_norm(weights.norm, config)
        self._rotary = (
            None if config.rope is None else RotaryTable(config.rope, self.dtype, self.device)
        )

    @property
    def holds_embedding(self) -> bool:
        """Whether the slice takes tokens: it begins at layer 0."""
        return self._weights.embedding is not None

    @property
    def holds_head(self) -> bool:
        """Whether the slice gives logits: it ends at the model's last layer."""
        return self._weights.head is not None

    @torch.inference_mode()
    def forward(self, step: StepInput) -> torch.Tensor:
        """Run ``step`` and return hidden states ``[t, h]`` of all its rows, in order.

        Each item has then passed the layers it named; its new KV entries are in its pages. The
        last norm is part of ``head``. Raises ``InputError`` where the step contradicts itself or
        the slice (layers it does not hold, too few pages, rows that do not add up).
        """
        if not step.items:
            raise InputError("a step needs at least one item")
        batch = arrange(step, self.start, self.end, self.cache.layout.page_size)
        positions = torch.from_numpy(batch.positions).to(self.device)
        hidden = self._enter(step, batch, positions)
        for part in batch.segments:
            if part.rows is None:
                hidden = self._run(part, hidden, positions, batch.last_position)
            else:
                rows = torch.from_numpy(part.rows).to(self.device)
                hidden[rows] = self._run(part, hidden[rows], positions[rows], batch.last_position)
        return hidden

    @torch.inference_mode()
    def forward_rows(
        self, tokens: torch.Tensor, positions: torch.Tensor, last: int, attention: Attention
    ) -> torch.Tensor:
        """Hidden states ``[t, h]`` of ``tokens`` ``[t]`` at ``positions`` ``[t]``, none above
        ``last``, after all layers; where KV entries lie is the matter of ``attention``.

        For inner loops over whole models that plan many passes at once: nothing is checked.
        """
        hidden = self._embed(tokens, positions, last)
        rotation = None if self._rotary is None else self._rotary.at(positions, last)
        for index, layer in enumerate(self._layers, self.start):
            hidden = layer.forward(hidden, index, attention, rotation)
        return hidden

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, vocab]`` in the model's dtype of rows ``hidden`` ``[n, h]``."""
        if self._weights.head is None:
            raise InputError(f"layers [{self.start}, {self.end}) do not hold the output head")
        if self._final_norm is not None:
            hidden = self._final_norm(hidden)
        return F.linear(hidden, self._weights.head)

    def _enter(self, step: StepInput, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """The hidden states before the first layer of each item, in a tensor of our own."""
        embedded, total = len(batch.token_rows), len(batch.positions)
        if not embedded:
            assert step.hidden is not None
            return step.hidden.to(self.device, self.dtype, copy=True)
        assert step.tokens is not None
        self._check_vocabulary(step.tokens)
        tokens = step.tokens.to(self.device)
        if embedded == total:
            return self._embed(tokens, positions, batch.last_position)
        assert step.hidden is not None
        hidden = step.hidden.to(self.device, self.dtype, copy=True)
        rows = torch.from_numpy(batch.token_rows).to(self.device)
        hidden[rows] = self._embed(tokens[rows], positions[rows], batch.last_position)
        return hidden

    def _check_vocabulary(self, tokens: torch.Tensor) -> None:
        if tokens.device.type != "cpu":  # a look at it would wait for the device
            return
        low, high = (int(bound) for bound in tokens.aminmax())
        vocab = self.config.shape.vocab_size
        if low < 0 or high >= vocab:
            wrong = low if low < 0 else high
            raise InputError(f"token {wrong} is not in the vocabulary of {vocab}")

    def _embed(self, tokens: torch.Tensor, positions: torch.Tensor, last: int) -> torch.Tensor:
        assert self._weights.embedding is not None
        hidden = F.embedding(tokens, self._weights.embedding)
        if self._weights.positions is None:
            return hidden
        longest = self.config.shape.max_position_embeddings
        if last >= longest:
            raise InputError(f"position {last} is beyond the {longest} that the model has learned")
        offset = self.config.learned_position_offset
        return hidden + F.embedding(positions + offset, self._weights.positions)

    def _run(
        self, part: Segment, hidden: torch.Tensor, positions: torch.Tensor, last: int
    ) -> torch.Tensor:
        """``hidden`` ``[rows, h]`` after all layers of ``part``."""
        rotation = None if self._rotary is None else self._rotary.at(positions, last)
        plans: dict[int | None, AttentionPlan] = {}
        for index in range(part.start, part.end):
            window = self.config.windows[index]
            plan = plans.get(window)
            if plan is None:
                plan = AttentionPlan(
                    part.items,
                    part.start,
                    part.end,
                    window=window,
                    cache=self.cache,
                    query_heads=self._query_heads,
                )
                plans[window] = plan
            hidden = self._layers[index - self.start].forward(hidden, index, plan, rotation)
        return hidden


def load_slice(
    checkpoint: Checkpoint | str | Path,
    start: int = 0,
    end: int | None = None,
    *,
    tp: TensorParallel | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    num_pages: int,
    page_size: int = 16,
) -> LayerSlice:
    """Read layers ``[start, end)`` (``end`` None: to the last) and make their KV pages.

    ``checkpoint`` is a folder or what ``read_checkpoint`` gave. ``dtype`` is ``float32``,
    ``float16``, ``bfloat16`` or ``auto``, which keeps what the checkpoint is stored in. A page
    holds ``page_size`` tokens of one layer. Raises ``SpecError`` that names file and tensor.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    config, tp = checkpoint.config, tp or SingleRank()
    end = config.num_layers if end is None else end
    if not 0 <= start < end <= config.num_layers:
        raise SpecError(
            f"layers [{start}, {end}) are not within the {config.num_layers} of the model",
            source=checkpoint.folder,
        )
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise SpecError("there is no CUDA device here", key="device", value=device, fix="use 'cpu'")
    name = config.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise SpecError("unknown dtype", key="dtype", value=dtype, fix=did_you_mean(dtype, DTYPES))
    weights = read_weights(
        checkpoint, start, end, tp=tp, dtype=getattr(torch, name), device=torch.device(device)
    )
    layout = KVLayout(
        page_size=page_size,
        kv_heads=config.shape.num_key_value_heads // tp.size,
        head_dim=config.shape.head_dim,
        dtype=name,
        tensor_parallel_size=tp.size,
        tensor_parallel_rank=tp.rank,
    )
    cache = KVCache(num_pages, layout, device)
    return LayerSlice(config, weights, start=start, end=end, tp=tp, cache=cache)
