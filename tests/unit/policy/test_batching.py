"""Which iterations run together."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from penstock.cost.base import BatchLimits
from penstock.policy.batching import LayerwiseBatcher, NodewiseBatcher, Part, take


@dataclass(eq=False)
class Item:
    tokens: int
    context: int = 0
    prefill: bool = True
    layer: int = 0


LIMITS = BatchLimits(2, 100, 3, 1000)


def decode(context: int = 10, layer: int = 0) -> Item:
    return Item(1, context, False, layer)


def test_what_does_not_fit_is_overtaken_by_what_does():
    """The long prompt stays and keeps its place; shorter ones and decodes go."""
    first, long, short, token = Item(60), Item(60), Item(40), decode()
    taken, left, prefill, decodes, context = take([first, long, short, token], LIMITS)
    assert taken == [first, short, token]
    assert left == [long]
    assert (prefill, decodes, context) == (100, 1, 10)


items = st.lists(
    st.builds(Item, st.integers(1, 200), st.integers(0, 600), st.booleans()), max_size=20
)


@given(items)
def test_limits_hold_and_nobody_starves(queue):
    """Every batch keeps the limits (or is a single of its kind) and serves the oldest."""
    for item in queue:
        item.tokens = item.tokens if item.prefill else 1
    left = list(queue)
    while left:
        oldest = left[0]
        taken, left, prefill, decodes, context = take(left, LIMITS)
        prompts = [item for item in taken if item.prefill]
        assert oldest in taken
        assert len(prompts) <= 2
        assert decodes <= 3
        assert prefill <= 100 or len(prompts) == 1
        assert context <= 1000 or decodes == 1


def test_a_batch_sinks_until_the_next_entry_and_meets_who_waits_there():
    """Between entry layers nothing can join, so that those layers are one step."""
    batcher = LayerwiseBatcher(4, 9, (4, 6), LIMITS)
    early, late = decode(layer=4), decode(layer=6)
    batcher.add(early)
    batch = batcher.next_batch()
    assert batch.parts == (Part(2, 0, 1, 10),)
    assert batch.first
    batcher.add(late)
    assert batcher.commit(batch) == []
    batch = batcher.next_batch()
    assert batch.items == [late, early]
    assert batch.parts == (Part(3, 0, 2, 20),)
    assert not batch.first
    assert batcher.commit(batch) == [late, early]
    assert batcher.next_batch() is None


def test_nodewise_runs_all_layers_and_lets_others_join_part_way():
    """Each part counts those who run its layers."""
    batcher = NodewiseBatcher(4, 9, (4, 6), LIMITS)
    batcher.add(decode(layer=6))
    batcher.add(Item(50, layer=4))
    batch = batcher.next_batch()
    assert batch.parts == (Part(2, 50, 0, 0), Part(3, 50, 1, 10))
    assert batcher.commit(batch) == batch.items
    assert batcher.waiting == 0


def test_a_batch_that_did_not_run_goes_back_to_the_front():
    """Restored items are served before those that came meanwhile."""
    for batcher in (NodewiseBatcher(0, 2, (0,), LIMITS), LayerwiseBatcher(0, 2, (0,), LIMITS)):
        one, two = decode(), decode()
        batcher.add(one)
        batch = batcher.next_batch()
        batcher.add(two)
        batcher.restore(batch)
        assert batcher.next_batch().items == [one, two]
