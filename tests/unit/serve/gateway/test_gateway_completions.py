"""Completions and chats: what goes to the runtime and what comes back."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.serve.gateway.talking import Scripted, error_of, events_of, talk_to

from penstock.serve.null import NullSettings
from penstock.serve.protocol import ModelCard, SamplingParams, TokenDelta


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("abc", ["abcab"]),
        (["abc", "x"], ["abcab", "xxxxx"]),
        ([97, 98], ["ababa"]),
        ([[97], [98, 99]], ["aaaaa", "bcbcb"]),
    ],
)
async def test_a_prompt_may_be_text_or_tokens_or_many(prompt: Any, texts: list[str]) -> None:
    """The null runtime repeats its prompt, so each choice shows which prompt it had."""
    answer = (await talk_to().complete(prompt, max_tokens=5)).json()
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))
    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] == 5 * len(texts)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 5 * len(texts)


async def test_every_setting_reaches_the_runtime() -> None:
    """OpenAI's parameters and vLLM's extras arrive under their names; units are converted."""
    generator = Scripted()
    body = {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.1,
        "seed": -5,
        "logprobs": 3,
        "stop_token_ids": [10, 11],
        "ignore_eos": True,
        "slo_class": "chat",
        "tpot_ms": 40,
        "priority": -3,
        "deadline_s": 20,
    }
    response = await talk_to(generator).complete("abc", **body)
    assert response.status_code == 200
    [request] = generator.asked
    assert request.prompt == tuple(b"abc")
    assert (request.model, request.class_name, request.tpot_s) == ("null", "chat", 0.04)
    assert (request.priority, request.deadline_s) == (-3, 20)
    assert request.params == SamplingParams(
        max_tokens=7,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=-1.0,
        frequency_penalty=1.5,
        repetition_penalty=1.1,
        seed=-5,
        logprobs=3,
        stop_token_ids=(10, 11),
        ignore_eos=True,
    )


async def test_null_means_the_default() -> None:
    """Clients send ``null`` for what they do not set; -1 switches ``top_k`` off as in vLLM."""
    generator = Scripted()
    unset = ["temperature", "top_p", "n", "stop", "seed", "logprobs", "stream", "min_p", "echo"]
    body: dict[str, Any] = dict.fromkeys(unset)
    response = await talk_to(generator).complete("abc", top_k=-1, suffix=None, **body)
    assert response.status_code == 200
    assert generator.asked[0].params == SamplingParams()


async def test_choices_of_a_seeded_request_differ_from_each_other() -> None:
    """Each of n choices is a request of its own id and seed; the prompt counts once."""
    generator = Scripted()
    answer = (await talk_to(generator).complete("abc", n=3, seed=2**63 - 1, max_tokens=2)).json()
    assert [choice["text"] for choice in answer["choices"]] == ["ab"] * 3
    assert len({request.id for request in generator.asked}) == 3
    assert len({request.params.seed for request in generator.asked}) == 3
    assert all(-(2**63) <= (request.params.seed or 0) < 2**63 for request in generator.asked)
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_the_class_of_a_request_may_come_as_a_header() -> None:
    """``x-slo-class`` is for clients that cannot change the body; the body rules."""
    generator = Scripted()
    talk = talk_to(generator, slo_classes=("chat", "batch"))
    header = {"x-slo-class": "batch"}
    body = {"prompt": "a"}
    await talk.post("/v1/completions", body, headers=header)
    await talk.post("/v1/completions", {**body, "slo_class": "chat"}, headers=header)
    assert [request.class_name for request in generator.asked] == ["batch", "chat"]
    wrong = await talk.post("/v1/completions", {**body, "slo_class": "chaat"})
    assert wrong.status_code == 400
    assert "did you mean 'chat'?" in error_of(wrong)["message"]


async def test_echo_puts_the_prompt_before_the_answer() -> None:
    """Also for token ids, and as the first chunk of a stream."""
    talk = talk_to()
    for prompt in ("abc", [97, 98, 99]):
        answer = (await talk.complete(prompt, echo=True, max_tokens=2)).json()
        assert answer["choices"][0]["text"] == "abcab"
    events = events_of(await talk.complete("abc", echo=True, max_tokens=2, stream=True))
    assert [event["choices"][0]["text"] for event in events] == ["abc", "a", "b"]


async def test_a_stop_string_ends_the_answer_and_the_work() -> None:
    """Nothing of it is shown, what came after it does not count, and the runtime is freed."""
    generator = Scripted(settings=NullSettings(tokens_per_step=4))
    talk = talk_to(generator)
    answer = (await talk.complete("abcdefgh", stop=["zz", "cde"], max_tokens=1000)).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", "cde")
    assert answer["usage"]["completion_tokens"] == 5
    assert generator.running == 0
    included = await talk.complete("abcdef", stop="cd", include_stop_str_in_output=True)
    assert included.json()["choices"][0]["text"] == "abcd"


async def test_a_stop_string_counts_after_min_tokens_only() -> None:
    """As in vLLM: the first ``min_tokens`` may hold it."""
    answer = (await talk_to().complete("abc", stop="b", min_tokens=4, max_tokens=9)).json()
    assert answer["choices"][0]["text"] == "abca"


async def test_a_stop_token_is_named() -> None:
    """It ends the answer as EOS does, and is neither shown nor counted."""
    answer = (await talk_to().complete("abc", stop_token_ids=[99])).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", 99)
    assert answer["usage"]["completion_tokens"] == 2


async def test_log_probabilities_of_a_completion() -> None:
    """Parallel lists; offsets point into the text, also behind characters of several bytes."""
    answer = (await talk_to().complete("aé!", logprobs=2, max_tokens=4, echo=False)).json()
    found = answer["choices"][0]["logprobs"]
    assert found["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert found["token_logprobs"] == pytest.approx([-math.log(260)] * 4)
    assert found["text_offset"] == [0, 1, 1, 2]
    assert found["top_logprobs"][0] == pytest.approx(
        dict.fromkeys(["\x00", "\x01", "a"], -math.log(260))
    )
    stream = events_of(await talk_to().complete("aé!", logprobs=2, max_tokens=4, stream=True))
    pieces = [event["choices"][0]["logprobs"] for event in stream]
    for key, whole in found.items():
        assert [entry for piece in pieces for entry in piece[key]] == whole


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_stop_where_the_text_stops(stream: bool) -> None:
    """The tokens of a stop string show in neither; text and tokens of a stream stay together."""
    response = await talk_to().complete("abcdef", logprobs=0, stop="def", stream=stream)
    answers = events_of(response) if stream else [response.json()]
    choices = [answer["choices"][0] for answer in answers]
    texts = [choice["text"] for choice in choices]
    tokens = [(choice["logprobs"] or {"tokens": []})["tokens"] for choice in choices]
    assert "".join(texts) == "abc"
    assert ["".join(part) for part in tokens] == texts
    held = (await talk_to().complete("ab", logprobs=0, stop="bb", max_tokens=4)).json()["choices"]
    assert (held[0]["text"], held[0]["logprobs"]["tokens"]) == ("abab", ["a", "b", "a", "b"])


async def test_log_probabilities_of_a_chat() -> None:
    """One entry a token, with its bytes and the most likely alternatives."""
    answer = (await talk_to().chat("é", logprobs=True, top_logprobs=1, max_tokens=4)).json()
    entries = answer["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in entries[1:3]] == [[0xC3], [0xA9]]
    assert [len(entry["top_logprobs"]) for entry in entries] == [1] * 4
    assert entries[0]["token"] == "<|user|>"
    without = (await talk_to().chat("é")).json()
    assert without["choices"][0]["logprobs"] is None


async def test_a_chat_goes_through_the_template() -> None:
    """Parts of a message are joined by line breaks; BOS is the template's business."""
    generator = Scripted()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    answer = (await talk_to(generator).chat(parts, max_completion_tokens=5, max_tokens=9)).json()
    expected = [256, *b"one\ntwo", 259, 257]
    assert generator.asked[0].prompt == tuple(expected)
    assert generator.asked[0].params.max_tokens == 5
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "one\n",
        "refusal": None,
    }


async def test_a_chat_without_a_limit_may_fill_the_context() -> None:
    """The default of a chat is all the room that the prompt leaves."""
    card = ModelCard("null", max_model_len=40, vocab_size=260, checkpoint="")
    generator = Scripted()
    generator._cards = (card,)
    answer = (await talk_to(generator).chat("abc")).json()
    assert answer["usage"]["total_tokens"] == 40


async def test_special_tokens_are_shown_on_request() -> None:
    """The null runtime repeats the template's own tokens."""
    answer = (await talk_to().chat("a", skip_special_tokens=False, max_tokens=4)).json()
    assert answer["choices"][0]["message"]["content"] == "<|user|>a<|end|><|assistant|>"


async def test_a_stream_has_role_text_reason_usage_and_end() -> None:
    """The order of a chat stream as OpenAI sends it."""
    options = {"include_usage": True}
    response = await talk_to().chat("ab", stream=True, stream_options=options, max_tokens=3)
    events = events_of(response)
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:]] == ["a", "b"]
    reasons = [event["choices"][0]["finish_reason"] for event in events[:-1]]
    assert reasons == [None, None, "length"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 3
    assert all(event["usage"] is None for event in events[:-1])
    assert len({event["id"] for event in events}) == 1


async def test_cached_prompt_tokens_are_in_the_usage() -> None:
    """What the prefix cache held is reported as OpenAI does."""
    script = [TokenDelta((97,), cached_prompt_tokens=2), TokenDelta(finish_reason="stop")]
    answer = (await talk_to(Scripted(script)).complete()).json()
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd<"), min_size=1)


@settings(max_examples=60, deadline=None)
@given(
    prompt=texts,
    stops=st.lists(texts, max_size=3),
    tokens=st.integers(1, 60),
    step=st.integers(1, 7),
    kind=st.tuples(st.integers(1, 3), st.booleans()),
)
def test_a_stream_joins_to_the_whole_answer(
    prompt: str, stops: list[str], tokens: int, step: int, kind: tuple[int, bool]
) -> None:
    """Text, reason and usage are the same with and without streaming; stops never show."""
    choices, chat = kind
    talk = talk_to(Scripted(settings=NullSettings(tokens_per_step=step)))
    send = talk.chat if chat else talk.complete
    body = {"stop": stops, "max_tokens": tokens, "n": choices}

    async def both() -> tuple[Any, list[Any]]:
        options = {"include_usage": True}
        whole = await send(prompt, **body)
        stream = await send(prompt, stream=True, stream_options=options, **body)
        return whole.json(), events_of(stream)

    whole, events = asyncio.run(both())
    shown = [""] * choices
    reasons: list[Any] = [None] * choices
    for event in events[:-1]:
        choice = event["choices"][0]
        text = choice["delta"]["content"] if chat else choice["text"]
        shown[choice["index"]] += text
        reasons[choice["index"]] = choice["finish_reason"]
    expected = [
        choice["message"]["content"] if chat else choice["text"] for choice in whole["choices"]
    ]
    assert shown == expected
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    assert events[-1]["usage"] == whole["usage"]
    assert not any(stop in text for stop in stops for text in shown)


async def test_tokenize_and_detokenize() -> None:
    """Texts, chats and the way back, as vLLM answers."""
    talk = talk_to()
    answer = (await talk.post("/tokenize", {"prompt": "aé", "return_token_strs": True})).json()
    assert answer == {
        "count": 3,
        "max_model_len": 32768,
        "tokens": [97, 0xC3, 0xA9],
        "token_strs": ["a", "Ã", "©"],
    }
    chat = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False}
    assert (await talk.post("/tokenize", chat)).json()["tokens"] == [256, 97, 259]
    assert (await talk.post("/detokenize", {"tokens": [97, 0xC3, 0xA9]})).json() == {"prompt": "aé"}


async def test_models_are_listed_and_found() -> None:
    """The list, one of it, and none."""
    talk = talk_to()
    listed = (await talk.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["null"]
    assert (await talk.get("/v1/models/null")).json() == listed["data"][0]
    missing = await talk.get("/v1/models/some/other")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "model_not_found")


async def test_a_long_prompt_is_encoded_all_the_same() -> None:
    """Long texts are encoded beside the event loop."""
    generator = Scripted()
    answer = await talk_to(generator).complete("ab" * 15_000, max_tokens=1)
    assert answer.json()["usage"]["prompt_tokens"] == 30_000


async def test_a_model_that_was_added_is_served() -> None:
    """The pool may change while the gateway runs; without a name, one of two is not guessed."""
    generator = Scripted()
    talk = talk_to(generator)
    generator._cards += (ModelCard("second", 100, 260, ""),)
    assert (await talk.complete("a", model="second")).status_code == 200
    unnamed = await talk.complete("a", model=None)
    assert unnamed.status_code == 400
    assert error_of(unnamed)["param"] == "model"


@pytest.mark.parametrize("stop", [None, "ca"])
async def test_token_ids_come_where_they_are_asked_for(stop: str | None) -> None:
    """The same ids whole and in chunks, also of characters that are not complete; else none."""
    prompt, count = list("aé".encode()) if stop is None else list(b"abc"), 7
    expected = [prompt[i % len(prompt)] for i in range(count)] if stop is None else list(b"abca")
    asked: dict[str, Any] = {"max_tokens": count, "stop": stop, "return_token_ids": True}
    whole = (await talk_to().complete(prompt, **asked)).json()
    events = events_of(await talk_to().complete(prompt, stream=True, **asked))
    assert whole["choices"][0]["token_ids"] == expected
    assert [token for one in events for token in one["choices"][0]["token_ids"]] == expected
    chat = (await talk_to().chat("abc", max_tokens=4, return_token_ids=True)).json()
    assert len(chat["choices"][0]["token_ids"]) == 4
    plain = (await talk_to().complete(prompt, max_tokens=count)).json()
    assert "token_ids" not in plain["choices"][0]
