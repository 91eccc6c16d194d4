"""Several models behind one gateway."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from many_rig import Rig, pool, run

from penstock.errors import InputError, SpecError
from penstock.plan.pool_plan import PoolPlan, Sharing
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.inline import InlinePool
from penstock.serve.many.member import Making
from penstock.serve.many.runtime import ManyRuntime
from penstock.serve.pool import ExecutorName
from penstock.spec.variants import Precision
from penstock.spec.workload import SLO, SLOClass

APART = {"a": ((0,),), "b": ((1,), (2, 3))}
TOGETHER = {"a": ((0,),), "b": ((0,),)}


def test_requests_go_to_the_model_they_name() -> None:
    """Each model's engines, and no others, compute its tokens."""

    async def body(rig: Rig) -> None:
        await rig.load(40, 4, ("a", "b"))
        await rig.check_idle()
        counters = rig.many.model_counters()
        assert counters["a"]["requests_finished"] + counters["b"]["requests_finished"] == 40
        assert rig.many.counters()["requests_finished"] == 40
        assert {engine.model for engine in rig.many.engines()} == {"a", "b"}
        assert [card.name for card in rig.many.models()] == ["a", "b"]

    assert len(run(pool(APART), body).answers) == 40


def test_an_unknown_model_is_not_found() -> None:
    """The nearest name is told; without a name there must be one model only."""

    async def body(rig: Rig) -> None:
        await rig.ask(0, "bb", 10, 3)
        await rig.ask(1, "", 10, 3)

    refused = run(pool(APART), body).refused
    assert refused[0].startswith("404: the model 'bb' is not served; did you mean 'b'?")
    assert refused[1].startswith("404")


def test_a_model_that_is_lost_takes_no_other_with_it() -> None:
    """While no engine of one model stands, the other serves; the first comes back."""

    async def body(rig: Rig) -> None:
        loading = asyncio.ensure_future(rig.load(60, 6, ("a", "b")))
        for _ in range(3):
            await asyncio.sleep(1)
            rig.workers.kill("a.e0")
            finished = rig.many.model_counters()["b"]["requests_finished"]
        await loading
        assert rig.many.model_counters()["b"]["requests_restarted"] == 0
        assert rig.many.model_counters()["b"]["requests_finished"] > finished
        await rig.check_idle()

    assert len(run(pool(APART), body).answers) == 60


def test_engines_on_the_same_nodes_take_turns() -> None:
    """On one GPU never two steps at a time; each model alone would be twice as fast."""

    async def body(rig: Rig) -> None:
        await rig.load(40, 2, ("a", "b"))
        await rig.check_idle()
        starts = sorted(
            decision.at_s
            for member in rig.many.members.values()
            for decision in member.fleet.decisions
        )
        assert min(b - a for a, b in pairwise(starts)) >= 0.02

    assert len(run(pool(TOGETHER), body).answers) == 40


@pytest.mark.parametrize("urgent", ["a", "b"])
def test_the_more_urgent_model_goes_first(urgent: str) -> None:
    """With tight limits on one of two models that share a GPU, its requests end sooner."""
    classes = tuple(
        SLOClass(name, SLO(ttft_s=0.5 if name == urgent else 50.0)) for name in ("a", "b")
    )
    first: dict[str, float] = {}

    async def body(rig: Rig) -> None:
        async def one(number: int, model: str) -> None:
            await rig.ask(number, model, 2000, 1)
            first[model] = asyncio.get_running_loop().time()

        await asyncio.gather(one(0, "a"), one(1, "b"))

    run(pool(TOGETHER), body, classes=classes)
    assert min(first, key=lambda name: first[name]) == urgent


def test_a_higher_priority_goes_first() -> None:
    """Whatever the limits are."""
    ends: list[str] = []

    async def body(rig: Rig) -> None:
        async def one(number: int, model: str) -> None:
            await rig.ask(number, model, 1000, 20)
            ends.append(model)

        await asyncio.gather(one(0, "a"), one(1, "b"))

    run(pool(TOGETHER, priorities={"b": 1}, sharing=Sharing("round-robin")), body)
    assert ends == ["b", "a"]


def test_a_lost_engine_does_not_keep_the_turn() -> None:
    """Its neighbour goes on at once, with a step of it under way."""

    async def body(rig: Rig) -> None:
        asking = [asyncio.ensure_future(rig.ask(i, "ab"[i % 2], 300, 40)) for i in range(8)]
        for _ in range(5):
            await asyncio.sleep(0.3)
            rig.workers.kill("a.e0")
        await asyncio.gather(*asking)
        await rig.check_idle()

    assert len(run(pool(TOGETHER), body, restart_delay_s=0.1).answers) == 8


def test_a_plan_that_does_not_hold_is_refused() -> None:
    """Engines that overlap in part, and precisions that no worker loads."""

    async def make(plan: PoolPlan, executor: ExecutorName = "null") -> ManyRuntime:
        return ManyRuntime(plan, InlinePool(), Making(ServeOptions(executor=executor)))

    with pytest.raises(InputError, match="overlaps"):
        asyncio.run(make(pool({"a": ((0, 1),), "b": ((1, 2),)})))
    with pytest.raises(SpecError, match=r"int8.*float32, bfloat16, float16"):
        asyncio.run(make(pool(APART, precisions={"a": Precision("int8")}), "torch"))


@pytest.mark.parametrize("place", [(0,), (0, 1)], ids=["one GPU", "pipeline"])
def test_a_request_that_would_be_late_is_refused_at_once(place: tuple[int, ...]) -> None:
    """With admission by deadline: 429, and those that were taken keep their limits."""
    classes = (SLOClass("a", SLO(e2e_s=4.0)),)
    sharing = Sharing(admission="deadline")
    late: list[float] = []

    async def body(rig: Rig) -> None:
        async def one(number: int) -> None:
            start_s = asyncio.get_running_loop().time()
            await rig.ask(number, "a", 2000, 20)
            seconds = asyncio.get_running_loop().time() - start_s
            if number in rig.refused:
                assert seconds == 0
            else:
                late.append(max(0.0, seconds - 4.0))

        await asyncio.gather(*map(one, range(40)))
        await rig.check_idle()
        backlog = [d.standing.backlog for d in rig.many.members["a"].fleet.engines if d.standing]
        assert [(b.requests, b.prompt_tokens, b.decode_tokens) for b in backlog] == [(0, 0, 0)]

    rig = run(pool({"a": (place,)}, blocks=2000, sharing=sharing), body, classes=classes)
    assert rig.answers
    assert all(text.startswith("429") for text in rig.refused.values())
    assert len(rig.refused) > 10
    assert max(late) == 0


def test_backlogs_end_empty_whatever_happens() -> None:
    """Also when memory is scarce, workers die and requests start over."""

    async def body(rig: Rig) -> None:
        loading = asyncio.ensure_future(rig.load(60, 3, ("a", "b")))
        for _ in range(4):
            await asyncio.sleep(0.7)
            rig.workers.kill(rig.rng.choice(list(rig.many._shared.owners)))
        await loading
        await rig.check_idle()
        for member in rig.many.members.values():
            for driver in member.fleet.engines:
                assert driver.standing is not None
                left = driver.standing.backlog
                assert (left.requests, left.prompt_tokens, left.decode_tokens) == (0, 0, 0)
                assert left.context_tokens == 0

    rig = run(pool(TOGETHER, blocks=40), body, restart_delay_s=0.1)
    assert len(rig.answers) == 60, rig.refused
