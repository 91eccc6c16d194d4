"""Speculative steps give the tokens of decoding one by one, in fewer steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from worker_factory import GREEDY, Listener, hops, real

from penstock.errors import InputError
from penstock.plan.settings import SpeculationMethod, SpeculationSettings
from penstock.policy.speculation.latency import LatencyTable, StepLatency
from penstock.serve.inline import InlinePool
from penstock.serve.model import load_slice
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import Begin, Command, Decoding, Free, Item, Sampling, Step
from penstock.serve.worker import speculative_executor
from penstock.serve.worker.build import build_executor
from penstock.serve.worker.draft import DraftModel

PROMPTS = [tuple((13 * seq + 5 * i) % 150 for i in range(4 + 3 * seq)) for seq in range(4)]
OUTPUT = 14
REAL_MEASURE = speculative_executor.measure
HOT = msgspec.structs.replace(
    GREEDY, temperature=1.2, top_p=0.9, presence_penalty=0.4, seed=7, logprobs=1
)


@pytest.fixture(scope="session")
def blurred(checkpoint: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A draft that often, but not always, agrees with the model: its weights with noise."""
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")
    folder = tmp_path_factory.mktemp("draft")
    shutil.copytree(checkpoint[0], folder, dirs_exist_ok=True)
    path = folder / "model.safetensors"
    torch.manual_seed(5)
    weights = files.load_file(path)
    files.save_file({k: w + 0.012 * torch.randn_like(w) for k, w in weights.items()}, path)
    return str(folder)


@pytest.fixture(autouse=True)
def cheap_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drafted must not depend on how busy this machine is."""
    latency = StepLatency(0.001, LatencyTable((1.0, 64.0, 128.0), (0.02, 0.022, 0.04)))
    monkeypatch.setattr(speculative_executor, "measure", lambda _target, _draft: latency)


def view(seqs: list[int], made: dict[int, int]) -> Decoding:
    n = len(seqs)
    return Decoding(
        seqs=tuple(seqs),
        decode_s=(0.1,) * n,
        tokens=tuple(made[seq] for seq in seqs),
        tpot=tuple(0.05 if seq % 2 else float("inf") for seq in seqs),
        relative=(False,) * n,
        kind=tuple(seq % 2 for seq in seqs),
        most=tuple(OUTPUT - made[seq] for seq in seqs),
        prefill_tokens=0,
        occupancy=0.5,
    )


async def serve(
    spec: WorkerSpec, sampling: Sampling
) -> tuple[list[list[int]], list[list[Any]], int, tuple[int, int]]:
    """Tokens and log probabilities of all prompts, which come one a step, in chunks of 5."""
    pool = InlinePool(strict=True)
    listener = Listener(pool)
    await pool.start(spec)
    tokens = [list(prompt) for prompt in PROMPTS]
    logs: list[list[Any]] = [[] for _ in PROMPTS]
    read = [0] * len(PROMPTS)
    freed: set[int] = set()
    commands: list[Command] = []
    steps = 0
    while len(freed) < len(PROMPTS):
        items, decoding = [], []
        for seq, prompt in enumerate(PROMPTS):
            if seq > steps or seq in freed:
                continue
            if read[seq] < len(prompt):
                fed = prompt[read[seq] : read[seq] + 5]
                draw = read[seq] + len(fed) == len(prompt)
                items.append(Item(seq, read[seq], fed, draw, True))
                read[seq] += len(fed)
                if draw:
                    own = msgspec.structs.replace(sampling, prompt=prompt)
                    commands.append(Begin(seq, own))
            else:
                items.append(Item(seq, len(tokens[seq]) - 1, (tokens[seq][-1],), True))
                decoding.append(seq)
        made = {seq: len(tokens[seq]) - len(PROMPTS[seq]) for seq in range(len(PROMPTS))}
        seen = view(decoding, made) if decoding else None
        step = Step(steps, tuple(items), tuple(commands), hops(spec), decoding=seen)
        pool.send(spec.name, step)
        commands = []
        (done,) = await listener.done()
        for drawn in done.drawn:
            tokens[drawn.seq].extend(drawn.tokens)
            logs[drawn.seq].extend(drawn.logprobs)
            if len(tokens[drawn.seq]) >= len(PROMPTS[drawn.seq]) + OUTPUT:
                freed.add(drawn.seq)
                commands.append(Free(drawn.seq))
        steps += 1
    pool.send(spec.name, Step(0, (), tuple(commands), hops(spec)))
    (pages,) = await listener.pages(pool, spec.name)
    await pool.close()
    made_of = [tokens[seq][len(prompt) :] for seq, prompt in enumerate(PROMPTS)]
    return made_of, logs, steps, pages


def speculative(
    checkpoint: tuple[str, Any], draft: str, method: SpeculationMethod, **changes: Any
) -> WorkerSpec:
    settings = SpeculationSettings(method, draft, max_num_seqs=8, **changes)
    return real(checkpoint, "w", 0, 4, speculation=settings, num_pages=800)


@pytest.mark.parametrize("method", ["chain", "adaserve", "penstock"])
@pytest.mark.parametrize("exact", [True, False])
async def test_greedy_tokens_are_those_of_the_model(
    checkpoint: tuple[str, Any],
    blurred: str,
    expected: Callable[..., list[int]],
    method: SpeculationMethod,
    exact: bool,
) -> None:
    """With a draft that always agrees and with one that often does not, prompts in between."""
    draft = checkpoint[0] if exact else blurred
    made, _, _, pages = await serve(speculative(checkpoint, draft, method), GREEDY)
    for seq, prompt in enumerate(PROMPTS):
        # A step may end past the limit only by what the coordinator cuts.
        assert made[seq][:OUTPUT] == expected(prompt, OUTPUT)
        assert len(made[seq]) == OUTPUT
    assert pages == (0, 0)


async def test_a_chain_that_always_agrees_needs_fewer_steps(checkpoint: tuple[str, Any]) -> None:
    """Four draft tokens and one of the target's own: 13 tokens after the first take 3 steps."""
    spec = speculative(checkpoint, checkpoint[0], "chain", num_speculative_tokens=4)
    _, _, steps, _ = await serve(spec, GREEDY)
    # The last prompt (13 tokens) comes at step 3 and is read in 3 chunks.
    assert steps == 3 + 3 + 3


@pytest.mark.parametrize("method", ["chain", "adaserve", "penstock"])
async def test_seeded_draws_and_log_probabilities_are_those_of_plain_decoding(
    checkpoint: tuple[str, Any], blurred: str, method: SpeculationMethod
) -> None:
    """Speculation changes when tokens come, not which."""
    plain = await serve(real(checkpoint, "w", 0, 4, num_pages=800), HOT)
    made, logs, _, _ = await serve(speculative(checkpoint, blurred, method), HOT)
    assert made == plain[0]
    for ours, theirs in zip(logs, plain[1], strict=True):
        assert [entry[0] for entry in ours] == pytest.approx(
            [entry[0] for entry in theirs], abs=1e-4
        )
        assert [entry[1][0][0] for entry in ours] == [entry[1][0][0] for entry in theirs]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"start_layer": 1}, "one stage"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size 1"),
        ({}, "folder of a checkpoint"),
    ],
)
async def test_what_cannot_speculate_is_refused(
    checkpoint: tuple[str, Any], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """On one line, before anything runs."""
    settings = SpeculationSettings(draft_model=str(tmp_path / "nowhere"))
    spec = replace(real(checkpoint, "w", 0, 4, speculation=settings), **changes)
    with pytest.raises(InputError, match=says):
        build_executor(spec)


def test_both_models_are_measured(checkpoint: tuple[str, Any]) -> None:
    """Every figure is positive, and more tokens never take less; no page is left taken."""
    model = load_slice(checkpoint[0], num_pages=600)
    drafting = load_slice(checkpoint[0], num_pages=600)
    latency = REAL_MEASURE(model, DraftModel(drafting, 160))
    assert latency.draft_pass_s > 0
    assert latency.verify.seconds[0] > 0
    assert latency.draft is not None
    assert latency.pass_s(16) >= latency.pass_s(1) == latency.draft_pass_s
    assert (model.pool.free, drafting.pool.free) == (600, 600)
