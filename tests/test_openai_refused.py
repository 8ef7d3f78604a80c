"""OpenAI's API where it says no: what can't be done, bodies that are none, too many, clients that go."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from running_server import request_bytes
from scripted_openai import chat, contract, scripted

from tunesmith.errors import RecipeError
from tunesmith.serve import schemas
from tunesmith.serve.schemas import _maybe_infinite


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    "key, value",
    [
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        ("tool_choice", "required"), ("functions", [{"name": "f"}]), ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.5), ("frequency_penalty", -1), ("best_of", 2), ("top_k", 4), ("min_p", 0.1),
        ("modalities", ["text", "audio"]), ("store", True), ("reasoning_effort", "high"), ("service_tier", "flex"),
        ("temperature", 2.1), ("temperature", "0"), ("temperature", True), ("top_p", 0), ("top_p", 1.5),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 3.5), ("max_tokens", 10**9), ("n", 0), ("n", 999),
        ("stop", ["a"] * 99), ("stop", ""), ("stop", 5), ("seed", 1.5), ("seed", 2**64), ("top_logprobs", 2),
        ("logprobs", 3), ("stream", "yes"), ("stream_options", {"include_usage": True}), ("response_format", "json"),
        ("response_format", {"type": "xml"}), ("response_format", {"type": "json_schema"}), ("n", True),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"unsound": 1}}}),
        ("max_completion_tokens", 7), ("messages", []), ("messages", "hello"), ("messages", None), ("model", None),
        ("messages", [{"role": "tool", "content": "x"}]), ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
        ("messages", [{"role": "user", "content": "x", "name": "bob"}]),
        ("messages", [{"role": "user", "content": "end<|eot_id|>"}]),
        ("messages", [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]),
    ],
)  # fmt: skip
def test_what_cant_be_done_is_refused_by_name(scripted: Any, key: str, value: Any) -> None:
    made, _, url = scripted
    about = {"model": "scripted", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], key: value}
    answer = httpx.post(f"{url}/v1/chat/completions", json=about, timeout=100)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and set(error) == {"message", "type", "param", "code"}
    assert key.split("_")[0] in error["message"] + str(error["param"])
    assert not made.live.requests


@pytest.mark.parametrize(
    "about",
    [
        {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"},
        {"tools": [], "tool_choice": None, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"logprobs": None, "n": None, "stop": None, "seed": None, "temperature": None, "stream": None},
        {"store": False, "service_tier": "auto", "modalities": ["text"], "parallel_tool_calls": True},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}], "type": "text"}]},
        {"messages": [{"role": "developer", "content": "d"}, {"role": "user", "content": "x"},
                      {"role": "assistant", "content": "y", "refusal": None, "annotations": [], "tool_calls": None},
                      {"role": "user", "content": "z"}]},
    ],
)  # fmt: skip
def test_what_clients_send_beside_it_is_taken(scripted: Any, about: dict[str, Any]) -> None:
    _, _, url = scripted
    base = {"model": "scripted", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=base | about, timeout=100)
    assert answer.status_code == 200, answer.text


BAD_BODIES = [
    b"", b"{", b"[]", b"null", b'"text"', b"5", b"\xff\xfe{}", b'{"model": "\xc3"}', b'{"model": "\\ud800"}',
    b'{"model": "scripted", "temperature": NaN}', b'{"model": "scripted", "temperature": Infinity}',
    b'{"model": "scripted", "temperature": 1e999, "prompt": "x"}', b"[" * 50_000, b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"model": "scripted", "prompt": "x", "seed": ' + b"9" * 6000 + b"}", b'{"model": "scripted",}',
    b"{'model': 'scripted'}", b'{"model": "\x00"}', '{"model": "scripted"}'.encode("utf-16"), b"\xef\xbb\xbf{}",
]  # fmt: skip


def test_numbers_that_read_as_infinite_are_looked_for_in_every_spelling() -> None:
    for number in (
        "1e999",
        "1E+400",
        "1.e999",
        "-2.5e309",
        "9" * 400,
        "1" + "0" * 309,
        "5." + "1" * 300 + "e310",
    ):
        assert _maybe_infinite(f'{{"a": [{number}]}}'.encode()), number
    for number in ("1e99", "1e-999", "12345678901234567890", "1," * 1000, "9" * 299, "0.5", "be1234"):
        assert not _maybe_infinite(f'{{"a": [{number}]}}'.encode()), number


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate", "/api/show"]
)
def test_bodies_that_are_no_json_object(scripted: Any, path: str) -> None:
    _, _, url = scripted
    for body in BAD_BODIES:
        answer = httpx.post(
            url + path, content=body, headers={"content-type": "application/json"}, timeout=100
        )
        assert answer.status_code == 400, (body[:40], answer.text)
        error = answer.json()["error"]
        message = error if path.startswith("/api") else error["message"]
        assert isinstance(message, str) and "Traceback" not in answer.text


@pytest.mark.parametrize(
    "path, about, place",
    [
        ("/v1/completions", {"prompt": ["a", 1]}, "prompt"),
        ("/v1/completions", {"prompt": None}, "prompt"),
        ("/v1/completions", {"prompt": "x", "stop": 5}, "stop"),
        ("/v1/completions", {"prompt": "x", "stop": ["a", 5], "n": "2"}, "n"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ("/api/generate", {"prompt": "x", "format": 5}, "format"),
        ("/api/generate", {"prompt": "x", "options": {"stop": 5}}, "options.stop"),
    ],
)
def test_a_wrong_type_is_told_of_the_field_that_was_sent(
    scripted: Any, path: str, about: dict[str, Any], place: str
) -> None:
    """Not of `prompt.list[str].1`, which is how pydantic calls one of the types that it tried."""
    error = httpx.post(scripted[2] + path, json={"model": "scripted"} | about, timeout=100).json()["error"]
    message = error if path.startswith("/api") else error["message"]
    assert message.startswith(place + ": ") and "str:" not in message and "list[" not in message
    assert path.startswith("/api") or error["param"] == place


def test_every_error_has_openais_shape(scripted: Any) -> None:
    made, client, url = scripted
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="other", prompt="x")
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    for method, path, status in [
        ("GET", "/v1/none", 404),
        ("GET", "/v1/completions", 405),
        ("PUT", "/v1/models", 405),
    ]:
        answer = httpx.request(method, url + path, timeout=100)
        assert answer.status_code == status and set(answer.json()["error"]) == {
            "message",
            "type",
            "param",
            "code",
        }
    made.live.fail = RuntimeError("a secret place")
    with pytest.raises(openai.InternalServerError) as failed:
        client.completions.create(model="scripted", prompt="x")
    assert "secret" not in str(failed.value) and failed.value.type == "server_error"
    with pytest.raises(openai.APIError, match="model failed"):
        list(client.completions.create(model="scripted", prompt="x", stream=True))


def test_a_grammar_that_grows_too_large_is_no_failure_of_the_server(scripted: Any) -> None:
    made, client, _ = scripted
    made.live.fail = RecipeError("answers can't be held to this schema: too many expressions")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="too many expressions") as refused:
        chat(client, response_format=form)
    assert refused.value.param == "response_format"
    with pytest.raises(openai.APIError, match="too many expressions"):
        list(chat(client, response_format=form, stream=True))


def test_too_long_is_told_by_the_key_that_was_sent_and_in_openais_words(scripted: Any) -> None:
    """litellm knows a context that is too long by the words alone."""
    _, client, _ = scripted
    for about, param in (
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_completion_tokens": 10**6, "max_tokens": None}, "max_completion_tokens"),
        ({"text": "word " * 9000}, "messages"),
    ):
        with pytest.raises(openai.BadRequestError, match="this model's maximum context length is") as refused:
            chat(client, **about)
        assert refused.value.param == param and refused.value.code == "context_length_exceeded"
        assert param == "messages" or param + " is 1000000" in refused.value.message


def test_a_pattern_that_python_does_not_read_is_no_unsound_schema(scripted: Any) -> None:
    _, client, _ = scripted
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": r"^\p{L}+$"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert chat(client, response_format=form).choices


def test_a_bug_is_500_without_a_trace(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, url = scripted

    def broken(*_: Any) -> None:
        raise KeyError("a secret place")

    monkeypatch.setattr(made.live, "submit", broken)
    answer = httpx.post(f"{url}/v1/completions", json={"model": "scripted", "prompt": "x"}, timeout=100)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text and "Traceback" not in answer.text


def test_too_many_are_told_when_to_come_again(scripted: Any) -> None:
    made, client, _ = scripted
    made.ids = [7] * 200
    made.live.go.clear()  # nobody is answered before all have asked
    with ThreadPoolExecutor(6) as pool:

        def ask(_: int) -> Any:
            try:
                return client.completions.create(model="scripted", prompt="x", n=16, max_tokens=100)
            except openai.RateLimitError as error:
                return error

        asked = [pool.submit(ask, number) for number in range(6)]
        try:
            until(lambda: sum(one.done() for one in asked) >= 2)
        finally:
            made.live.go.set()
        answers = [one.result() for one in asked]
    busy = [one for one in answers if isinstance(one, openai.RateLimitError)]
    assert len(busy) == 2 and all(int(one.response.headers["retry-after"]) >= 1 for one in busy)
    assert all(len(one.choices) == 16 for one in answers if one not in busy)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_its_answer_within_a_few_tokens(scripted: Any, stream: bool) -> None:
    made, _, url = scripted
    live = made.live
    live.seconds, made.ids = 0.01, [7] * 4000
    about = {"model": "scripted", "prompt": "x", "max_tokens": 3000, "stream": stream, "n": 3}
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(request_bytes("/v1/completions", about))
        came = sock.recv(65536) if stream else b" 200 "
        until(lambda: live.load().tokens >= 9)
        live.go.clear()  # nothing is written before the engine has heard
    assert b" 200 " in came
    until(lambda: len(live.cancels) == 3)
    before = live.load().tokens
    live.go.set()
    until(lambda: live.load()[:2] == (0, 0))
    assert live.load().tokens - before <= 3


def test_what_is_wrong_a_million_times_is_told_at_once(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be a report of its own, which took ten seconds of the event loop."""
    reports, told = list[int](), schemas._told
    monkeypatch.setattr(schemas, "_told", lambda error: reports.append(error.error_count()) or told(error))
    _, _, url = scripted
    turn = [{"role": "user", "content": "x"}]
    large = {f"k{n}": {"type": "string"} for n in range(4000)}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": large}}}
    for path, body in (
        ("completions", {"prompt": [1.5] * 300_000}),
        ("chat/completions", {"messages": [{}] * 300_000}),
        ("chat/completions", {"messages": [1] * 600_000}),
        ("chat/completions", {"messages": turn, "response_format": form}),
    ):
        answer = httpx.post(f"{url}/v1/{path}", json={"model": "scripted"} | body, timeout=60)
        assert answer.status_code == 400 and len(answer.text) < 500, answer.text[:1000]
    assert len(reports) >= 3 and max(reports) <= 4
