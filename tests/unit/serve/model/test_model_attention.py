"""Attention over pages equals a dense softmax in float64, for any mix of items."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import InputError
from penstock.serve.model import KVCache, KVLayout, StepInput, StepItem, TokenTree
from penstock.serve.model.attention import AttentionPlan
from penstock.serve.model.segments import arrange

DIM, PAGE = 8, 4


@st.composite
def items(draw: st.DrawFn, layers: int) -> list[StepItem]:
    made: list[StepItem] = []
    free = iter(draw(st.permutations(range(400))))
    for _ in range(draw(st.integers(1, 7))):
        context = draw(st.sampled_from([0, 0, 1, 3, 4, 9, 30]))
        kind = draw(st.sampled_from(["decode", "chunk", "tree"]))
        rows = 1 if kind == "decode" else draw(st.integers(1, 9))
        pages = -(-(context + rows) // PAGE)
        table = np.array([next(free) for _ in range(layers * pages)], np.int32)
        tree = None
        if kind == "tree":
            tree = TokenTree.of([-1] + [draw(st.integers(0, r - 1)) for r in range(1, rows)])
        made.append(StepItem(rows, context, table.reshape(layers, pages), 0, layers, tree))
    return made


def dense(item: StepItem, q: torch.Tensor, kv: torch.Tensor, window: int | None) -> torch.Tensor:
    """``q`` ``[rows, heads, d]`` over entries ``kv`` ``[context + rows, 2 * kv_heads, d]``."""
    rows, context = item.rows, item.context
    heads, kv_heads = q.shape[1], kv.shape[1] // 2
    out = torch.zeros(q.shape, dtype=torch.float64)
    depth = np.arange(rows) if item.tree is None else item.tree.depths
    at = [*range(context), *(context + depth)]
    for row in range(rows):
        own = [
            j for j in range(rows) if (j <= row if item.tree is None else item.tree.mask[row, j])
        ]
        seen = [*range(context), *(context + j for j in own)]
        if window is not None:
            seen = [j for j in seen if at[context + row] - at[j] < window]
        for head in range(heads):
            group = head * kv_heads // heads
            scores = kv[seen, group].double() @ q[row, head].double() / math.sqrt(DIM)
            out[row, head] = scores.softmax(0) @ kv[seen, kv_heads + group].double()
    return out.view(rows, -1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mix_of_items_attends_as_dense_softmax_does(data: st.DataObject) -> None:
    """Decodes, chunks with and without context, trees, windows, grouped heads."""
    kv_heads = data.draw(st.sampled_from([1, 2]))
    heads = kv_heads * data.draw(st.sampled_from([1, 3]))
    window = data.draw(st.sampled_from([None, None, 2, 5, 12]))
    batch = data.draw(items(layers=2))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    cache = KVCache(400, KVLayout(PAGE, kv_heads, DIM, "float32"), "cpu")
    cache.data.normal_()
    plan = AttentionPlan(batch, 0, 2, window=window, cache=cache, query_heads=heads)
    for layer in range(2):
        qkv = torch.randn(sum(item.rows for item in batch), heads + 2 * kv_heads, DIM)
        got = plan.attend(layer, qkv.clone())
        row = 0
        for item in batch:
            own = qkv[row : row + item.rows]
            pages = torch.from_numpy(item.pages[layer].astype(np.int64))
            entries = cache.data[pages].flatten(0, 1)[: item.context + item.rows]
            assert torch.equal(entries[item.context :], own[:, heads:]), "new entries are written"
            want = dense(item, own[:, :heads], entries, window)
            assert torch.allclose(got[row : row + item.rows].double(), want, atol=1e-5)
            row += item.rows


def item(**changes: object) -> StepItem:
    fields = {"rows": 2, "context": 3, "pages": np.zeros((2, 2), np.int32), "start": 1, "end": 3}
    return StepItem(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 0}, r"layers \[0, 3\) of a slice that holds \[1, 4\)"),
        ({"end": 5}, r"layers \[1, 5\)"),
        ({"end": 1}, r"layers \[1, 1\)"),
        ({"rows": 0}, "needs rows"),
        ({"context": -1}, "no negative context"),
        ({"context": 7}, "2 pages of 4 tokens do not hold 7 \\+ 2"),
        ({"pages": np.zeros((3, 2), np.int32)}, "pages of 3 layers"),
        ({"tree": TokenTree.of([-1])}, "tree of 1 rows in an item of 2 rows"),
    ],
)
def test_a_step_that_contradicts_itself_is_refused(
    changes: dict[str, object], message: str
) -> None:
    """One line says which item is wrong and how."""
    with pytest.raises(InputError, match=message):
        arrange(StepInput([item(**changes)], hidden=torch.zeros(2, 4)), 1, 4, PAGE)


def test_rows_must_come_as_tokens_or_hidden_states() -> None:
    """Their number must be that of the items."""
    with pytest.raises(InputError, match="2 rows above layer 0 needs as many hidden states"):
        arrange(StepInput([item()], hidden=torch.zeros(3, 4)), 1, 4, PAGE)
    with pytest.raises(InputError, match="from layer 0 on needs as many tokens"):
        arrange(StepInput([item(start=0, end=2)], hidden=torch.zeros(2, 4)), 0, 4, PAGE)
