"""Four models in one server of worker processes: they come, move, share, fail and go under load."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx
import pytest
import torch
import transformers
from test_server import command, processes_below, serving
from tiny_runtime import TINY

from penstock.measure.store import read_run
from penstock.plan.pool_document import pool_from_dict, write_pool
from penstock.plan.pool_plan import PoolPlan
from penstock.serve.many.local import local_pool, with_models
from penstock.serve.many.member import Making

# Layers, hidden size, KV heads: four sizes.
SIZES = {"one": (2, 32, 2), "two": (3, 64, 4), "three": (4, 64, 2), "four": (6, 96, 4)}
FIRST = ("one", "two", "three")
COUNT = 6
TOKENS = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random checkpoints with the tiny model's tokenizer."""
    torch.set_num_threads(1)
    made = {}
    for name, (layers, hidden, kv_heads) in SIZES.items():
        torch.manual_seed(layers)
        config = transformers.LlamaConfig(
            vocab_size=4096,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=1,
            # Far apart logits: no tie is broken by the order of a sum.
            initializer_range=0.3,
        )
        made[name] = tmp_path_factory.mktemp(name)
        transformers.LlamaForCausalLM(config).save_pretrained(made[name])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / file, made[name])
    return made


@dataclass
class Client:
    """Asks a server. ``texts`` are the answers of each model when nothing disturbed it."""

    url: str
    pid: int
    texts: dict[str, list[str]]

    def ask(self, model: str, number: int, tokens: int = TOKENS) -> str:
        body = {
            "model": model,
            "prompt": f"def function_{number}(value, {'other, ' * number}last):",
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == tokens
        return str(answer.json()["choices"][0]["text"])

    def learn(self, model: str) -> None:
        self.texts[model] = [self.ask(model, number) for number in range(COUNT)]

    def deploy(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command("deploy", *arguments, "--url", self.url),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def models(self) -> list[str]:
        return [card["id"] for card in httpx.get(f"{self.url}/v1/models").json()["data"]]

    def counter(self, name: str) -> dict[str, float]:
        """A counter of ``/metrics`` by model."""
        page = httpx.get(f"{self.url}/metrics").text
        found = re.findall(rf'^penstock:{name}_total{{model_name="(\w+)"}} (\S+)$', page, re.M)
        return {model: float(value) for model, value in found}


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[Client]:
    """Three models to begin with."""
    models = [part for name in FIRST for part in ("--model", f"{name}={folders[name]}")]
    with serving(*models, "--dtype", "float32") as (url, child):
        found = Client(url, child.pid, {})
        for name in FIRST:
            found.learn(name)
        yield found


class Burst:
    """Requests in bursts to ``models`` for as long as the block lasts, and ``least`` of them.

    All are compared with the undisturbed answers; none may be refused.
    """

    def __init__(self, client: Client, models: tuple[str, ...], least: int = 24) -> None:
        self._client, self._models, self._least = client, models, least
        self._over = threading.Event()
        self._numbers = count()

    def __enter__(self) -> None:
        self._pool = ThreadPoolExecutor(4)
        self._askers = [self._pool.submit(self._ask, random.Random(i)) for i in range(4)]

    def _ask(self, rng: random.Random) -> None:
        while not self._over.is_set() or next(self._numbers) < self._least:
            model, number = rng.choice(self._models), rng.randrange(COUNT)
            for _ in range(rng.randrange(1, 6)):
                assert self._client.ask(model, number) == self._client.texts[model][number]
            time.sleep(rng.random() * 0.2)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        with self._pool:
            for asker in self._askers:
                asker.result()


def test_a_model_comes_and_moves_under_load(client: Client, folders: dict[str, Path]) -> None:
    """No request is lost, and greedy tokens stay what they were."""
    with Burst(client, FIRST):
        four = ("four", "--checkpoint", folders["four"], "--precisions", "float32")
        added = client.deploy(*four, "--intent", "min_gpu_cost")
        assert (added.returncode, added.stderr) == (0, "")
        assert "started: four.engine-0" in added.stdout
    assert client.models() == [*FIRST, "four"]
    client.learn("four")
    with Burst(client, tuple(SIZES)):
        for name in ("four", "two"):
            same = (name, "--checkpoint", folders[name], "--precisions", "float32")
            moved = client.deploy(*same, "--pp", 2, "--drain", "0.1s")
            assert moved.returncode == 0, moved.stderr
            assert f"ended: {name}.engine-0" in moved.stdout
    listed = client.deploy()
    assert "layers [3, 3]" in listed.stdout
    assert client.counter("requests_failed") == dict.fromkeys(SIZES, 0.0)


def test_a_whole_pool_is_placed_anew_under_load(client: Client, tmp_path: Path) -> None:
    """Two models change places, two share one: as a document, and back."""
    document = httpx.get(f"{client.url}/admin/pool").json()
    before: PoolPlan = pool_from_dict(document)
    write_pool(tmp_path / "before.yaml", before)
    rows = {row["name"]: row for row in document["deployments"]}
    one, three = (rows[name]["engines"][0]["stages"] for name in ("one", "three"))
    one[0][0], three[0][0] = three[0][0], three[0][0]
    write_pool(tmp_path / "after.yaml", pool_from_dict(document))
    with Burst(client, tuple(SIZES)):
        for file in ("after.yaml", "before.yaml"):
            changed = client.deploy("--pool", tmp_path / file, "--drain", "20s")
            assert changed.returncode == 0, changed.stderr
            assert "started: one.engine-0" in changed.stdout
    assert client.counter("requests_failed") == dict.fromkeys(SIZES, 0.0)


def test_a_worker_that_is_killed_is_one_model_s_affair(client: Client) -> None:
    """Its requests go on when it is back; no other engine is started anew."""
    before = sum(client.counter("worker_restarts").values())
    workers = [
        pid
        for pid in processes_below(client.pid)
        if b"--warm" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        and b"penstock.serve.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    with Burst(client, tuple(SIZES)):
        os.kill(min(workers), signal.SIGKILL)
    restarts = client.counter("worker_restarts")
    assert sum(restarts.values()) == before + 1
    assert client.counter("requests_failed") == dict.fromkeys(SIZES, 0.0)


def test_a_removal_waits_for_requests_or_is_refused(client: Client) -> None:
    """While they run: 409 and nothing has changed; with time it goes, and is unknown."""
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.ask, "three", 3, 400)
        while not any(
            entry["requests"] for entry in httpx.get(f"{client.url}/admin/models").json()["models"]
        ):
            assert not long.done()
        refused = httpx.delete(f"{client.url}/admin/models/three")
        assert refused.status_code == 409
        assert "1 requests of three are running" in refused.json()["error"]["message"]
        assert "three" in client.models()
        removed = client.deploy("three", "--remove", "--drain", "100s")
        assert removed.returncode == 0, removed.stderr
        assert long.result()
    assert "three" not in client.models()
    gone = httpx.post(f"{client.url}/v1/completions", json={"model": "three", "prompt": "x"})
    assert gone.status_code == 404


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere/at/all",), 2, "no such checkpoint folder"),
        ((TINY, "--slo-latency", "1us"), 3, "binding: latency_slo_s"),
        ((TINY, "--precisions", "int4"), 2, "float32, bfloat16, float16"),
        (("nobody", "--remove"), 2, "is not served"),
    ],
)
def test_what_cannot_be_is_one_line(
    client: Client, arguments: tuple[object, ...], code: int, said: str
) -> None:
    """With exit code 3 where the question has no answer; the server stays as it was."""
    before = httpx.get(f"{client.url}/admin/pool").json()
    answer = client.deploy(*arguments)
    assert (answer.returncode, answer.stderr.count("\n")) == (code, 1), answer.stderr
    assert said in answer.stderr
    assert httpx.get(f"{client.url}/admin/pool").json() == before


def test_a_pool_plan_is_served_and_recorded(folders: dict[str, Path], tmp_path: Path) -> None:
    """Two models in turn on the same node, from a file; both are in the run that it leaves."""
    making = Making()
    checkpoints = {name: str(folders[name]) for name in ("one", "two")}
    plan = with_models(checkpoints, (1, 1, 1), making, precisions=("float32",))
    assert len(plan.cluster.nodes) == len(local_pool().cluster.nodes)
    document = tmp_path / "pool.yaml"
    write_pool(document, plan)
    text = document.read_text().replace("this-machine.1, 0,", "this-machine.0, 0,")
    document.write_text(text)
    record = tmp_path / "run"
    with serving(document, "--record", record) as (url, child):
        client = Client(url, child.pid, {})
        groups = httpx.get(f"{url}/admin/models").json()["models"]
        assert [entry["engines"][0]["shared_with"] for entry in groups] == [["two"], ["one"]]
        for name in checkpoints:
            client.learn(name)
        with Burst(client, tuple(checkpoints), 60):
            pass
    measured = read_run(record)
    assert measured.model_names == ("one", "two")
    assert set(measured.requests.model_index) == {0, 1}


def test_a_server_begins_without_a_model(folders: dict[str, Path]) -> None:
    """Models come with ``penstock deploy``."""
    with serving("--deploy") as (url, child):
        client = Client(url, child.pid, {})
        assert client.models() == []
        assert client.deploy("one", "--checkpoint", folders["one"]).returncode == 0
        client.learn("one")
