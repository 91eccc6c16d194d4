"""Pages: counted exactly, moved byte for byte, refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InputError
from penstock.serve.model import KVCache, KVLayout, OutOfPages, PagePool, SequencePages

LAYOUT = KVLayout(page_size=4, kv_heads=2, head_dim=3, dtype="float32")


def filled(pages: int, dtype: str = "float32") -> KVCache:
    cache = KVCache(pages, replace(LAYOUT, dtype=dtype), "cpu")
    cache.data.copy_(torch.arange(cache.data.numel()).view(cache.data.shape))
    return cache


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_pages_arrive_as_they_left(dtype: str) -> None:
    """Export and load keep the order of pages and touch no others."""
    source, target = filled(9, dtype), KVCache(7, replace(LAYOUT, dtype=dtype), "cpu")
    content = source.export(np.array([8, 2, 5], np.int32))
    assert len(content) == 3 * source.layout.page_bytes
    target.load(np.array([0, 6, 3], np.int32), bytes(content), source.layout)
    assert torch.equal(target.data[[0, 6, 3]], source.data[[8, 2, 5]])
    assert not target.data[[1, 2, 4, 5]].any()


def test_unequal_tensor_parallel_sizes_are_refused() -> None:
    """The message names the field and both values."""
    other = replace(LAYOUT, tensor_parallel_size=2)
    with pytest.raises(InputError, match="tensor_parallel_size is 2 at the sender and 1"):
        filled(2).load(np.array([0], np.int32), b"", other)


def test_content_of_the_wrong_length_is_refused() -> None:
    """A cut transfer is no transfer."""
    with pytest.raises(InputError, match="must be 192 bytes"):
        filled(2).load(np.array([0], np.int32), b"\0" * 191, LAYOUT)


@given(st.data())
def test_keeping_a_path_moves_its_entries_in_every_layer(data: st.DataObject) -> None:
    """Compared with lists of entries per layer, wherever the pages lie."""
    context, rows = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 9))
    kept = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1)))
    pages = np.array(data.draw(st.permutations(range(12)))[:10], np.int32).reshape(2, 5)
    cache = filled(12)
    before = [cache.data[torch.from_numpy(table.astype(int))].flatten(0, 1) for table in pages]
    cache.keep(pages, context, kept)
    for table, old in zip(pages, before, strict=True):
        now = cache.data[torch.from_numpy(table.astype(int))].flatten(0, 1)
        wanted = [*range(context), *(context + row for row in kept)]
        assert torch.equal(now[: len(wanted)], old[wanted])


@pytest.mark.parametrize("kept", [[1, 0], [2, 2], [-1]])
def test_a_path_that_does_not_rise_is_refused(kept: list[int]) -> None:
    """It cannot be a path from the root down."""
    with pytest.raises(InputError, match="must rise"):
        filled(4).keep(np.zeros((1, 2), np.int32), 0, kept)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=40))
def test_pages_are_never_handed_out_twice(actions: list[tuple[int, int]]) -> None:
    """Sequences grow, shrink, fork and end; held and free pages always add up."""
    pool = PagePool(60)
    sequences = [SequencePages(pool, 4, 0, 1 + i) for i in range(4)]
    fork = SequencePages(pool, 4, 0, 1)
    for who, tokens in actions:
        sequence = sequences[who]
        if tokens == 0:
            fork.release()
            fork.share(sequences[0].table)
        elif tokens > 35:
            sequence.release()
        elif tokens > 30:
            sequence.truncate(min(tokens - 25, sequence.capacity_tokens))
        else:
            free, held = pool.free, sequence.table.size
            try:
                sequence.reserve(tokens)
            except OutOfPages:
                assert (pool.free, sequence.table.size) == (free, held)
                assert (-(-tokens // 4)) * (1 + who) - held > free
        own = [set(s.table.reshape(-1).tolist()) for s in sequences]
        assert sum(map(len, own)) == len(set().union(*own))
        in_use = set().union(*own, fork.table.reshape(-1).tolist())
        assert len(in_use) + pool.free == 60


def test_a_page_that_is_free_cannot_be_given_back() -> None:
    """A double release is a fault, not a larger pool."""
    pool = PagePool(3)
    pages = pool.take(2)
    pool.give(pages)
    with pytest.raises(AssertionError):
        pool.give(pages)


def test_page_bytes_count_keys_and_values() -> None:
    """16 tokens of 8 KV heads of 128 in bf16: 64 KiB."""
    layout = KVLayout(page_size=16, kv_heads=8, head_dim=128, dtype="bfloat16")
    assert layout.page_bytes == 65536
