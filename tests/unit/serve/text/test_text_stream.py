"""Text that arrives in pieces: characters stay whole, stop strings stay hidden."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.serve.text import Detokenizer, StopMatcher, Tokenizer

UNKNOWN = "\ufffd"
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=UNKNOWN))
cuts = st.lists(st.integers(1, 4), min_size=1)
# The tokenizer is read once for all examples.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def pieces_of(detokenizer: Detokenizer, tokens: list[int], sizes: list[int]) -> list[str]:
    """Push ``tokens`` in groups of ``sizes``, over and over."""
    pieces = []
    at = turn = 0
    while at < len(tokens):
        size = sizes[turn % len(sizes)]
        pieces.append(detokenizer.push(tokens[at : at + size]))
        at += size
        turn += 1
    return [*pieces, detokenizer.finish()]


@pytest.fixture(scope="module", params=["byte_checkpoint", "piece_checkpoint"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder: Path = request.getfixturevalue(request.param)
    return Tokenizer.load(folder)


@shared
@given(text=any_text, sizes=cuts)
def test_pieces_join_to_the_text_of_all_tokens(
    tokenizer: Tokenizer, text: str, sizes: list[int]
) -> None:
    """However tokens are grouped, no character is broken and none is lost."""
    tokens = tokenizer.encode(text)
    pieces = pieces_of(Detokenizer(tokenizer), tokens, sizes)
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert not any(UNKNOWN in piece for piece in pieces)


@shared
@given(prompt=any_text, text=any_text, sizes=cuts)
def test_an_answer_continues_its_prompt(
    tokenizer: Tokenizer, prompt: str, text: str, sizes: list[int]
) -> None:
    """Prompt and answer, shown one after the other, are the text of all their tokens."""
    tokens = tokenizer.encode(prompt + "x" + text)
    cut = len(tokenizer.encode(prompt + "x"))
    before = tokenizer.decode(tokens[:cut])
    if UNKNOWN in before:
        return
    answer = "".join(pieces_of(Detokenizer(tokenizer, context=tokens[:cut]), tokens[cut:], sizes))
    assert before + answer == tokenizer.decode(tokens)


@given(raw=st.lists(st.integers(0, 255)), sizes=cuts)
def test_any_bytes_give_what_python_makes_of_them(raw: list[int], sizes: list[int]) -> None:
    """Bytes that are not UTF-8 become U+FFFD; an unfinished character at the end gives nothing."""
    tokenizer = Tokenizer.of_bytes()
    pieces = pieces_of(Detokenizer(tokenizer), raw, sizes)
    expected = tokenizer.decode(raw)
    try:
        bytes(raw).decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            expected = expected.removesuffix(UNKNOWN)
        elif "".join(pieces) != expected:
            # Broken in the middle, and unfinished at the end as well.
            assert any(
                _unfinished(bytes(raw[-length:])) for length in range(1, min(4, len(raw) + 1))
            )
            expected = expected.removesuffix(UNKNOWN)
    assert "".join(pieces) == expected


def _unfinished(tail: bytes) -> bool:
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and error.start == 0
    return False


def test_bytes_that_are_no_text_do_not_wait_for_ever(piece_checkpoint: Path) -> None:
    """A model may babble bytes: they come out, and what follows is text again."""
    tokenizer = Tokenizer.load(piece_checkpoint)
    babble = tokenizer.encode("fox")[:1] + [3 + 0xFF] * 50
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([token]) for token in babble]
    assert max(map(len, pieces)) < 10
    assert UNKNOWN in "".join(pieces[:10])
    assert detokenizer.push(tokenizer.encode("the")).endswith("the")


def test_a_character_waits_for_its_last_byte() -> None:
    """The four bytes of an emoji are four tokens: nothing, nothing, nothing, the emoji."""
    detokenizer = Detokenizer(Tokenizer.of_bytes())
    assert [detokenizer.push([byte]) for byte in "🦫".encode()] == ["", "", "", "🦫"]


def test_special_tokens_are_shown_when_asked_for(byte_checkpoint: Path) -> None:
    """``skip_special_tokens`` decides, as it does for a whole text."""
    tokenizer = Tokenizer.load(byte_checkpoint)
    tokens = [*tokenizer.encode("fox"), *tokenizer.encode("<|end|>")]
    assert "".join(pieces_of(Detokenizer(tokenizer), tokens, [1])) == "fox"
    shown = Detokenizer(tokenizer, skip_special_tokens=False)
    assert "".join(pieces_of(shown, tokens, [1])) == "fox<|end|>"


def until_stop(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """The oracle: read a character at a time, look whether the text ends in a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


letters = st.text("ab", max_size=30)


@given(
    text=letters,
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    sizes=cuts,
    include=st.booleans(),
)
def test_a_text_ends_at_its_first_complete_stop(
    text: str, stops: list[str], sizes: list[int], include: bool
) -> None:
    """How the text is cut into pieces changes neither what is shown nor which stop is found."""
    matcher = StopMatcher(stops, include=include)
    shown = []
    at = turn = 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        shown.append(matcher.push(text[at : at + size]))
        at += size
        turn += 1
        if not include:
            assert not any(stop in "".join(shown) for stop in stops)
    shown.append(matcher.finish())
    assert ("".join(shown), matcher.matched) == until_stop(text, stops, include=include)


@given(text=letters, stop=st.text("ab", min_size=1, max_size=5))
def test_no_more_waits_than_a_stop_could_need(text: str, stop: str) -> None:
    """Text that cannot begin a stop string is shown at once."""
    matcher = StopMatcher([stop])
    shown = "".join(matcher.push(character) for character in text)
    if matcher.matched is None:
        waiting = text[len(shown) :]
        assert stop.startswith(waiting)
        assert len(waiting) < len(stop)


def test_an_empty_stop_string_is_refused() -> None:
    """It would end every text before it began."""
    with pytest.raises(ValueError, match="must not be empty"):
        StopMatcher(["a", ""])
