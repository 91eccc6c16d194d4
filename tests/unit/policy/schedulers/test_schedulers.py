"""What each scheduler puts into a batch, by hand figures."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import InputError, SpecError
from penstock.policy.schedulers import (
    SCHEDULERS,
    Batch,
    BlockManager,
    Cohort,
    Scheduler,
    SchedulerSettings,
    Sequence,
    make_scheduler,
)


def scheduler(name: str, num_blocks: int = 1000, stages: int = 1, **options: object) -> Scheduler:
    chosen = SchedulerSettings(name=name, **options)  # type: ignore[arg-type]
    pieces = chosen.prefix_piece_tokens if chosen.enable_prefix_caching else chosen.block_size
    blocks = BlockManager(num_blocks, chosen.block_size, piece_tokens=pieces)
    return make_scheduler(chosen, blocks, stages)


def step(policy: Scheduler) -> Batch:
    """Run one step."""
    batch = policy.next_batch()
    assert batch is not None
    policy.commit(batch)
    return batch


def prompts(batch: Batch) -> list[tuple[int, int]]:
    return [(seq.row, tokens) for seq, tokens in batch.prefill]


def test_vllm_fills_the_budget_decodes_first() -> None:
    """Decodes take their token each, then prompts share what is left, the last one in part."""
    policy = scheduler("vllm", max_num_seqs=8, max_num_batched_tokens=100)
    for row in range(3):
        policy.add(Sequence(row, 0.0, 60, 5))
    assert prompts(step(policy)) == [(0, 60), (1, 40)]
    batch = step(policy)
    assert (batch.seqs, prompts(batch)) == (1, [(1, 20), (2, 60)])
    batch = step(policy)
    assert (batch.seqs, batch.prefill, batch.kv_tokens) == (3, [], 61 + 60 + 60)


def test_vllm_long_prompts_can_be_held_back() -> None:
    """The threshold caps one prompt's share of a step, so that the next one fits beside it."""
    policy = scheduler(
        "vllm", max_num_seqs=8, max_num_batched_tokens=100, long_prefill_token_threshold=30
    )
    policy.add(Sequence(0, 0.0, 200, 5))
    policy.add(Sequence(1, 0.0, 20, 5))
    assert prompts(step(policy)) == [(0, 30), (1, 20)]


def test_vllm_v0_stalls_decodes_for_prompts() -> None:
    """A prompt that fits runs alone; decodes go on when none is left."""
    policy = scheduler("vllm-v0")
    policy.add(Sequence(0, 0.0, 60, 5))
    step(policy)
    policy.add(Sequence(1, 0.1, 50, 5))
    batch = step(policy)
    assert (batch.seqs, prompts(batch)) == (0, [(1, 50)])
    assert step(policy).seqs == 2


def test_sarathi_takes_whole_prompts_blocks_at_admission() -> None:
    """The chunk bounds the step, but the blocks of the prompt are taken at once."""
    policy = scheduler("sarathi", max_num_batched_tokens=64)
    policy.add(Sequence(0, 0.0, 160, 5))
    assert prompts(step(policy)) == [(0, 64)]
    assert policy.blocks.used == 10


def test_orca_reserves_the_longest_sequence() -> None:
    """Two slots of 512 tokens fill 64 blocks, whatever the requests need."""
    policy = scheduler("orca", num_blocks=70, max_model_len=512)
    for row in range(3):
        policy.add(Sequence(row, 0.0, 10, 5))
    assert len(step(policy).prefill) == 2
    assert policy.blocks.used == 64


def test_static_batches_never_refill() -> None:
    """A new request waits until the last of the running batch is done."""
    policy = scheduler("static", max_num_seqs=2)
    policy.add(Sequence(0, 0.0, 10, 2))
    policy.add(Sequence(1, 0.0, 10, 4))
    step(policy)
    policy.add(Sequence(2, 0.1, 10, 2))
    assert [step(policy).seqs for _ in range(3)] == [2, 1, 1]
    assert policy.blocks.used == 0
    assert prompts(step(policy)) == [(2, 10)]


def test_priority_preempts_for_the_urgent() -> None:
    """A better priority takes the place of the least urgent one, which starts over later."""
    policy = scheduler("priority", max_num_seqs=2)
    for row in range(2):
        policy.add(Sequence(row, 0.0, 10, 9, priority=5))
    step(policy)
    policy.add(Sequence(2, 0.1, 10, 9, priority=0))
    batch = step(policy)
    assert prompts(batch) == [(2, 10)]
    assert [seq.row for seq in policy.preempted] == [1]


def test_deadlines_order_equals() -> None:
    """Within one priority the earliest deadline enters first."""
    policy = scheduler("priority", max_num_seqs=1)
    for row, deadline in enumerate((3.0, 1.0, 2.0)):
        policy.add(Sequence(row, 0.0, 10, 1, deadline_s=deadline))
    assert [prompts(step(policy))[0][0] for _ in range(3)] == [1, 2, 0]


def test_vtc_serves_whoever_got_least() -> None:
    """After one client's long prompt, the other client's requests go first."""
    policy = scheduler("vtc", max_num_seqs=1)
    for row, client in enumerate("AAABB"):
        policy.add(Sequence(row, 0.0, 100, 1, client=client))
    assert [prompts(step(policy))[0][0] for _ in range(5)] == [0, 3, 1, 4, 2]


def test_mlfq_lets_short_requests_pass_long_ones() -> None:
    """A long prompt joins a low queue; a short one that comes later runs before it."""
    policy = scheduler("mlfq", max_num_seqs=1, mlfq_quantum=4)
    policy.add(Sequence(0, 0.0, 2000, 50))
    policy.add(Sequence(1, 0.1, 20, 3))
    assert prompts(step(policy)) == [(1, 20)]


def test_prefix_hits_skip_computed_pieces() -> None:
    """The second request of a conversation computes only what is new; one token at least."""
    policy = scheduler("vllm", enable_prefix_caching=True, prefix_piece_tokens=32)
    policy.add(Sequence(0, 0.0, 70, 1, hashes=(1, 2)))
    assert prompts(step(policy)) == [(0, 70)]
    policy.add(Sequence(1, 0.1, 100, 1, hashes=(1, 2, 3)))
    batch = step(policy)
    assert (prompts(batch), batch.chunks) == ([(1, 36)], [(36, 64)])
    policy.add(Sequence(2, 0.2, 64, 1, hashes=(1, 2)))
    assert prompts(step(policy)) == [(2, 32)]
    assert policy.blocks.hit_tokens == 64 + 32


def test_the_youngest_recomputes_when_blocks_run_out() -> None:
    """Preemption gives all blocks back and puts prompt and output so far at the head."""
    policy = scheduler("vllm", num_blocks=5, max_num_seqs=4)
    policy.add(Sequence(0, 0.0, 32, 20))
    policy.add(Sequence(1, 0.1, 32, 20))
    step(policy)
    batch = step(policy)
    assert batch.seqs == 1
    (victim,) = policy.preempted
    assert (victim.row, victim.prompt_tokens, victim.blocks, policy.waiting[0]) == (
        1,
        33,
        0,
        victim,
    )
    policy.check()


class ShortestJobFirst(Scheduler):
    """A user's own policy: whole prompts beside the decodes, the shortest request first."""

    def next_batch(self) -> Batch | None:
        cohort, _ = self._pay_decodes()
        admitted = []
        for seq in sorted(self.waiting, key=lambda seq: seq.total_tokens):
            need = -(-seq.prompt_tokens // self.blocks.block_size)
            if self.held == self.max_num_seqs or not self.blocks.can_admit(need):
                break
            self._remove_waiting(seq)
            self.blocks.take(need)
            seq.blocks = need
            self.held += 1
            admitted.append(seq)
        return self._batch(cohort, [(seq, seq.prompt_tokens) for seq in admitted], admitted)

    @property
    def accepting(self) -> bool:
        return True


def test_a_policy_of_ones_own() -> None:
    """A class with one method is a scheduler; blocks and spans come with the base."""
    policy = ShortestJobFirst(SchedulerSettings(max_num_seqs=1), BlockManager(100))
    for row, output in enumerate((30, 10, 20)):
        policy.add(Sequence(row, 0.0, 10, output))
    order = []
    while policy.outstanding:
        batch = policy.next_batch()
        assert batch is not None
        steps = policy.steady_steps(batch)
        order += [seq.row for seq in policy.commit(batch, steps)[1]]
        policy.check()
    assert order == [1, 2, 0]


def test_names_are_forgiving_and_mistakes_named() -> None:
    """Spelling variants are accepted; a wrong name gets the nearest one."""
    blocks = BlockManager(100)
    assert type(make_scheduler(SchedulerSettings(name="vLLM_v0"), blocks)).__name__
    with pytest.raises(SpecError, match="did you mean 'sarathi'"):
        make_scheduler(SchedulerSettings(name="sarati"), blocks)
    with pytest.raises(SpecError, match="max_num_seqs"):
        SchedulerSettings(max_num_seqs=0)
    with pytest.raises(SpecError, match="watermark"):
        SchedulerSettings(watermark=1.0)
    with pytest.raises(InputError, match="max_num_batched_tokens"):
        make_scheduler(SchedulerSettings(max_num_seqs=64, max_num_batched_tokens=32), blocks)
    with pytest.raises(SpecError, match="prefix"):
        make_scheduler(SchedulerSettings(name="orca", enable_prefix_caching=True), blocks)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_draining_gives_everything_back(name: str) -> None:
    """After a drain all sequences are out, restartable, and all blocks free."""
    policy = scheduler(name, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=200)
    for row in range(6):
        policy.add(Sequence(row, 0.1 * row, 50, 30))
    for _ in range(4):
        step(policy)
    assert sorted(seq.row for seq in policy.drain()) == [0, 1, 2, 3, 4, 5]
    assert (policy.blocks.used, policy.held, policy.outstanding) == (0, 0, 0)


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"static"}))
def test_a_cancelled_request_leaves_no_trace(name: str) -> None:
    """Removing sequences one by one, waiting or running, frees all they held."""
    policy = scheduler(name, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=200)
    sequences = [Sequence(row, 0.1 * row, 50, 30) for row in range(6)]
    for seq in sequences:
        policy.add(seq)
    for _ in range(4):
        step(policy)
    for seq in sequences:
        assert policy.remove(seq)
        policy.check()
    assert (policy.blocks.used, policy.outstanding) == (0, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cohort_sums_equal_a_recount(data: st.DataObject) -> None:
    """Context, block needs and ends of a cohort are those of its members one by one."""
    size = data.draw(st.integers(1, 8))
    cohort = Cohort(0, size)
    held: dict[int, tuple[Sequence, int]] = {}
    row = 0
    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()) or not cohort.seqs:
            seq = Sequence(row, 0.0, data.draw(st.integers(1, 20)), data.draw(st.integers(2, 30)))
            seq.computed = seq.prompt_tokens + 1
            seq.blocks = -(-seq.prompt_tokens // size)
            cohort.join(seq)
            held[row] = (seq, seq.computed)
            row += 1
        elif data.draw(st.integers(0, 3)) == 0:
            seq, n = held.pop(data.draw(st.sampled_from(sorted(held))))
            cohort.leave(seq)
            assert (seq.computed, seq.blocks) == (n, -(-(n - 1) // size))
        else:
            free = data.draw(st.integers(0, 40))
            steps = data.draw(st.integers(1, cohort.steady_steps(free)))
            first = cohort.need()
            taken, finished = cohort.advance(steps)
            assert taken <= free
            grown = 0
            for key, (seq, n) in list(held.items()):
                grown += -(-(n + steps - 1) // size) - -(-(n - 1) // size)
                held[key] = (seq, n + steps)
                if n + steps == seq.total_tokens:
                    assert seq in finished
                    cohort.finish(seq)
                    assert seq.blocks == -(-(n + steps - 1) // size)
                    del held[key]
            assert first + taken == grown
        assert cohort.kv_tokens == sum(n - 1 for _, n in held.values())
        assert cohort.need() == sum((n - 1) % size == 0 for _, n in held.values())
        assert [seq.row for seq in cohort] == list(held)


def test_urgent_prompts_come_first_in_every_step() -> None:
    """Among unfinished prompts too the budget goes to the more urgent one, whoever came first."""
    policy = scheduler(
        "priority", max_num_seqs=8, max_num_batched_tokens=50, long_prefill_token_threshold=30
    )
    policy.add(Sequence(0, 0.0, 200, 5))
    step(policy)
    policy.add(Sequence(1, 0.1, 200, 5, deadline_s=1.0))
    assert prompts(step(policy)) == [(0, 30), (1, 20)]
    assert prompts(step(policy)) == [(1, 30), (0, 20)]
