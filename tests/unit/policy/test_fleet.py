"""One factory from plans to policy objects: schedulers, routers, sequences, hand-over."""

from __future__ import annotations

from math import inf

import pytest

from penstock.cost.base import BatchLimits
from penstock.errors import SpecError
from penstock.plan.plan import Engine, Leg, Role, Routing, Stage
from penstock.plan.settings import SchedulerSettings
from penstock.policy.engine_routing import FlowWeighted, Least
from penstock.policy.fleet import (
    EngineView,
    engine_routers,
    engine_scheduler,
    enter,
    flow_weights,
    has_room,
    hold,
    new_sequence,
    reserve,
    servable,
    unreserve,
)
from penstock.policy.handoff import HandoffDecode
from penstock.policy.schedulers.vllm import VllmV1
from penstock.spec.cluster import COORDINATOR
from penstock.spec.workload import SLO, Request, SLOClass


def engine(
    role: Role = "both", scheduler: str = "vllm", tokens: int = 160, stages: int = 1
) -> Engine:
    """Four layers over ``stages`` nodes, with KV memory for ``tokens`` tokens."""
    each = 4 // stages
    return Engine(
        "e",
        tuple(Stage(f"n{i}", i * each, (i + 1) * each) for i in range(stages)),
        4 * tokens,
        BatchLimits(1, 1, 1, 1),
        role,
        SchedulerSettings(scheduler),
    )


def test_an_engine_gets_the_scheduler_of_its_role_over_its_own_blocks() -> None:
    """160 tokens of four layers are ten blocks of 16; decode engines take what was handed over."""
    both, decode = engine_scheduler(engine()), engine_scheduler(engine("decode"))
    assert type(both) is VllmV1
    assert type(decode) is HandoffDecode
    assert both.blocks.num_blocks == decode.blocks.num_blocks == 10
    assert engine_scheduler(engine(stages=2)).num_stages == 2


def test_settings_that_cannot_work_name_the_engine() -> None:
    """Unknown schedulers and memory under one KV block are refused."""
    with pytest.raises(SpecError, match=r"engines\.e\.scheduler\.name: unknown .*'vlm'.*vllm"):
        engine_scheduler(engine(scheduler="vlm"))
    with pytest.raises(SpecError, match=r"engines\.e: .*at least one KV block"):
        engine_scheduler(engine(tokens=15))


def test_weights_are_the_flows_into_each_engine() -> None:
    """Prompts and KV hand-overs count alike; without any flow all engines weigh the same."""
    legs = (
        Leg(COORDINATOR, "a", 3.0, 9.0),
        Leg("a", "c", 2.0, 9.0),
        Leg("b", "c", 1.0, 9.0),
        Leg("c", COORDINATOR, 3.0, 9.0),
    )
    assert flow_weights(["a", "b", "c"], legs) == (3.0, 0.0, 3.0)
    assert flow_weights(["a", "b"], ()) == (1.0, 1.0)


def test_a_plan_names_both_routers() -> None:
    """One router for prompts, another for decodes."""
    routers = engine_routers(Routing(engine_router="flow-weighted"))
    assert isinstance(routers.first, FlowWeighted)
    assert isinstance(routers.decode, Least)


def test_a_sequence_has_the_priority_and_deadline_of_its_class() -> None:
    """The deadline is the first token's, or the whole request's, or none."""
    classes = {
        "chat": SLOClass("chat", SLO(ttft_s=0.5, e2e_s=9.0), priority=2),
        "batch": SLOClass("batch", SLO(e2e_s=60.0)),
        "free": SLOClass("free", SLO(tpot_s=0.1)),
    }
    made = {
        name: new_sequence(7, Request(0, 10.0, 5, 3, name), classes)
        for name in ("chat", "batch", "free", "other")
    }
    assert made["chat"].priority == 2
    assert made["chat"].total_tokens == 8
    deadlines = [made[name].deadline_s for name in ("chat", "batch", "free", "other")]
    assert deadlines == [10.5, 70.0, inf, inf]


def test_prompts_end_with_their_first_token_on_engines_that_only_prefill() -> None:
    """The step that completes a prompt yields a token; other roles go to the request's end."""
    seq = new_sequence(0, Request(0, 0.0, 100, 50), {})
    enter(seq, "prefill", 150)
    assert seq.total_tokens == 101
    enter(seq, "both", 150)
    assert seq.total_tokens == 150


def test_a_request_is_servable_where_each_phase_fits_somewhere() -> None:
    """Ten blocks hold 161 tokens (the last needs no entry), or a prompt of at most 160."""
    prefill = ("prefill", engine_scheduler(engine("prefill")))
    decode = ("decode", engine_scheduler(engine("decode", tokens=320)))
    both = ("both", engine_scheduler(engine()))
    request = new_sequence(0, Request(0, 0.0, 150, 60), {})
    assert not servable(request, 210, [both])
    assert servable(request, 210, [prefill, decode])
    assert not servable(request, 322, [prefill, decode])
    longer = new_sequence(0, Request(0, 0.0, 170, 1), {})
    assert not servable(longer, 171, [prefill, decode])


def test_blocks_of_a_prompt_wait_at_the_source_until_the_receiver_has_room() -> None:
    """Held blocks stay counted on the source; a cancelled reservation gives everything back."""
    source, target = engine_scheduler(engine("prefill")), engine_scheduler(engine("decode"))
    seq = new_sequence(0, Request(0, 0.0, 100, 20), {})
    enter(seq, "prefill", 120)
    source.add(seq)
    batch = source.next_batch()
    assert batch is not None
    source.commit(batch)
    assert hold(source, seq) == 7
    assert EngineView(0, source).kv_use == pytest.approx(0.7)
    enter(seq, "decode", 120)
    assert has_room(target, seq)
    assert reserve(target, seq)
    assert EngineView(1, target).outstanding == 1
    other = new_sequence(1, Request(1, 0.0, 100, 20), {})
    other.computed = 101
    assert not has_room(target, other)
    unreserve(target, seq)
    assert has_room(target, other)
    assert target.blocks.free == 10
