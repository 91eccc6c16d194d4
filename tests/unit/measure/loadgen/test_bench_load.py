"""Load on a real gateway without a model, and what its client says it saw."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tests.unit.serve.gateway.talking import Scripted, run_server

from penstock.errors import InputError, SpecError
from penstock.measure.formats import (
    read_distserve_exp,
    read_vllm_bench,
    write_distserve_exp,
    write_vllm_bench,
)
from penstock.measure.loadgen.bench import BenchSettings, bench
from penstock.measure.loadgen.outcome import sent_workload
from penstock.measure.run import STATUS, Run
from penstock.measure.store import read_run, write_run
from penstock.serve.gateway import GatewaySettings, make_app
from penstock.serve.null import BYTE_MODEL, NullSettings
from penstock.serve.protocol import GenerationRequest, ModelCard
from penstock.spec.arrivals import AllAtOnce, PoissonArrivals
from penstock.spec.lengths import EmpiricalLengths
from penstock.spec.workload import (
    SLO,
    ClosedLoop,
    ModelStream,
    Request,
    Saturating,
    SLOClass,
    Workload,
)

FINISHED = STATUS.index("finished")
LENGTHS = EmpiricalLengths(((5, 3), (9, 4)))


@pytest.fixture(scope="module")
def generator() -> Scripted:
    return Scripted(settings=NullSettings(first_token_s=0.01, token_s=0.002))


@pytest.fixture(scope="module")
def address(generator: Scripted) -> Iterator[str]:
    settings = GatewaySettings(log_requests=False, slo_classes=("chat", "batch"))
    with run_server(make_app(generator, settings)) as found:
        yield found


def measure(workload: Workload, url: str, **more: object) -> Run:
    return asyncio.run(bench(workload, BenchSettings(url, **more)))  # type: ignore[arg-type]


def trace(*rows: tuple[float, int, int, str]) -> Workload:
    requests = tuple(Request(i, *row) for i, row in enumerate(rows))
    return Workload("test", duration_s=rows[-1][0] + 0.5, trace=requests)


def test_prompts_and_outputs_have_the_tokens_of_the_workload(
    address: str, generator: Scripted
) -> None:
    """Every request arrives with its length, its class and a limit of its output length."""
    classes = (SLOClass("chat", SLO(ttft_s=1.0)), SLOClass("batch", SLO()))
    rows = trace((0.0, 4, 3, "chat"), (0.01, 40, 1, "batch"), (0.05, 7, 9, "chat"))
    generator.asked.clear()
    run = measure(replace(rows, classes=classes), f"{address}/v1/")
    asked = generator.asked[-3:]
    assert [len(request.prompt) for request in asked] == [4, 40, 7]
    assert [request.params.max_tokens for request in asked] == [3, 1, 9]
    assert [request.class_name for request in asked] == ["chat", "batch", "chat"]
    assert all(request.params.ignore_eos and request.params.greedy for request in asked)
    assert run.requests.prompt_tokens.tolist() == [4, 40, 7]
    assert run.requests.generated_tokens.tolist() == [3, 1, 9]
    assert run.requests.class_index.tolist() == [0, 1, 0]
    assert (run.requests.status == FINISHED).all()
    assert run.window_s == (0.0, 0.55)
    assert run.header["kind"] == "measured"


def test_latency_counts_from_the_moment_a_request_was_due(address: str) -> None:
    """Arrivals in the run are those of the workload to the bit, however late they were sent."""
    workload = Workload("p", 0.4, lengths=LENGTHS, arrivals=PoissonArrivals(80.0), seed=3)
    run = measure(workload, address)
    due = [request.arrival_s for request in workload.requests()]
    assert run.requests.arrival_s.tolist() == due
    assert (run.requests.first_token_s - run.requests.arrival_s >= 0.01).all()
    client = run.header["client"]
    assert isinstance(client, dict)
    assert 0 <= client["mean_send_delay_s"] <= client["max_send_delay_s"]


def test_a_closed_loop_never_has_more_in_flight(address: str) -> None:
    """The next request starts after an end, and lengths are drawn as the simulator does."""
    workload = Workload("c", 0.3, lengths=LENGTHS, arrivals=ClosedLoop(3, interval_s=0.0), seed=5)
    run = measure(workload, address)
    table = run.requests
    for start in table.arrival_s:
        running = (table.arrival_s <= start) & (table.last_token_s > start)
        assert running.sum() <= 3
    assert len(table.id) > 3
    assert set(table.prompt_tokens.tolist()) == {5, 9}


def test_concurrency_turns_any_workload_into_a_closed_loop(address: str) -> None:
    """A trace then gives its lengths in order, and the number of requests can be bounded."""
    rows = trace(*[(0.0, size, 2, "") for size in (2, 3, 4, 5, 6)])
    run = measure(rows, address, max_concurrency=1, num_requests=4)
    assert run.requests.prompt_tokens.tolist() == [2, 3, 4, 5]
    assert (np.diff(run.requests.arrival_s) > 0).all()
    with pytest.raises(SpecError, match="--max-concurrency"):
        measure(Workload("s", 1.0, lengths=LENGTHS, arrivals=Saturating()), address)


def test_several_tokens_in_a_chunk_have_one_time() -> None:
    """Steps of four tokens give gaps of 0 inside a step; the server counts them."""
    generator = Scripted(settings=NullSettings(token_s=0.001, tokens_per_step=4))
    with run_server(make_app(generator, GatewaySettings(log_requests=False))) as address:
        run = measure(trace((0.0, 5, 12, "")), address)
    gaps = np.diff(run.tokens.times_s)
    assert len(gaps) == 11
    assert (gaps[[0, 1, 2, 4, 5, 6, 8, 9, 10]] == 0).all()
    assert (gaps[[3, 7]] > 0).all()


def test_stopping_keeps_what_was_measured(address: str) -> None:
    """Ctrl-C ends the load; finished requests stay, others are marked as running."""

    async def work() -> Run:
        stop = asyncio.Event()
        rows = trace((0.0, 5, 2, ""), (0.0, 5, 20_000, ""), (30.0, 5, 2, ""))

        def look(standing: object) -> None:
            if getattr(standing, "ended", 0):
                stop.set()

        return await bench(rows, BenchSettings(address), stop, look)

    run = asyncio.run(work())
    assert [STATUS[i] for i in run.requests.status] == ["finished", "running"]
    assert run.requests.generated_tokens[1] > 0
    assert run.header["stopped"] is True
    assert run.window_s[1] < 30


def test_a_run_reads_back_in_every_format(address: str, tmp_path: Path) -> None:
    """Run folder, vLLM's JSON and DistServe's file give the same times."""
    workload = Workload("p", 0.2, lengths=LENGTHS, arrivals=PoissonArrivals(60.0), seed=4)
    run = measure(workload, address)
    write_run(run, tmp_path / "run")
    write_vllm_bench(run, tmp_path / "v.json")
    write_distserve_exp(run, tmp_path / "d.exp")
    shift = run.requests.arrival_s[0]
    for again, origin in (
        (read_run(tmp_path / "run"), 0.0),
        (read_vllm_bench(tmp_path / "v.json"), shift),
        (read_distserve_exp(tmp_path / "d.exp"), shift),
    ):
        assert again.tokens.times_s + origin == pytest.approx(run.tokens.times_s, abs=1e-9)
        assert again.requests.prompt_tokens.tolist() == run.requests.prompt_tokens.tolist()


def test_what_was_sent_can_be_simulated(address: str) -> None:
    """The workload of a cut run holds the requests that were sent, and ends with it."""
    workload = Workload("p", 5.0, lengths=LENGTHS, arrivals=PoissonArrivals(60.0), seed=4)
    run = measure(workload, address, num_requests=5)
    same = sent_workload(run, workload, None)
    assert [r.arrival_s for r in same.requests()] == run.requests.arrival_s.tolist()
    assert same.duration_s == run.window_s[1] < 5.0


def test_overload_is_rejected_and_the_rest_served() -> None:
    """429 is no failure of the client: the row says rejected."""
    generator = Scripted(settings=NullSettings(first_token_s=0.2, max_running=1))
    with run_server(make_app(generator, GatewaySettings(log_requests=False))) as address:
        workload = Workload("a", 1.0, lengths=LENGTHS, arrivals=AllAtOnce(3))
        run = measure(workload, address)
    found = [STATUS[i] for i in run.requests.status]
    assert sorted(found) == ["finished", "rejected", "rejected"]
    assert "429" in str(run.header["problems"])


def test_a_workload_that_fails_halfway_is_its_own_error(address: str) -> None:
    """What a trace raises reaches the user as it is, not as a group of tasks."""

    class Broken:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[Request]:
            yield Request(0, 0.0, 4, 2)
            raise SpecError("arrivals must not go back in time")

    with pytest.raises(SpecError, match="back in time"):
        measure(Workload("t", 1.0, trace=Broken()), address)


def test_wrong_servers_are_one_line(address: str) -> None:
    """No server, no such model, no key: each names what to do."""
    rows = trace((0.0, 4, 3, ""))
    with pytest.raises(InputError, match=r"is the server up\?"):
        measure(rows, "http://127.0.0.1:9")
    with pytest.raises(InputError, match="use --model null"):
        measure(rows, address, model="other")
    with pytest.raises(InputError, match="no address"):
        measure(rows, "ftp://somewhere")
    locked = make_app(Scripted(), GatewaySettings(log_requests=False, api_keys=("k",)))
    with run_server(locked) as closed:
        with pytest.raises(InputError, match="--api-key"):
            measure(rows, closed)
        assert (measure(rows, closed, api_key="k").requests.status == FINISHED).all()


class _TwoModels(Scripted):
    """Two models under one address."""

    def models(self) -> tuple[ModelCard, ...]:
        return tuple(replace(BYTE_MODEL, name=name) for name in ("chat", "code"))

    def _card(self, request: GenerationRequest) -> ModelCard:
        return next(card for card in self.models() if card.name == request.model)


@pytest.fixture(scope="module")
def pool() -> Iterator[tuple[_TwoModels, str]]:
    generator = _TwoModels()
    with run_server(make_app(generator, GatewaySettings(log_requests=False))) as found:
        yield generator, found


def of_models(*names: str) -> Workload:
    """One request a tenth of a second, each for the next name."""
    requests = tuple(Request(i, 0.1 * i, 5 + i, 3, model=name) for i, name in enumerate(names))
    return Workload("test", duration_s=0.1 * len(names) + 0.5, trace=requests)


def test_each_request_goes_to_its_own_model(pool: tuple[_TwoModels, str]) -> None:
    """What the server was asked, by model and length, is what the workload says."""
    generator, url = pool
    generator.asked.clear()
    workload = of_models("code", "chat", "code", "chat", "chat")
    run = measure(workload, url)
    sent = sorted((one.model, len(one.prompt)) for one in generator.asked[-5:])
    assert sent == sorted((one.model, one.prompt_tokens) for one in workload.requests())
    assert (run.requests.status == FINISHED).all()
    assert run.requests.model_index is not None
    named = [run.model_names[i] for i in run.requests.model_index.tolist()]
    assert named == ["code", "chat", "code", "chat", "chat"]


def test_streams_may_run_in_a_closed_loop(pool: tuple[_TwoModels, str]) -> None:
    """Requests then come in the order of their arrivals, each to its own model."""
    generator, url = pool
    stream = PoissonArrivals(40.0)
    streams = tuple(ModelStream(name, LENGTHS, stream) for name in ("chat", "code"))
    workload = Workload("test", duration_s=1.0, streams=streams)
    run = measure(workload, url, max_concurrency=2, num_requests=12)
    assert run.requests.model_index is not None
    named = [run.model_names[i] for i in run.requests.model_index.tolist()]
    assert named == [one.model for one in islice(workload.requests(0), 12)]
    assert {one.model for one in generator.asked} == {"chat", "code"}


def test_models_that_nobody_serves_are_named_before_any_load(pool: tuple[_TwoModels, str]) -> None:
    """All missing ones in one line; a model by name takes all requests instead."""
    generator, url = pool
    generator.asked.clear()
    with pytest.raises(InputError, match=r"does not serve 'draw', 'sing'.*it serves chat, code"):
        measure(of_models("chat", "draw", "sing"), url)
    assert not generator.asked
    run = measure(of_models("draw", "sing"), url, model="chat")
    assert {one.model for one in generator.asked} == {"chat"}
    assert (run.requests.status == FINISHED).all()
