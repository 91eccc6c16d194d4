"""Engines that are other servers: gateways and look-alikes of other servers on free ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from other_server import Dialect, Site, event, llama_cpp, older_vllm, vllm
from runtime_rig import CARD, LineCost, fleet_plan
from starlette.responses import JSONResponse, Response, StreamingResponse
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from penstock.errors import InputError, SpecError
from penstock.plan.plan import Engine, Plan
from penstock.plan.settings import SpeculationSettings
from penstock.serve.coordinator import external
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.remote import Remote
from penstock.serve.coordinator.runtime import Runtime
from penstock.serve.gateway.app import make_app
from penstock.serve.inline import InlinePool
from penstock.serve.null import NullGenerator, NullSettings
from penstock.serve.protocol import (
    EngineRefused,
    GenerationRequest,
    Overloaded,
    RequestTooLong,
    SamplingParams,
    ServeError,
    TokenDelta,
    Unavailable,
)
from penstock.serve.text import Tokenizer

PROMPT = (65, 66, 67)


@pytest.fixture(autouse=True)
def _eager_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "POLL_S", 0.05)


def gateway(**settings: Any) -> tuple[NullGenerator, Site]:
    """A Penstock server without a model, at an address."""
    generator = NullGenerator(settings=NullSettings(**settings))
    return generator, Site(make_app(generator))


def plan_of(*urls: str, **engine: Any) -> Plan:
    """An engine for each url; "" is one with a worker."""
    plan = fleet_plan(("both",) * len(urls), router="round-robin")
    engines = tuple(
        replace(planned, url=url, **(engine if url else {}))
        for planned, url in zip(plan.engines, urls, strict=True)
    )
    return replace(plan, engines=engines)


@asynccontextmanager
async def serving(plan: Plan, **options: Any) -> AsyncIterator[Runtime]:
    settings = ServeOptions(executor="null", restart_delay_s=0.02, **options)
    runtime = Runtime(plan, InlinePool(None), CARD, settings, cost=LineCost())
    try:
        await runtime.start()
        async with asyncio.timeout(10):
            yield runtime
    finally:
        await runtime.close()


async def answer(
    runtime: Runtime, tokens: int = 6, prompt: tuple[int, ...] = PROMPT, **params: Any
) -> list[TokenDelta]:
    settings = SamplingParams(max_tokens=tokens, **{"ignore_eos": True, **params})
    return [d async for d in runtime.generate(GenerationRequest("r", prompt, settings))]


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(8):
        while not true():
            await asyncio.sleep(0.005)


async def test_a_mixed_plan_sends_every_other_request_away() -> None:
    """Round robin over a worker and a server: tokens come from both, and both are counted."""
    _, site = gateway()
    async with site.up(), serving(plan_of(site.url, "")) as runtime:
        answers = [tokens_of(await answer(runtime)) for _ in range(4)]
        assert answers[0] == answers[2] == [65, 66, 67, 65, 66, 67]
        assert [len(tokens) for tokens in answers] == [6] * 4
        there, here = runtime.engines()
        assert (there.generation_tokens, here.generation_tokens) == (12, 12)
        assert there.prompt_tokens == here.prompt_tokens == 6
        assert there.nodes == (site.url,)
        assert 0 < there.busy_share <= 1
        await until(lambda: not runtime.counters()["outstanding"])
        assert runtime.counters()["requests_finished"] == 4


async def test_no_engine_of_ours_is_needed() -> None:
    """Two servers, written with and without /v1, and no settings of how they batch."""
    (one, first), (two, second) = gateway(), gateway()
    plan = plan_of(first.url, f"{second.url}/v1/", scheduler=None, kv_capacity_layer_tokens=0)
    async with first.up(), second.up(), serving(plan) as runtime:
        assert [len(tokens_of(await answer(runtime))) for _ in range(2)] == [6, 6]
        assert one.engines()[0].generation_tokens == two.engines()[0].generation_tokens


async def test_cancelling_frees_the_other_server() -> None:
    """The stream is closed when the client goes, and the other server stops computing."""
    generator, site = gateway(token_s=0.01)
    async with site.up(), serving(plan_of(site.url)) as runtime:
        task = asyncio.create_task(answer(runtime, 1000))
        await until(lambda: generator.running == 1)
        task.cancel()
        await until(lambda: generator.running == 0)
        assert runtime.domain.outstanding == 0
        assert len(tokens_of(await answer(runtime))) == 6


async def test_requests_above_the_limit_wait_in_order() -> None:
    """At most ``max_num_seqs`` streams are open; the others follow, first come first served."""
    generator, site = gateway(token_s=0.005)
    base = plan_of(site.url).engines[0].scheduler
    assert base is not None
    ended: list[int] = []

    async def one(runtime: Runtime, number: int) -> None:
        await answer(runtime, 8)
        ended.append(number)

    plan = plan_of(site.url, scheduler=replace(base, max_num_seqs=2))
    async with site.up(), serving(plan) as runtime:
        tasks = [asyncio.create_task(one(runtime, number)) for number in range(8)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, generator.running)
            status = runtime.engines()[0]
            assert status.running <= 2
            assert status.waiting <= 6
            await asyncio.sleep(0.001)
        assert most == 2
        assert [number // 2 for number in ended] == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_a_killed_server_comes_back_and_its_request_goes_on() -> None:
    """It waits, starts over with the tokens it has, and ends with exactly its tokens."""
    _, site = gateway(token_s=0.01)
    async with serving_of(site) as runtime:
        task = asyncio.create_task(answer(runtime, 60, (70,)))
        await until(lambda: runtime.engines()[0].generation_tokens > 5)
        await site.stop()
        await until(lambda: not runtime.ready())
        await site.start()
        assert tokens_of(await task) == [70] * 60
        assert runtime.counters()["requests_restarted"] == 1
        assert runtime.ready()


@asynccontextmanager
async def serving_of(site: Site) -> AsyncIterator[Runtime]:
    async with site.up(), serving(plan_of(site.url)) as runtime:
        yield runtime


async def test_requests_of_a_lost_server_go_on_elsewhere() -> None:
    """Another server takes them over at once, from the tokens they have."""
    (_, lost), (other, kept) = gateway(token_s=0.01), gateway(token_s=0.001)
    async with lost.up(), kept.up(), serving(plan_of(lost.url, kept.url)) as runtime:
        task = asyncio.create_task(answer(runtime, 80, (70,)))
        await until(lambda: runtime.engines()[0].generation_tokens > 5)
        await lost.stop()
        assert tokens_of(await task) == [70] * 80
        assert other.engines()[0].generation_tokens < 80
        assert [engine.alive for engine in runtime.engines()] == [False, True]
        await lost.start()


async def test_a_server_that_goes_while_idle_is_noticed() -> None:
    """Nothing streams from it: the poll finds out, and finds it again."""
    _, site = gateway()
    async with site.up(), serving(plan_of(site.url)) as runtime:
        await site.stop()
        await until(lambda: not runtime.ready())
        await site.start()
        await until(runtime.ready)


DIALECTS = {
    "vllm": Dialect(tells=vllm),
    "older vllm": Dialect(tells=older_vllm),
    "llama.cpp": Dialect(tells=llama_cpp),
    "text alone": Dialect(ids=False),
    "strict": Dialect(
        ids=False,
        known=frozenset({"model", "prompt", "max_tokens", "temperature", "top_p", "stream"}),
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
async def test_each_dialect_gives_the_same_tokens(name: str) -> None:
    """Prompts as ids or text; answers by ids, by log probabilities or by text."""
    dialect = replace(DIALECTS[name], bodies=[])
    site = Site(dialect.app())
    async with site.up(), serving(plan_of(site.url)) as runtime:
        deltas = await answer(runtime, 7, ignore_eos=False)
        assert tokens_of(deltas) == [65, 66, 67, 65, 66, 67, 65]
        assert deltas[-1].finish_reason == "length"
    [body] = dialect.asked
    assert body["prompt"] == (list(PROMPT) if dialect.ids else "ABC")
    assert body["model"] == "other"


@pytest.mark.parametrize("name", ["vllm", "older vllm", "llama.cpp"])
async def test_log_probabilities_come_with_the_tokens(name: str) -> None:
    """Of the chosen token and of the likeliest ones, as many as were asked for."""
    site = Site(replace(DIALECTS[name], bodies=[]).app())
    async with site.up(), serving(plan_of(site.url)) as runtime:
        deltas = await answer(runtime, 3, logprobs=1)
    listed = [one for delta in deltas for one in delta.logprobs]
    assert [(one.token, one.logprob) for one in listed] == [(65, -0.5), (66, -0.5), (67, -0.5)]
    likeliest = (90, -2.0) if name == "llama.cpp" else (65, -0.5)
    assert listed[0].top == (likeliest,)


async def test_sampling_parameters_reach_the_server() -> None:
    """Under vLLM's names; neutral values too, so that the server's own defaults do not count."""
    dialect = Dialect(tells=vllm)
    site = Site(dialect.app())
    async with site.up(), serving(plan_of(site.url)) as runtime:
        await answer(
            runtime,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            presence_penalty=0.5,
            seed=7,
            min_tokens=2,
            stop_token_ids=(1, 2),
        )
        await answer(runtime, ignore_eos=False)
    full, plain = dialect.asked
    told = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "presence_penalty": 0.5,
        "seed": 7,
        "min_tokens": 2,
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
        "max_tokens": 6,
    }
    assert {key: full[key] for key in told} == told
    assert (plain["top_k"], plain["min_p"], plain["repetition_penalty"]) == (-1, 0.0, 1.0)
    assert not {"seed", "ignore_eos", "min_tokens", "stop_token_ids"} & set(plain)


async def test_a_stop_token_ends_the_request_wherever_it_is_drawn() -> None:
    """The server's word counts, with the token that it names."""
    _, site = gateway()
    async with site.up(), serving(plan_of(site.url)) as runtime:
        deltas = await answer(runtime, 20, stop_token_ids=(67,))
    assert tokens_of(deltas) == [65, 66]
    assert (deltas[-1].finish_reason, deltas[-1].stop_token) == ("stop", 67)


def failing(status: int, message: str = "no") -> Callable[[dict[str, Any]], Response | None]:
    """Fault of a streamed request; the first look succeeds."""

    def fault(body: dict[str, Any]) -> Response | None:
        if not body.get("stream"):
            return None
        return JSONResponse({"error": {"message": message}}, status)

    return fault


def in_midstream(**error: Any) -> Callable[[dict[str, Any]], Response | None]:
    """Two tokens, then an error as an event."""

    async def events() -> AsyncIterator[bytes]:
        yield event({"choices": [{"text": "AB", "token_ids": [65, 66]}]})
        yield event({"error": {"message": "no", **error}})

    def fault(body: dict[str, Any]) -> Response | None:
        return StreamingResponse(events()) if body.get("stream") else None

    return fault


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (failing(400, "too long"), EngineRefused),
        (failing(429), Overloaded),
        (failing(500), Unavailable),
        (failing(503), Unavailable),
        (in_midstream(code=400), EngineRefused),
        (in_midstream(type="server_error", code="internal_error"), Unavailable),
    ],
)
async def test_a_server_that_refuses_is_quoted(fault: Any, error: type[ServeError]) -> None:
    """Faults of the request at once, faults of the server after some tries; nothing is held."""
    dialect = Dialect(tells=vllm, fault=fault)
    site = Site(dialect.app())
    async with site.up(), serving(plan_of(site.url)) as runtime:
        with pytest.raises(error, match=r"no|too long"):
            await answer(runtime, 90)
        assert len(dialect.asked) == (1 + external.TRIES if error is Unavailable else 1)
        await until(lambda: not runtime.counters()["outstanding"])
        assert runtime.counters()["requests_failed"] == 1


async def test_a_stream_that_breaks_off_is_a_lost_server() -> None:
    """The answer ends without an end: the request goes on from the tokens it has."""
    broken = True

    async def cut() -> AsyncIterator[bytes]:
        yield event({"choices": [{"text": "F", "token_ids": [70]}]})

    def fault(body: dict[str, Any]) -> Response | None:
        nonlocal broken
        if not body.get("stream") or not broken:
            return None
        broken = False
        return StreamingResponse(cut())

    dialect = Dialect(tells=vllm, fault=fault)
    site = Site(dialect.app())
    async with site.up(), serving(plan_of(site.url)) as runtime:
        assert tokens_of(await answer(runtime, 5, (70,))) == [70] * 5
    first, second = dialect.asked
    assert (first["prompt"], first["max_tokens"]) == ([70], 5)
    assert (second["prompt"], second["max_tokens"]) == ([70, 70], 4)


async def test_line_breaks_of_unicode_do_not_cut_events() -> None:
    """JSON may hold U+2028 and U+0085 as they are."""
    text = "a\u2028b\u0085c"

    async def events() -> AsyncIterator[bytes]:
        yield event({"choices": [{"text": text, "finish_reason": "stop"}]})

    def fault(body: dict[str, Any]) -> Response | None:
        return StreamingResponse(events()) if body.get("stream") else None

    site = Site(Dialect(ids=False, fault=fault).app())
    async with site.up(), serving(plan_of(site.url)) as runtime:
        assert bytes(tokens_of(await answer(runtime, 50))).decode() == text


async def test_the_context_length_of_the_server_counts() -> None:
    """A request that it cannot hold is refused before it is sent."""
    dialect = Dialect(card={"id": "other", "max_model_len": 20})
    site = Site(dialect.app())
    async with site.up(), serving(plan_of(site.url)) as runtime:
        with pytest.raises(RequestTooLong):
            await answer(runtime, 18)
        assert len(tokens_of(await answer(runtime, 17))) == 17
        assert len(dialect.asked) == 1


async def test_the_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that asks for a key gets it; without one it is refused in one line."""
    from penstock.serve.gateway import GatewaySettings  # noqa: PLC0415

    site = Site(make_app(NullGenerator(), GatewaySettings(api_keys=("secret",))))
    async with site.up():
        with pytest.raises(InputError, match="401"):
            async with serving(plan_of(site.url)):
                pass
        monkeypatch.setenv(external.KEY, "secret")
        async with serving(plan_of(site.url)) as runtime:
            assert len(tokens_of(await answer(runtime))) == 6


async def test_nobody_at_the_address_is_one_line() -> None:
    """A server that is not there is named with its engine; so is one of another kind."""
    with pytest.raises(InputError, match=r"engines\.e0\.url: no OpenAI server is at http://"):
        async with serving(plan_of(Site(None).url)):
            pass

    async def page(_scope: Any, _receive: Any, send: Any) -> None:
        await Response("<html>")(_scope, _receive, send)

    site = Site(page)
    async with site.up():
        with pytest.raises(InputError, match="not the OpenAI API"):
            async with serving(plan_of(site.url)):
                pass


def one_phase(engine: Engine) -> Engine:
    return replace(engine, role="prefill")


def speculating(engine: Engine) -> Engine:
    return replace(engine, speculation=SpeculationSettings(draft_model="d"))


def misspelt(engine: Engine) -> Engine:
    return replace(engine, url="there:8000")


@pytest.mark.parametrize(
    ("change", "says"),
    [(one_phase, "role both"), (speculating, "role both"), (misspelt, "http://host:port")],
)
async def test_what_another_server_cannot_be_is_refused(
    change: Callable[[Engine], Engine], says: str
) -> None:
    """Its KV memory cannot be handed over, its drafts are its own, its address is a URL."""
    plan = plan_of("http://there:8000")
    with pytest.raises(SpecError, match=says) as error:
        async with serving(replace(plan, engines=(change(plan.engines[0]),))):
            pass
    assert "engines.e0.url" in str(error.value)


async def test_servers_come_and_go_while_requests_run() -> None:
    """Engines are added beside a server and it is removed; its role cannot change."""
    _, site = gateway(token_s=0.005)
    async with site.up(), serving(plan_of(site.url, "")) as runtime:
        task = asyncio.create_task(answer(runtime, 30, (70,)))
        await until(lambda: runtime.engines()[0].generation_tokens > 2)
        with pytest.raises(InputError, match="keeps the role both"):
            await runtime.administer("engines.role", {"name": "e0", "role": "prefill"})
        added = await runtime.administer("engines.add", {"like": "e0", "name": "again"})
        assert added == {"name": "again", "role": "both"}
        gone = await runtime.administer("engines.remove", {"name": "e0"})
        assert gone["restarted_requests"] == 0
        assert tokens_of(await task) == [70] * 30
        assert [engine.name for engine in runtime.engines()] == ["e1", "again"]
        assert [len(tokens_of(await answer(runtime))) for _ in range(2)] == [6, 6]


async def test_draining_past_its_time_moves_requests_on() -> None:
    """What a leaving server has not finished goes on elsewhere."""
    (slow, leaving), (_, staying) = gateway(token_s=0.05), gateway()
    plan = plan_of(leaving.url, staying.url)
    async with leaving.up(), staying.up(), serving(plan) as runtime:
        task = asyncio.create_task(answer(runtime, 500, (70,)))
        await until(lambda: runtime.engines()[0].generation_tokens > 1)
        gone = await runtime.administer("engines.remove", {"name": "e0", "drain_s": 0.1})
        assert gone["restarted_requests"] == 1
        assert tokens_of(await task) == [70] * 500
        await until(lambda: slow.running == 0)


def test_pieces_of_text_do_not_get_a_space_in_front() -> None:
    """Vocabularies that mark words by a leading space begin every text with one."""
    words = ["\u2581the", "\u2581fox", "the", "fox", "es", "\n", "\u2581", "\u2581\n"]
    inner = HfTokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="\n"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first", split=True),
            pre_tokenizers.Split("\n", "isolated"),
        ]
    )
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = Tokenizer(inner, decoder={"type": "Metaspace"}, special=())
    remote = Remote("http://there", "m", None)
    remote._tokenizer = tokenizer
    cut = [token for piece in ("fox", "es", " the") for token in remote._cut(piece)]
    assert [words[token] for token in cut] == ["fox", "es", "\u2581the"]
