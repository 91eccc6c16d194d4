"""Token trees: one verification equals decoding each path by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from model_oracle import greedy
from model_pipeline import VOCAB, Pipeline, prompt_of

from penstock.errors import InputError
from penstock.policy.speculation.trees import CandidateTrees
from penstock.policy.speculation.verification import verify
from penstock.serve.model import Draw, TokenTree, load_slice, tree_choices
from penstock.serve.protocol import SamplingParams

Saved = Callable[[str], tuple[Path, Any]]
VARIANTS = ["llama", "mistral", "mixtral", "opt"]


def random_tree(random: Random, size: int) -> list[int]:
    return [-1] + [random.randrange(row) for row in range(1, size)]


def path_to(row: int, parents: list[int]) -> list[int]:
    path = [row]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_row_of_a_tree_has_the_logits_of_its_path(saved: Saved, variant: str) -> None:
    """Trees of several sizes and a plain decode share a step, over two slices."""
    folder, _ = saved(variant)
    line = Pipeline([load_slice(folder, a, b, num_pages=1000) for a, b in ((0, 2), (2, 4))])
    random = Random(1)
    prompts = [prompt_of(length, seed=length) for length in (3, 14, 15, 16, 30, 33)]
    lives = [line.begin() for _ in prompts]
    line.run(list(zip(lives, prompts, strict=True)))
    parents = [random_tree(random, size) for size in (9, 1, 6, 12, 2, 7)]
    tokens = [[random.randrange(VOCAB) for _ in tree] for tree in parents]
    trees = [None if len(tree) == 1 else TokenTree.of(tree) for tree in parents]
    verified = line.run(list(zip(lives, tokens, strict=True)), trees)
    for prompt, tree, drafted, logits in zip(prompts, parents, tokens, verified, strict=True):
        for row in range(len(tree)):
            plain = line.begin()
            path = [drafted[at] for at in path_to(row, tree)]
            (want,) = line.run([(plain, prompt + path)])
            assert torch.allclose(logits[row], want[-1], rtol=1e-4, atol=1e-4)
            for pages in plain.pages:
                assert pages is not None
                pages.release()


@pytest.mark.parametrize("variant", VARIANTS)
def test_speculation_continues_after_compaction(saved: Saved, variant: str) -> None:
    """Trees with some right branches give the tokens of plain greedy decoding."""
    folder, model = saved(variant)
    line = Pipeline([load_slice(folder, a, b, num_pages=1000) for a, b in ((0, 1), (1, 4))])
    prompt = prompt_of(29, seed=3)
    want = greedy(model, prompt, 40)
    random = Random(5)
    live = line.begin()
    (logits,) = line.run([(live, prompt)])
    done = [int(logits[-1].argmax())]
    steps = 0
    while len(done) < 30:
        parents, tokens = [-1], [done[-1]]
        right = 0
        for depth in range(3):
            wrong = random.randrange(VOCAB)
            ahead = want[len(done) + depth] if random.random() < 0.7 else random.randrange(VOCAB)
            parents += [right, right]
            tokens += [wrong, ahead]
            right = len(tokens) - 1
        (logits,) = line.run([(live, tokens)], [TokenTree.of(parents)])
        choices = logits.argmax(dim=-1).tolist()
        at, kept = 0, [0]
        while True:
            children = [r for r in range(len(tokens)) if parents[r] == at]
            hits = [r for r in children if tokens[r] == choices[at]]
            done.append(choices[at])
            if not hits:
                break
            at = hits[0]
            kept.append(at)
        for model_slice, pages in zip(line.slices, live.pages, strict=True):
            assert pages is not None
            model_slice.cache.keep(pages.table, live.context, kept)
        live.context += len(kept)
        steps += 1
    assert done == want[: len(done)]
    assert steps < 20


def test_choices_make_the_policy_accept_what_decoding_would_draw(saved: Saved) -> None:
    """Sampled decoding with and without a verified tree gives the same tokens."""
    folder, _ = saved("llama")
    line = Pipeline([load_slice(folder, num_pages=1000)])
    prompt = prompt_of(12, seed=4)
    params = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.2)

    def draw(output: list[int]) -> Draw:
        return Draw(params, seed=11, position=len(output), prompt=prompt, output=output)

    plain, want = line.begin(), []
    (logits,) = line.run([(plain, prompt)])
    for _ in range(5):
        want += tree_choices(logits[-1:], draw(want), [0], [-1])
        (logits,) = line.run([(plain, want[-1:])])
    live = line.begin()
    line.run([(live, prompt)])
    tokens = [want[0], 5, want[1], 6, want[2], 7, 8]
    parents = [-1, 0, 0, 2, 2, 4, 4]
    (logits,) = line.run([(live, tokens)], [TokenTree.of(parents)])
    choices = tree_choices(logits, draw(want[:1]), tokens, parents)
    trees = CandidateTrees(
        depth=3,
        width=2,
        parent=np.array([[parent - 1 for parent in parents[1:]]]),
        log_path=np.full((1, 6), -1.0),
        token=np.array([tokens[1:]]),
    )
    verdict = verify(trees, np.ones((1, 6), bool), np.array([choices]))
    path = [tokens[1 + node] for node in verdict.path[0] if node >= 0]
    assert [*path, int(verdict.next_token[0])] == want[1:4]


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-1, 2, 0], [-2]])
def test_a_tree_whose_parents_come_later_is_refused(parents: list[int]) -> None:
    """Rows must follow their parents."""
    with pytest.raises(InputError, match="parent"):
        TokenTree.of(parents)
