"""Greedy tokens equal those of transformers, however layers and batches are cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from model_oracle import VARIANTS, greedy, save
from model_pipeline import VOCAB, Pipeline, prompt_of

from penstock.errors import InputError, SpecError
from penstock.serve.model import load_slice

Saved = Callable[[str], tuple[Path, Any]]


def pipeline(folder: Path, *cuts: int) -> Pipeline:
    edges = [0, *cuts, 4]
    return Pipeline([load_slice(folder, a, b, num_pages=2000) for a, b in pairwise(edges)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_whole_model_generates_what_transformers_generates(saved: Saved, variant: str) -> None:
    """Prompt in one piece, then one token at a time."""
    folder, model = saved(variant)
    prompt = prompt_of(27, seed=1)
    want = greedy(model, prompt, 24)
    assert len(set(want)) > 4, "the oracle repeats itself and would hide mistakes"
    assert pipeline(folder).generate(prompt, 24) == want


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(saved: Saved, variant: str) -> None:
    """All rows of a prompt, to float32 accuracy."""
    folder, model = saved(variant)
    line = pipeline(folder)
    prompt = prompt_of(30, seed=2)
    (logits,) = line.run([(line.begin(), prompt)])
    with torch.no_grad():
        want = model(torch.tensor([prompt])).logits[0]
    assert torch.allclose(logits, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cuts", [(2,), (1, 2, 3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_slices_of_layers_give_the_same_tokens(
    saved: Saved, variant: str, cuts: tuple[int, ...]
) -> None:
    """Pipelines of two and four slices, with a chunked prompt."""
    folder, model = saved(variant)
    prompt = prompt_of(21, seed=3)
    assert pipeline(folder, *cuts).generate(prompt, 10, chunk=8) == greedy(model, prompt, 10)


@pytest.mark.parametrize("chunk", [1, 5, 16, 17])
@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen2-sliding", "opt"])
def test_chunked_prefill_does_not_change_tokens(saved: Saved, variant: str, chunk: int) -> None:
    """Chunks that end within, at and beyond a page."""
    folder, model = saved(variant)
    prompt = prompt_of(37, seed=4)
    assert pipeline(folder).generate(prompt, 8, chunk=chunk) == greedy(model, prompt, 8)


@pytest.mark.parametrize("variant", ["llama", "mistral", "mixtral", "qwen3", "opt"])
def test_partial_ranges_of_overlapping_slices_mix_in_a_batch(saved: Saved, variant: str) -> None:
    """Four slices overlap; sequences of one batch take different layers from each."""
    folder, model = saved(variant)
    spans = [(0, 3), (1, 4), (0, 4), (2, 4)]
    line = Pipeline([load_slice(folder, a, b, num_pages=400) for a, b in spans])
    routes: list[list[tuple[int, int] | None]] = [
        [(0, 3), None, None, (3, 4)],
        [(0, 1), (1, 4), None, None],
        [(0, 2), (2, 3), None, (3, 4)],
        [None, None, (0, 4), None],
        [(0, 1), (1, 2), None, (2, 4)],
        [None, None, (0, 3), (3, 4)],
    ]
    prompts = [prompt_of(5 + 7 * i, seed=10 + i) for i in range(len(routes))]
    sequences = [line.begin(route) for route in routes]
    feed = [list(prompt) for prompt in prompts]
    for _ in range(6):
        logits = line.run(list(zip(sequences, feed, strict=True)))
        feed = [[int(rows[-1].argmax())] for rows in logits]
        for sequence, new in zip(sequences, feed, strict=True):
            sequence.tokens += new
    assert [s.tokens for s in sequences] == [greedy(model, prompt, 6) for prompt in prompts]
    used = [
        sum(s.pages[place].table.size for s in sequences if s.pages[place] is not None)
        for place in range(4)
    ]
    held = [slice_.cache.num_pages - slice_.pool.free for slice_ in line.slices]
    assert held == used


@pytest.mark.parametrize("variant", ["llama", "mistral", "mixtral", "opt"])
def test_a_continuous_batch_equals_one_by_one(saved: Saved, variant: str) -> None:
    """32 requests join, prefill in chunks and leave at different steps."""
    folder, model = saved(variant)
    line = pipeline(folder, 2)
    random = Random(7)
    lengths = [random.choice([1, 3, 9, 16, 17, 40, 80]) for _ in range(32)]
    prompts = [prompt_of(length, seed=50 + i) for i, length in enumerate(lengths)]
    counts = [random.randint(1, 9) for _ in prompts]
    sequences = [line.begin() for _ in prompts]
    left = [list(prompt) for prompt in prompts]
    joined = 4
    while any(len(s.tokens) < n for s, n in zip(sequences, counts, strict=True)):
        live = [i for i in range(joined) if len(sequences[i].tokens) < counts[i]]
        work = []
        for i in live:
            chunk = random.randint(1, 24)
            work.append((sequences[i], left[i][:chunk]))
            left[i] = left[i][chunk:]
        for i, rows in zip(live, line.run(work), strict=True):
            if not left[i]:
                token = int(rows[-1].argmax())
                sequences[i].tokens.append(token)
                left[i] = [token]
                if len(sequences[i].tokens) == counts[i]:
                    for pages in sequences[i].pages:
                        assert pages is not None
                        pages.release()
        joined = min(joined + 5, 32)
    want = [greedy(model, prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
    assert [sequence.tokens for sequence in sequences] == want
    assert all(slice_.pool.free == slice_.cache.num_pages for slice_ in line.slices)


def test_dynamic_scaling_follows_transformers_beyond_the_trained_length(saved: Saved) -> None:
    """The sequence grows past ``max_position_embeddings`` token by token."""
    folder, model = saved("llama-dynamic")
    prompt = prompt_of(20, seed=5)
    assert pipeline(folder).generate(prompt, 50) == greedy(model, prompt, 50)


def test_sharded_checkpoints_are_read_by_their_index(tmp_path: Path) -> None:
    """Many small files hold the same model."""
    model = save("llama", tmp_path / "whole", seed=3)
    model.save_pretrained(tmp_path / "cut", max_shard_size="100KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 3
    prompt = prompt_of(12, seed=6)
    assert pipeline(tmp_path / "cut", 1, 3).generate(prompt, 6) == greedy(model, prompt, 6)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_tokens_outside_the_vocabulary_are_refused(saved: Saved, token: int) -> None:
    """Before they index anything."""
    line = pipeline(saved("llama")[0])
    with pytest.raises(InputError, match=f"token {token} is not in the vocabulary of {VOCAB}"):
        line.run([(line.begin(), [5, token])])


def test_positions_beyond_learned_ones_are_refused(saved: Saved) -> None:
    """OPT has a row for each position and no more."""
    line = pipeline(saved("opt")[0])
    live = line.begin()
    line.run([(live, prompt_of(256, seed=1))])
    with pytest.raises(InputError, match="position 256 is beyond the 256"):
        line.run([(live, [5])])


def test_devices_and_dtypes_that_are_not_there_are_refused(saved: Saved) -> None:
    """The line names the key and what would do."""
    folder, _ = saved("llama")
    with pytest.raises(SpecError, match=r"dtype: unknown dtype .*bfloat16"):
        load_slice(folder, dtype="bfloat", num_pages=1)
    with pytest.raises(InputError, match=r"KV pages .* do not fit"):
        load_slice(folder, num_pages=10**13)
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="device: there is no CUDA device"):
            load_slice(folder, device="cuda", num_pages=1)


def test_reused_prefix_pages_give_the_same_tokens(saved: Saved) -> None:
    """A second sequence starts with two pages of the first and computes only the rest."""
    folder, model = saved("llama")
    line = pipeline(folder)
    prompt = prompt_of(45, seed=8)
    first, second = line.begin(), line.begin()
    line.run([(first, prompt)])
    assert first.pages[0] is not None
    assert second.pages[0] is not None
    second.pages[0].share(first.pages[0].table[:, :2])
    second.context = 32
    (logits,) = line.run([(second, prompt[32:])])
    assert int(logits[-1].argmax()) == greedy(model, prompt, 1)[0]
    first.pages[0].release()
    again = line.run([(second, [7])])[0]
    other = line.begin()
    assert torch.allclose(again, line.run([(other, [*prompt, 7])])[0][-1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["llama", "qwen3", "mixtral", "opt"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close_to_float32(saved: Saved, variant: str, dtype: str) -> None:
    """The logits differ from fp32 by rounding, not by more; sends between slices keep the dtype."""
    folder, model = saved(variant)
    line = Pipeline(
        [load_slice(folder, a, b, dtype=dtype, num_pages=100) for a, b in ((0, 2), (2, 4))]
    )
    prompt = prompt_of(20, seed=9)
    (logits,) = line.run([(line.begin(), prompt)])
    with torch.no_grad():
        want = model(torch.tensor([prompt])).logits[0]
    assert logits.dtype is getattr(torch, dtype)
    assert (logits.float() - want).abs().mean() < 0.02 * want.abs().max()
