"""KV blocks: exact counts, watermark, prefix cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.errors import InputError
from penstock.policy.blocks import BlockManager, blocks_for, chain_hashes


def test_watermark_binds_admissions_only() -> None:
    """Of 100 blocks with a watermark of 10 %, an admission gets 90 and a decode the rest."""
    blocks = BlockManager(100, watermark=0.1)
    assert blocks.can_admit(90)
    assert not blocks.can_admit(91)
    blocks.take(90)
    assert blocks.can_take(10)
    assert not blocks.can_take(11)
    assert blocks.peak_fraction == pytest.approx(0.9)


@given(tokens=st.integers(0, 10_000), size=st.integers(1, 64))
def test_blocks_for_is_the_least_that_holds(tokens: int, size: int) -> None:
    """One block fewer would not hold the tokens."""
    count = blocks_for(tokens, size)
    assert count * size >= tokens
    assert (count - 1) * size < tokens or count == 0


def test_chained_hashes_name_the_whole_prefix() -> None:
    """A piece has the same name only after the same pieces; names are stable."""
    one = chain_hashes([[1, 2], [3, 4]])
    assert chain_hashes([[1, 2], [3, 4], [5, 6]])[:2] == one
    assert chain_hashes([[9, 9], [3, 4]])[1] != one[1]
    assert all(0 <= name < 2**63 for name in one)


def test_eviction_takes_the_oldest_tail_first() -> None:
    """Pieces nobody uses go least recently used first, the end of a prompt before its start."""
    blocks = BlockManager(6, 4, piece_tokens=4)
    blocks.take(3)
    for piece in (1, 2, 3):
        assert blocks.store(piece)
    blocks.unshare((1, 2, 3))
    assert blocks.free == 6
    blocks.take(4)
    assert blocks.cached_pieces((1, 2, 3)) == 2
    blocks.take(1)
    assert blocks.cached_pieces((1, 2, 3)) == 1
    blocks.share((1,))
    assert blocks.free == 0


def test_contradictions_are_the_users() -> None:
    """No block, or pieces that are not whole blocks, are refused with one line."""
    with pytest.raises(InputError, match="at least one KV block"):
        BlockManager(0)
    with pytest.raises(InputError, match="choose a block_size"):
        BlockManager(10, 24, piece_tokens=512)


class Cache(RuleBasedStateMachine):
    """Sequences come, share, compute and go; the recount holds after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(12, 4, piece_tokens=8)
        self.live: list[tuple[list[int], int]] = []

    @rule(family=st.integers(0, 2), pieces=st.integers(0, 3), own=st.integers(0, 3))
    def admit(self, family: int, pieces: int, own: int) -> None:
        hashes = [10 * family + i for i in range(pieces)]
        hit = hashes[: self.blocks.cached_pieces(hashes)]
        need = 2 * (pieces - len(hit)) + own
        if not self.blocks.can_admit(need + self.blocks.idle_of(hit)):
            return
        self.blocks.share(hit)
        self.blocks.take(need)
        held, shared = need, list(hit)
        for piece in hashes[len(hit) :]:
            if len(shared) == piece % 10 and self.blocks.store(piece):
                held -= 2
                shared.append(piece)
        self.live.append((shared, held))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 100))
    def finish(self, which: int) -> None:
        shared, held = self.live.pop(which % len(self.live))
        self.blocks.give(held)
        self.blocks.unshare(shared)

    @invariant()
    def recount(self) -> None:
        self.blocks.check(sum(held for _, held in self.live), [s for s, _ in self.live])


TestCache = Cache.TestCase
