"""The tokenizer of a checkpoint, and what is wrong with one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.serve.text import Tokenizer, load_text

TEXT = "the quick fox: Köln 你好"


@pytest.mark.parametrize("family", ["byte_checkpoint", "piece_checkpoint"])
def test_text_survives_the_way_there_and_back(family: str, request: pytest.FixtureRequest) -> None:
    """Encoding and decoding give the same text, with the ids of the library itself."""
    folder: Path = request.getfixturevalue(family)
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode(TEXT)
    assert ids == tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    assert tokenizer.decode(ids) == TEXT


@given(text=st.text().filter(lambda text: "<|" not in text))
def test_every_byte_of_a_text_is_a_token_of_the_byte_tokenizer(text: str) -> None:
    """Without a checkpoint, token ids are the bytes of UTF-8 (special tokens apart)."""
    tokenizer = Tokenizer.of_bytes()
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


@pytest.mark.parametrize("family", ["byte_checkpoint", "piece_checkpoint"])
def test_bytes_of_tokens_join_to_the_text(family: str, request: pytest.FixtureRequest) -> None:
    """The bytes of each token, in order, spell the text in UTF-8."""
    tokenizer = Tokenizer.load(request.getfixturevalue(family))
    joined = b"".join(map(tokenizer.bytes_of, tokenizer.encode(TEXT)))
    assert joined.decode().removeprefix(" ") == TEXT


def test_special_tokens_are_known_and_can_be_shown(byte_checkpoint: Path) -> None:
    """Special tokens are left out of a text unless they are asked for."""
    tokenizer = Tokenizer.load(byte_checkpoint)
    ids = [*tokenizer.encode("fox"), *tokenizer.encode("<|end|>")]
    assert tokenizer.is_special(ids[-1])
    assert not tokenizer.is_special(ids[0])
    assert tokenizer.decode(ids) == "fox"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "fox<|end|>"


def test_an_id_without_a_token_gives_nothing(byte_checkpoint: Path) -> None:
    """Models pad their vocabulary: a padded id has neither name nor text."""
    tokenizer = Tokenizer.load(byte_checkpoint)
    assert tokenizer.name(100_000) == ""
    assert tokenizer.bytes_of(100_000) == b""
    assert tokenizer.decode([100_000]) == ""


def test_a_missing_tokenizer_is_one_clear_line(tmp_path: Path) -> None:
    """The error names the file that is not there."""
    with pytest.raises(SpecError, match=r"tokenizer\.json: the checkpoint has no tokenizer"):
        load_text(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b'{"model": 3}', b"\xff\xfe"])
def test_a_broken_tokenizer_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    """Whatever is in the file, the error is one line that names it."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(SpecError, match=r"tokenizer\.json: ") as caught:
        load_text(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused(byte_checkpoint: Path) -> None:
    """Ids that the embedding does not have would crash a worker: refused before."""
    size = Tokenizer.load(byte_checkpoint).size
    assert Tokenizer.load(byte_checkpoint, vocab_size=size).size == size
    with pytest.raises(SpecError, match=f"ids up to {size - 1}, the model has {size - 1} tokens"):
        Tokenizer.load(byte_checkpoint, vocab_size=size - 1)


def test_a_checkpoint_without_a_template_has_no_chat(byte_checkpoint: Path, tmp_path: Path) -> None:
    """A base model has a tokenizer and no chat template."""
    shutil.copy(byte_checkpoint / "tokenizer.json", tmp_path)
    assert load_text(tmp_path).chat is None


def test_limits_of_training_do_not_cut_prompts(byte_checkpoint: Path, tmp_path: Path) -> None:
    """Some files hold a truncation and a padding: neither may touch what is served."""
    inner = tokenizers.Tokenizer.from_file(str(byte_checkpoint / "tokenizer.json"))
    expected = inner.encode("the quick brown fox").ids
    inner.enable_truncation(2)
    inner.enable_padding(length=50)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("the quick brown fox") == expected
    assert tokenizer.encode_many(["the quick brown fox", ""]) == [expected, []]


@pytest.mark.parametrize("family", ["byte_checkpoint", "piece_checkpoint"])
def test_many_texts_encode_as_each_alone(family: str, request: pytest.FixtureRequest) -> None:
    """The way for long texts gives the same tokens, and back the same text."""
    tokenizer = Tokenizer.load(request.getfixturevalue(family))
    encoded = tokenizer.encode_many([TEXT, "fox"])
    assert encoded == [tokenizer.encode(TEXT), tokenizer.encode("fox")]
    assert tokenizer.decode_long(encoded[0]) == TEXT
