"""Transformer layers that serve Hugging Face checkpoints, a slice of layers per worker.

A worker uses them so::

    checkpoint = read_checkpoint(folder)
    model = load_slice(checkpoint, start=0, end=16, num_pages=4096)
    pages = SequencePages(model.pool, model.cache.layout.page_size, 0, 16)

    pages.reserve(len(prompt))                  # raises OutOfPages: the scheduler asked too much
    item = StepItem(rows=len(prompt), context=0, pages=pages.table, start=0, end=16)
    hidden = model.forward(StepInput([item], tokens=torch.tensor(prompt)))     # [t, h]

Where ``end`` is the model's last layer, the worker picks the rows that need a token and samples::

    drawn = sample(model.head(hidden[-1:]), [Draw(params, seed, position=0, prompt=prompt)])
    drawn.tokens                                # [n] ints

Otherwise it sends ``hidden`` on; the next worker passes it as ``StepInput(hidden=...)``. Prefill
chunks, decodes, token trees and items with different layer ranges mix freely in one step. After a
tree was verified: ``model.cache.keep(pages.table, context, accepted_rows)``.
"""

from penstock.serve.model.checkpoint import Checkpoint, read_checkpoint
from penstock.serve.model.config import ModelConfig
from penstock.serve.model.kv import KVCache, KVLayout, OutOfPages, PagePool, SequencePages
from penstock.serve.model.parallel import ProcessGroup, SingleRank, TensorParallel
from penstock.serve.model.sampler import Draw, Drawn, sample, tree_choices
from penstock.serve.model.slice import LayerSlice, load_slice
from penstock.serve.model.step import StepInput, StepItem, TokenTree

__all__ = [
    "Checkpoint",
    "Draw",
    "Drawn",
    "KVCache",
    "KVLayout",
    "LayerSlice",
    "ModelConfig",
    "OutOfPages",
    "PagePool",
    "ProcessGroup",
    "SequencePages",
    "SingleRank",
    "StepInput",
    "StepItem",
    "TensorParallel",
    "TokenTree",
    "load_slice",
    "read_checkpoint",
    "sample",
    "tree_choices",
]
