"""The committed tiny target and draft: they load, share a tokenizer, and agree often enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")

torch.set_num_threads(1)

MODELS = Path(__file__).parents[2] / "models"
DRAFT_DEPTH = 4
MAX_BYTES = 30_000_000

# tracemalloc.py of Python 3.11, PSF licence; training.json lists it among the files kept apart.
HELD_OUT_FILE = "tracemalloc.py"
HELD_OUT = '''\
class StatisticDiff:
    """
    Statistic difference on memory allocations between an old and a new
    Snapshot instance.
    """
    __slots__ = ('traceback', 'size', 'size_diff', 'count', 'count_diff')

    def __init__(self, traceback, size, size_diff, count, count_diff):
        self.traceback = traceback
        self.size = size
        self.size_diff = size_diff
        self.count = count
        self.count_diff = count_diff

    def __hash__(self):
        return hash((self.traceback, self.size, self.size_diff,
                     self.count, self.count_diff))

    def __eq__(self, other):
        if not isinstance(other, StatisticDiff):
            return NotImplemented
        return (self.traceback == other.traceback
                and self.size == other.size
                and self.size_diff == other.size_diff
                and self.count == other.count
                and self.count_diff == other.count_diff)

    def __str__(self):
        text = ("%s: size=%s (%s), count=%i (%+i)"
                % (self.traceback,
                   _format_size(self.size, False),
                   _format_size(self.size_diff, True),
                   self.count,
                   self.count_diff))
        if self.count:
            average = self.size / self.count
            text += ", average=%s" % _format_size(average, False)
        return text
'''


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(MODELS / "tiny")


@pytest.fixture(scope="module")
def target() -> Any:
    return _load("tiny")


@pytest.fixture(scope="module")
def draft() -> Any:
    return _load("tiny-draft")


@pytest.fixture(scope="module")
def text(tokenizer: Any) -> torch.Tensor:
    ids = tokenizer(HELD_OUT, return_tensors="pt").input_ids
    assert ids.shape[1] > 200
    return ids


def _load(name: str) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32)
    return model.eval()


@torch.inference_mode()
def _choices(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The greedy next token after each prefix of `ids`, shape (1, tokens)."""
    return model(ids).logits.argmax(-1)


def test_both_models_give_finite_logits_over_the_whole_vocabulary(
    target: Any, draft: Any, tokenizer: Any, text: torch.Tensor
) -> None:
    """A forward pass of held-out text has one finite score per token of the tokenizer."""
    for model in (target, draft):
        with torch.inference_mode():
            logits = model(text).logits
        assert logits.shape == (*text.shape, len(tokenizer))
        assert torch.isfinite(logits).all()


def test_the_models_have_the_sizes_they_are_described_with(target: Any, draft: Any) -> None:
    """The target has 5 to 15 million parameters and the draft about one million."""
    assert 5e6 < target.num_parameters() < 15e6
    assert 0.7e6 < draft.num_parameters() < 1.3e6


def test_the_checkpoints_stay_small_enough_for_a_repository() -> None:
    """Both folders together take less than 30 MB."""
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < MAX_BYTES


def test_draft_and_target_share_one_tokenizer() -> None:
    """Token ids mean the same to both: every tokenizer file has the same bytes."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shared = (MODELS / "tiny" / name).read_bytes()
        assert (MODELS / "tiny-draft" / name).read_bytes() == shared


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_decodes_to_itself(sample: str) -> None:
    """Byte-level tokens lose nothing, whatever the script or symbol."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODELS / "tiny" / "tokenizer.json"))
    ids = tokenizer.encode(sample).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == sample


def test_multi_byte_characters_may_span_tokens_and_come_back(tokenizer: Any) -> None:
    """A character with no token of its own is spelt in bytes and joined again."""
    sample = "größe = '漢字' + '🧪'\n"
    ids = tokenizer(sample).input_ids
    assert len(tokenizer("🧪").input_ids) > 1
    assert tokenizer.decode(ids) == sample


def test_a_chat_ends_where_the_assistant_begins(tokenizer: Any) -> None:
    """The template writes each turn between its tokens and leaves the last one open."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Sort a list."}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|begin|><|user|>Sort a list.<|end|><|assistant|>"
    ids = tokenizer(prompt).input_ids
    assert (ids[0], ids[1], ids[-2], ids[-1]) == (0, 2, 1, 3)


def test_generation_stops_at_the_end_token(tokenizer: Any) -> None:
    """Both folders name the tokenizer's end token as the one that ends a continuation."""
    for name in ("tiny", "tiny-draft"):
        for file in ("config.json", "generation_config.json"):
            document = json.loads((MODELS / name / file).read_text())
            assert document["eos_token_id"] == tokenizer.eos_token_id
            assert document["bos_token_id"] == tokenizer.bos_token_id


def test_the_excerpt_was_kept_out_of_training() -> None:
    """The file of the excerpt is listed among those kept apart."""
    assert HELD_OUT_FILE in json.loads((MODELS / "training.json").read_text())["held_out"]


def test_the_target_has_learnt_from_its_text(target: Any, text: torch.Tensor) -> None:
    """It guesses a good part of unseen code right; an untrained one would guess one in 4096."""
    right = _choices(target, text)[:, :-1] == text[:, 1:]
    assert right.float().mean() > 0.25


def test_the_target_would_often_choose_the_drafts_token(
    target: Any, draft: Any, text: torch.Tensor
) -> None:
    """Greedy draft and target agree after more than four in ten prefixes of unseen code."""
    agreement = (_choices(target, text) == _choices(draft, text)).float().mean()
    assert agreement > 0.4


def test_a_chain_of_draft_tokens_saves_target_steps(
    target: Any, draft: Any, text: torch.Tensor
) -> None:
    """Speculative greedy decoding emits the target's own text at over two tokens per step."""
    prompt = text[:, :64]
    wanted = target.generate(prompt, max_new_tokens=64, do_sample=False)
    made = prompt
    steps = 0
    while made.shape[1] < wanted.shape[1]:
        chain = made
        for _ in range(DRAFT_DEPTH):
            chain = torch.cat([chain, _choices(draft, chain)[:, -1:]], dim=1)
        choice = _choices(target, chain)[0, made.shape[1] - 1 :]
        proposed = chain[0, made.shape[1] :]
        same = (choice[:-1] == proposed).long().cumprod(0).sum()
        made = torch.cat([made, choice[None, : int(same) + 1]], dim=1)
        steps += 1
    assert torch.equal(made[:, : wanted.shape[1]], wanted)
    assert (made.shape[1] - prompt.shape[1]) / steps > 2
