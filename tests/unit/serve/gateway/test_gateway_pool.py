"""The pool's controls, metrics, logs and the live page."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.serve.gateway.talking import Scripted, Talk, error_of, run_server, talk_to

from penstock.serve.gateway import GatewaySettings, log_as_json, make_app
from penstock.serve.gateway.window import Window
from penstock.serve.null import NullGenerator, NullSettings
from penstock.serve.protocol import TokenDelta

POOL: list[tuple[str, str, Any, str, dict[str, Any]]] = [
    ("POST", "/admin/engines", {"a": 1}, "engines.add", {"a": 1}),
    ("DELETE", "/admin/engines", {"name": "e"}, "engines.remove", {"name": "e"}),
    ("DELETE", "/admin/engines/e", None, "engines.remove", {"name": "e"}),
    (
        "POST",
        "/admin/engines/e/role",
        {"role": "prefill"},
        "engines.role",
        {"name": "e", "role": "prefill"},
    ),
    ("POST", "/update_resources", {"operations": []}, "operations", {"operations": []}),
    ("POST", "/admin/models", {"model": "m"}, "models.add", {"model": "m"}),
    ("DELETE", "/admin/models/org/m", None, "models.remove", {"name": "org/m"}),
]


@pytest.mark.parametrize(("method", "path", "body", "action", "given_body"), POOL)
async def test_the_pool_is_changed_through_the_runtime(
    method: str, path: str, body: Any, action: str, given_body: dict[str, Any]
) -> None:
    """Each control is one action with its names; the runtime's answer is the answer."""
    generator = Scripted()
    response = await talk_to(generator).http.request(method, path, json=body)
    assert (response.status_code, response.json()) == (200, {"done": action})
    assert generator.administered == [(action, given_body)]


async def test_what_the_runtime_refuses_is_a_400() -> None:
    """In the runtime's own words."""
    response = await talk_to().post("/admin/engines", {})
    assert response.status_code == 400
    assert "no pool to change" in error_of(response)["message"]


@pytest.mark.parametrize("body", [{}, {"role": "boss"}, {"role": "both", "x": 1}, {"role": []}])
async def test_a_role_is_one_of_three(body: dict[str, Any]) -> None:
    """Anything else never reaches the runtime."""
    generator = Scripted()
    response = await talk_to(generator).post("/admin/engines/e/role", body)
    assert (response.status_code, error_of(response)["param"]) == (400, "role")
    assert not generator.administered


async def test_engines_are_listed() -> None:
    """With what they hold and do."""
    [engine] = (await talk_to().get("/admin/engines")).json()["engines"]
    assert (engine["name"], engine["role"], engine["running"]) == ("null", "both", 0)


async def test_ready_follows_the_runtime() -> None:
    """503 with Retry-After while no request could be served; health stays 200."""
    generator = Scripted()
    talk = talk_to(generator)
    assert (await talk.get("/ready")).status_code == 200
    generator.is_ready = False
    response = await talk.get("/ready")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert (await talk.get("/health")).status_code == 200


async def samples(talk: Talk) -> dict[tuple[str, str], float]:
    """Value by (sample, label that is not the model), as a Prometheus server would read it."""
    text = (await talk.get("/metrics")).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            found[sample.name, ",".join(labels.values())] = sample.value
    return found


async def test_metrics_count_what_was_served() -> None:
    """Under vLLM's names: 2 requests of 3 + 3 prompt tokens, 4 + 6 generated."""
    talk = talk_to()
    await talk.complete("abc", max_tokens=4)
    await talk.complete("abc", max_tokens=6, stream=True)
    await talk.complete("abc", stop="b")
    await talk.complete("abc", nonsense=1)
    found = await samples(talk)
    assert found["vllm:prompt_tokens_total", ""] == 9
    assert found["vllm:generation_tokens_total", ""] == 12
    assert found["vllm:request_success_total", "length"] == 2
    assert found["vllm:request_success_total", "stop"] == 1
    assert found["vllm:time_to_first_token_seconds_count", ""] == 3
    assert found["vllm:inter_token_latency_seconds_count", ""] == 3 + 5 + 1
    assert found["vllm:e2e_request_latency_seconds_count", ""] == 3
    assert found["vllm:request_time_per_output_token_seconds_count", ""] == 3
    assert found["vllm:request_generation_tokens_sum", ""] == 12
    assert found["vllm:request_prompt_tokens_bucket", "5.0"] == 3
    assert found["vllm:num_requests_running", "null"] == 0
    assert found["vllm:num_requests_waiting", "null"] == 0
    assert found["vllm:kv_cache_usage_perc", "null"] == 0
    assert found["vllm:num_preemptions_total", "null"] == 0
    assert found["vllm:prefix_cache_queries_total", ""] == 0
    assert found["penstock:request_failures_total", "400"] == 1


async def test_the_sum_of_gaps_is_the_time_between_first_and_last_token() -> None:
    """Also where several tokens come at once: k tokens count as k equal gaps."""
    talk = talk_to(NullGenerator(settings=NullSettings(token_s=0.001, tokens_per_step=3)))
    await talk.complete("abc", max_tokens=10)
    found = await samples(talk)
    assert found["vllm:inter_token_latency_seconds_count", ""] == 9
    gaps_s = found["vllm:inter_token_latency_seconds_sum", ""]
    assert gaps_s == pytest.approx(9 * found["vllm:request_time_per_output_token_seconds_sum", ""])
    ends_s = found["vllm:e2e_request_latency_seconds_sum", ""]
    assert ends_s == pytest.approx(found["vllm:time_to_first_token_seconds_sum", ""] + gaps_s)


async def test_queue_time_splits_the_time_to_first_token() -> None:
    """Where the runtime says how long a request queued: queue + inference = e2e."""
    script = [TokenDelta((97,), queued_s=0.0), TokenDelta((98,), finish_reason="stop")]
    talk = talk_to(Scripted(script))
    await talk.complete()
    found = await samples(talk)
    whole_s = found["vllm:e2e_request_latency_seconds_sum", ""]
    assert found["vllm:request_queue_time_seconds_count", ""] == 1
    assert found["vllm:request_inference_time_seconds_sum", ""] == pytest.approx(whole_s)
    parts = ("prefill", "decode")
    times = [found[f"vllm:request_{part}_time_seconds_sum", ""] for part in parts]
    assert sum(times) == pytest.approx(whole_s)


async def test_counters_of_the_runtime_are_shown() -> None:
    """vLLM's where vLLM has them, ours under our own prefix."""

    class Counting(NullGenerator):
        def counters(self) -> dict[str, float]:
            return {"prefix_hit_tokens": 5, "drafts": 2, "kv-transfers": 7, "waiting": 1}

    found = await samples(talk_to(Counting()))
    assert found["vllm:prefix_cache_hits_total", ""] == 5
    assert found["vllm:spec_decode_num_drafts_total", ""] == 2
    assert found["penstock:kv_transfers_total", ""] == 7
    assert not [name for name, _ in found if name.endswith("waiting_total")]


async def test_a_request_is_one_line_of_json() -> None:
    """With its id, status, tokens and times; never with its text."""
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("penstock", "uvicorn")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    log_as_json(stream)
    try:
        talk = talk_to(log_requests=True)
        body = {"prompt": "secret", "max_tokens": 3, "slo_class": "chat"}
        await talk.post("/v1/completions", body, headers={"x-request-id": "abc"})
        await talk_to(Scripted([RuntimeError("why")]), log_requests=True).complete("secret")
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["request_id"] == "abc"
    assert (lines[0]["status"], lines[0]["path"]) == (200, "/v1/completions")
    assert (lines[0]["prompt_tokens"], lines[0]["completion_tokens"]) == (6, 3)
    assert (lines[0]["finish_reason"], lines[0]["class"]) == ("length", "chat")
    assert 0 <= lines[0]["ttft_s"] <= lines[0]["e2e_s"]
    assert "RuntimeError: why" in lines[1]["error"]
    assert (lines[2]["status"], lines[2]["outcome"]) == (500, "internal_error")
    assert "secret" not in stream.getvalue()


@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_percentiles_are_nearest_rank(values: list[float]) -> None:
    """The same as NumPy's ``inverted_cdf``."""
    window = Window(span_s=10)
    for value in values:
        window.add(value, 5.0)
    found = window.percentiles(6.0)
    assert found is not None
    expected = np.percentile(values, [50, 90, 99], method="inverted_cdf")
    assert [found[key] for key in ("p50", "p90", "p99")] == list(expected)
    assert found["count"] == len(values)


def test_a_window_forgets() -> None:
    """What is older than the window, and the oldest where there is too much."""
    window = Window(span_s=10, most=3)
    for second in range(6):
        window.add(float(second), float(second))
    assert window.percentiles(13.5) == {"p50": 4.0, "p90": 5.0, "p99": 5.0, "count": 2}
    assert window.percentiles(100.0) is None


async def test_the_page_needs_nothing_from_elsewhere() -> None:
    """Three small files of our own, and a policy that forbids the rest."""
    talk = talk_to()
    size = 0
    for path in ("/", "/static/style.css", "/static/page.js"):
        response = await talk.get(path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert set(re.findall(r"\w+://[^\s\"]+", response.text)) <= {"http://www.w3.org/2000/svg"}
        size += len(response.content)
    assert size < 30_000


async def test_the_page_is_told_what_goes_on() -> None:
    """A snapshot has the engines, percentiles and the latest requests first."""
    app = make_app(NullGenerator(), GatewaySettings(log_requests=False))
    talk = Talk(app)
    await talk.complete("abc", max_tokens=2)
    await talk.chat("abc", max_tokens=3)
    now = app.state.gateway.live.snapshot(1e9)
    assert [request["completion_tokens"] for request in now["recent"]] == [3, 2]
    assert now["engines"][0]["nodes"] == ("localhost",)
    assert now["ttft_s"] is None, "both requests are long ago by then"
    assert now["in_flight"] == 0
    assert now["ready"]


async def test_events_end_when_the_server_closes() -> None:
    """A page that is open does not hold the server up."""
    app = make_app(NullGenerator(), GatewaySettings(log_requests=False, events_interval_s=0.01))
    talk = Talk(app)

    async def close_soon() -> None:
        await asyncio.sleep(0.05)
        app.state.gateway.live.closing.set()

    response, _ = await asyncio.gather(talk.get("/events"), close_soon())
    events = [event for event in response.text.split("\n\n") if event]
    assert len(events) >= 2
    assert json.loads(events[-1].removeprefix("data: "))["models"][0]["name"] == "null"


def test_the_script_of_the_page_is_javascript() -> None:
    """Checked by node, where there is one."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = resources.files("penstock.serve.gateway").joinpath("static", "page.js").read_text()
    done = subprocess.run(
        [node, "--check", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def open_browser(**page_settings: Any) -> Iterator[Any]:
    """A page of a real browser; skips where there is none."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed")
    path = _browser()
    if path is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(**page_settings)
        browser.close()


def test_the_page_draws_in_a_browser_at_phone_width() -> None:
    """Engines, figures and requests show, nothing overflows, and the console stays silent."""
    app = make_app(NullGenerator(), GatewaySettings(log_requests=False, events_interval_s=0.1))
    phone = {"width": 360, "height": 740}
    with run_server(app) as address, open_browser(viewport=phone, color_scheme="dark") as page:
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(address)
        page.request.post(f"{address}/v1/completions", data={"prompt": "abc", "max_tokens": 5})
        page.wait_for_selector("#recent tr")
        assert page.inner_text("#state") == "Serving"
        assert page.locator("#plan svg .bar").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert complaints == []


def test_the_page_asks_for_the_key() -> None:
    """A wrong one is said to be wrong; the right one draws."""
    settings = GatewaySettings(log_requests=False, events_interval_s=0.1, api_keys=("right",))
    with run_server(make_app(NullGenerator(), settings)) as address, open_browser() as page:
        page.goto(address)
        for key, state in (("wrong", "Wrong key"), ("right", "Serving")):
            page.wait_for_selector("#key-form:not([hidden])")
            page.fill("#key", key)
            page.click("#key-form button")
            page.locator("#state", has_text=state).wait_for()
        page.wait_for_selector("#plan svg")
        assert page.is_hidden("#key-form")
