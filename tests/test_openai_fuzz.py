"""Bodies that nobody foresaw, over all routes of both APIs: answered or refused in the API's own shape, never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from served_models import ScriptedLive, served_at, starter_contract, starter_served

from tunesmith.serve.protocol import Served

ROUTES = ["/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate", "/api/show"]

_text = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "x", "<|eot_id|>", "ಕ್ಯಾ 😀", "\ud800", "\x00", "scripted", "starter:latest", "1e5", "a" * 300]
    ),
)
_number = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.sampled_from([2**63, 10**400, 1e308, -0.0, 5e-324]),
)
_leaf = st.one_of(st.none(), st.booleans(), _number, _text)
_any = st.recursive(
    _leaf,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_text, inner, max_size=4)),
    max_leaves=12,
)
_property = st.fixed_dictionaries(
    {"type": st.sampled_from(["string", "integer", "null", "x"])},
    optional={"pattern": _text, "enum": _any, "minimum": _number, "$ref": _text, "maxLength": _number},
)
_schema = st.one_of(
    _any,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["object", "array", "string", ["object"], 5])},
        optional={
            "properties": st.one_of(_any, st.dictionaries(_text, st.one_of(_any, _property), max_size=3)),
            "required": st.one_of(_any, st.lists(_text, max_size=2)),
            "additionalProperties": _any,
            "$ref": _text,
            "$defs": _any,
            "anyOf": _any,
        },
    ),
)
_turn = st.one_of(
    _any,
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "system", "assistant", "developer", "tool", 5]),
            "content": st.one_of(_text, _any),
        },
        optional={"name": _any, "type": st.just("text"), "tool_calls": _any, "images": _any},
    ),
)
_format = st.one_of(
    _any,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema", "x"])},
        optional={"json_schema": st.one_of(_any, st.fixed_dictionaries({"name": _text, "schema": _schema}))},
    ),
)


def _rarely(good: Any, bad: Any = _any) -> Any:
    """Right most of the time, so that a wrong key is met behind right ones."""
    return st.integers(0, 5).flatmap(lambda n: bad if n == 0 else good)


_ids = st.lists(st.integers(-1, 2100), max_size=5)
_prompt = st.one_of(_text, st.lists(_text, max_size=3), _ids, st.lists(_ids, max_size=3))
_options = st.dictionaries(
    st.sampled_from(["num_predict", "num_ctx", "temperature", "seed", "stop", "top_k"]),
    st.one_of(_leaf, st.lists(_text, max_size=2)),
    max_size=3,
)
_keys = {
    "messages": _rarely(st.lists(_turn, max_size=3)),
    "prompt": _rarely(_prompt),
    "max_tokens": _rarely(st.integers(0, 9)),
    "max_completion_tokens": _rarely(st.integers(0, 9)),
    "temperature": _rarely(st.floats(0, 2)),
    "top_p": _rarely(st.floats(0, 1)),
    "n": _rarely(st.integers(0, 4)),
    "seed": _rarely(st.integers(-5, 2**64)),
    "stop": _rarely(st.one_of(_text, st.lists(_text, max_size=3))),
    "stream": _rarely(st.booleans()),
    "stream_options": _rarely(st.fixed_dictionaries({"include_usage": st.booleans()})),
    "logprobs": _rarely(st.one_of(st.booleans(), st.integers(0, 5))),
    "top_logprobs": _rarely(st.integers(0, 5)),
    "echo": _rarely(st.booleans()),
    "response_format": _format,
    "format": st.one_of(st.just("json"), _schema),
    "options": _rarely(_options),
    "raw": _rarely(st.booleans()),
    "system": _rarely(_text),
    "tools": _any,
    "user": _any,
    "keep_alive": _any,
    "context": _any,
    "name": _text,
    "logit_bias": _any,
}
_model = _rarely(st.sampled_from(["scripted", "scripted", "starter"]))
_object = st.fixed_dictionaries({"model": _model}, optional=_keys)
_body = st.one_of(
    _object.map(lambda data: json.dumps(data).encode()),
    _object.map(lambda data: json.dumps(data).encode()),
    _object.map(lambda data: json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    _any.map(lambda data: json.dumps(data).encode()),
    st.tuples(
        _object.map(lambda data: json.dumps(data).encode()), st.integers(0, 300), st.binary(max_size=3)
    ).map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]),
    st.binary(max_size=40),
)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    contract = starter_contract()
    live = ScriptedLive(lambda request: [*request.prompt[1:9], contract.terminator_id, *[7] * 4000])
    served = Served("scripted", contract, live, "transformers", max_tokens=6)
    with (
        served_at(served, starter_served(max_tokens=3)) as url,
        httpx.Client(base_url=url, timeout=60) as made,
    ):
        yield made


def _ask(client: httpx.Client, path: str, body: bytes) -> int:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text, body)
    assert "Traceback" not in answer.text
    if answer.status_code == 200:
        assert '"error"' not in answer.text[:10] and "the model failed" not in answer.text, (
            answer.text,
            body,
        )
    else:
        error = answer.json()["error"]
        assert (
            isinstance(error, str)
            if path.startswith("/api/")
            else set(error) == {"message", "type", "param", "code"}
        )
    return answer.status_code


def _fuzz(client: httpx.Client, count: int) -> dict[int, int]:
    seen: dict[int, int] = {}

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(ROUTES), _body)
    def one(path: str, body: bytes) -> None:
        status = _ask(client, path, body)
        seen[status] = seen.get(status, 0) + 1

    one()
    return seen


def test_some_hundred_bodies(client: httpx.Client) -> None:
    seen = _fuzz(client, 400)
    assert seen[200] > 20 and seen[400] > 100, seen


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_bodies(client: httpx.Client) -> None:
    seen = _fuzz(client, 10_000)
    print(seen)
    assert seen[200] > 500 and seen[400] > 2500, seen
