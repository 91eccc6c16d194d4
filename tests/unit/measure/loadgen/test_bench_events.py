"""What streams of servers say about tokens and their times."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.measure.loadgen.events import Stream, StreamProblem


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(text: str, **more: object) -> bytes:
    return event({"choices": [{"index": 0, "text": text, **more}]})


def usage(tokens: int, prompt: int = 3) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": tokens}


def test_one_chunk_with_text_is_one_token() -> None:
    """Empty chunks (the role of a chat, say) are not the first token."""
    stream = Stream()
    stream.feed(event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), 1.0)
    stream.feed(event({"choices": [{"delta": {"content": "a"}}]}), 2.0)
    stream.feed(chunk("b") + b"data: [DONE]\n\n", 3.0)
    assert stream.times_s() == [2.0, 3.0]
    assert stream.done


@pytest.mark.parametrize(
    "more",
    [
        {"token_ids": [5, 6, 7]},
        {"logprobs": {"tokens": ["x", "y", "z"]}},
        {"logprobs": {"content": [{}, {}, {}]}},
    ],
)
def test_a_chunk_of_several_tokens_gives_all_of_them_its_time(more: dict[str, object]) -> None:
    """No spread is made up inside a chunk."""
    stream = Stream()
    stream.feed(chunk("xyz", **more), 4.0)
    assert stream.times_s() == [4.0, 4.0, 4.0]


def test_running_usage_counts_tokens_whose_text_is_held_back() -> None:
    """Tokens come with the chunk in which the server counts them."""
    stream = Stream()
    for at, text, total in ((1.0, "a", 1), (2.0, "bc", 3), (3.0, "", 4)):
        stream.feed(event({"choices": [{"text": text}], "usage": usage(total)}), at)
    stream.feed(event({"choices": [], "usage": usage(4, prompt=9)}), 3.5)
    assert stream.times_s() == [1.0, 2.0, 2.0, 3.0]
    assert stream.prompt_tokens == 9


def test_tokens_that_only_the_total_knows_get_the_last_time() -> None:
    """The number of tokens and the last time stay true."""
    stream = Stream()
    stream.feed(chunk("a"), 1.0)
    stream.feed(chunk("b"), 2.0)
    stream.feed(event({"choices": [], "usage": usage(4)}), 2.5)
    assert stream.times_s() == [1.0, 2.0, 2.0, 2.0]


def test_more_chunks_than_tokens_keep_the_first_and_the_last() -> None:
    """A server that sends characters is held to its usage."""
    stream = Stream()
    for at in (1.0, 2.0, 3.0, 4.0):
        stream.feed(chunk("x"), at)
    stream.feed(event({"choices": [], "usage": usage(2)}), 4.5)
    assert stream.times_s() == [1.0, 4.0]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_bytes_may_be_cut_anywhere(sizes: list[int]) -> None:
    """Chunks of the network are not chunks of the stream."""
    data = chunk("ä") + b": a comment\r\n\r\n" + chunk("b").replace(b"\n", b"\r\n")
    whole, cut = Stream(), Stream()
    whole.feed(data, 0.0)
    position = 0
    for size in [*sizes, len(data)]:
        cut.feed(data[position : position + size], 0.0)
        position += size
    assert cut.times_s() == whole.times_s() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (event({"error": {"message": "out of memory"}}), "out of memory"),
        (b"data: {oops\n", "not JSON"),
        (b"data: [1]\n", "not an object"),
    ],
)
def test_errors_in_a_stream_are_said(data: bytes, problem: str) -> None:
    """A stream that fails midway does not count as served."""
    with pytest.raises(StreamProblem, match=problem):
        Stream().feed(data, 0.0)
