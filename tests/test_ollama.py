"""Ollama's API by its official Python client, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest
from served_models import ScriptedLive, served_at, starter_contract, starter_served

from tunesmith import __version__
from tunesmith.contract import Contract
from tunesmith.example import Message
from tunesmith.generate.protocol import LiveRequest
from tunesmith.serve.protocol import Served

TEXT = "Grade 2 😀 ಕ್ಯಾನ್ಸರ್, stage IV."


@pytest.fixture(scope="module")
def contract() -> Contract:
    return starter_contract()


class _Scripted:
    def __init__(self, contract: Contract) -> None:
        self.ids = contract.tokens_of(TEXT)
        self.live = ScriptedLive(self._write)
        self._end = contract.terminator_id
        self.served = Served("scripted", contract, self.live, "llama.cpp", max_tokens=64)

    def _write(self, request: LiveRequest) -> list[int]:
        return [*self.ids, self._end, *[7] * 4000]


@pytest.fixture
def scripted(contract: Contract) -> Iterator[tuple[_Scripted, ollama.Client, str]]:
    made = _Scripted(contract)
    with served_at(made.served) as url, ollama.Client(url) as client:
        yield made, client, url


def test_chat_and_generate_stream_the_same_text_as_they_give_whole(scripted: Any, contract: Contract) -> None:
    made, client, _ = scripted
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
    whole = client.chat("scripted", turns)
    lines = list(client.chat("scripted", turns, stream=True))
    assert whole.message.content == "".join(line.message.content or "" for line in lines) == TEXT
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert whole.done_reason == lines[-1].done_reason == "stop" and whole.message.role == "assistant"
    assert list(made.live.requests[0].prompt) == contract.prompt_ids(
        [Message("system", "s"), Message("user", "x")]
    )
    one = client.generate("scripted", "x", system="s")
    parts = list(client.generate("scripted", "x", system="s", stream=True))
    assert one.response == "".join(part.response for part in parts) == TEXT
    assert [request.prompt for request in made.live.requests] == [made.live.requests[0].prompt] * 4


def test_counts_and_durations(scripted: Any) -> None:
    made, client, _ = scripted
    made.live.seconds = 0.002
    for answer in (client.generate("scripted", "x"), list(client.generate("scripted", "x", stream=True))[-1]):
        assert answer.eval_count == len(made.ids) + 1
        assert answer.prompt_eval_count == len(made.live.requests[0].prompt)
        assert answer.total_duration >= answer.eval_duration >= 2_000_000 * (len(made.ids) - 2)
        assert answer.load_duration >= 0 and answer.prompt_eval_duration > 0
    cut = client.generate("scripted", "x", options={"num_predict": 3})
    assert (cut.done_reason, cut.eval_count) == ("length", 3)


def test_options(scripted: Any, contract: Contract) -> None:
    made, client, _ = scripted
    options = {
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 7,
        "stop": ["IV"],
        "num_predict": 50,
        "num_ctx": 100,
    }
    assert client.generate("scripted", "x", options=options).response == TEXT.partition("IV")[0]
    request = made.live.requests[-1]
    assert (request.temperature, request.top_p, request.seed, request.max_tokens) == (0.5, 0.25, 7, 50)
    client.generate("scripted", "x", options={"num_predict": -1, "num_ctx": 100})
    assert made.live.requests[-1].max_tokens == 100 - len(made.live.requests[-1].prompt)
    client.generate("scripted", "a b", raw=True)
    assert list(made.live.requests[-1].prompt) == [contract.bos_id, *contract.tokens_of("a b")]
    told = client.generate("scripted", "x", logprobs=True, top_logprobs=2)
    assert len(told.logprobs) == len(made.ids) + 1 and len(told.logprobs[0].top_logprobs) == 2


def test_answers_are_held_to_a_schema() -> None:
    schema = {"type": "object", "properties": {"stage": {"enum": ["I", "II"]}}, "required": ["stage"]}
    schema["additionalProperties"] = False
    with served_at(starter_served()) as url, ollama.Client(url) as client:
        made = client.chat("starter", [{"role": "user", "content": "x"}], format=schema)
        assert json.loads(made.message.content or "")["stage"] in ("I", "II")
        some = client.generate("starter", "x", format="json", options={"num_predict": 5})
        assert some.response.lstrip().startswith("{")
        with pytest.raises(ollama.ResponseError) as caught:
            client.generate("starter", "x", format={"type": "object", "properties": {"a": {"pattern": "(["}}})
        assert caught.value.status_code == 400


def test_what_is_known_of_models(scripted: Any, contract: Contract) -> None:
    _, client, url = scripted
    (model,) = client.list().models
    assert model.model == "scripted" and model.details is not None and model.details.format == "gguf"
    shown = client.show("scripted:latest")
    assert shown.template == contract.template and "temperature 0" in (shown.parameters or "")
    assert httpx.post(f"{url}/api/show", json={"name": "scripted"}, timeout=100).status_code == 200
    assert httpx.get(f"{url}/api/version", timeout=100).json() == {"version": __version__}
    assert client.generate("scripted").done_reason == client.chat("scripted", []).done_reason == "load"


@pytest.mark.parametrize(
    "key, value",
    [
        ("options", {"top_k": 40, "temperature": 1}),
        ("options", {"repeat_penalty": 1.1}), ("options", {"mirostat": 1}),
        ("options", {"min_p": 0.1, "temperature": 1}),
        ("options", {"num_ctx": 10**6}), ("options", {"num_predict": -3}),
        ("options", {"temperature": "hot"}), ("options", {"top_p": 0}), ("options", {"stop": [""]}),
        ("options", {"unheard": 1}), ("options", []), ("suffix", "x"), ("images", ["aGk="]),
        ("template", "{{ .Prompt }}"),
        ("context", [1, 2]), ("think", True), ("format", "yaml"), ("format", {"type": "array"}), ("tools", [{}]),
        ("prompt", "end<|eot_id|>"), ("prompt", 5), ("model", 5), ("model", None), ("stream", 1), ("top_logprobs", 3),
    ],
)  # fmt: skip
def test_what_cant_be_done_is_refused_by_name(scripted: Any, key: str, value: Any) -> None:
    made, _, url = scripted
    answer = httpx.post(
        f"{url}/api/generate", json={"model": "scripted", "prompt": "x", key: value}, timeout=100
    )
    assert answer.status_code == 400 and set(answer.json()) == {"error"}, answer.text
    assert not made.live.requests


def test_what_clients_send_beside_it_is_taken(scripted: Any) -> None:
    _, client, _ = scripted
    options = {
        "num_thread": 4,
        "num_gpu": 1,
        "top_k": 0,
        "repeat_penalty": 1.0,
        "num_keep": 5,
        "use_mmap": True,
    }
    assert client.generate("scripted", "x", keep_alive="5m", think=False, options=options).response == TEXT
    turns = [
        {"role": "assistant", "content": "y", "tool_calls": []},
        {"role": "user", "content": "x", "images": []},
    ]
    assert client.chat("scripted", turns, tools=[]).message.content == TEXT


@pytest.mark.parametrize("cold, status", [({}, 200), ({"temperature": 0}, 200), ({"temperature": 0.8}, 400)])
def test_options_of_draws_are_taken_where_nothing_is_drawn(
    scripted: Any, cold: dict[str, Any], status: int
) -> None:
    """Ollama's own values, as clients send them: they can't change which token is the likeliest."""
    _, _, url = scripted
    draws = {"top_k": 40, "min_p": 0.05, "typical_p": 0.7, "tfs_z": 0.9}
    answer = httpx.post(
        f"{url}/api/chat",
        json={"model": "scripted", "messages": [{"role": "user", "content": "x"}]}
        | {"options": draws | cold},
        timeout=100,
    )
    assert answer.status_code == status, answer.text
    others = {
        "repeat_last_n": 64,
        "mirostat": 0,
        "mirostat_eta": 0.1,
        "mirostat_tau": 5,
        "penalize_newline": True,
    }
    assert (
        httpx.post(
            f"{url}/api/chat",
            json={"model": "scripted", "messages": [{"role": "user", "content": "x"}]}
            | {"options": others | cold},
            timeout=100,
        ).status_code
        == 200
    )


def test_ollamas_own_program_asks_first_whether_a_server_is_there(scripted: Any) -> None:
    _, _, url = scripted
    for path in ("/", "/api/version", "/api/tags"):
        assert httpx.head(url + path).status_code == 200 and httpx.head(url + path).content == b""


def test_errors_have_ollamas_shape(scripted: Any) -> None:
    made, client, url = scripted
    with pytest.raises(ollama.ResponseError) as unknown:
        client.generate("other", "x")
    assert unknown.value.status_code == 404
    for method, path, status in (
        ("GET", "/api/none", 404),
        ("POST", "/api/pull", 404),
        ("GET", "/api/chat", 405),
    ):
        answer = httpx.request(method, url + path, json={} if method == "POST" else None, timeout=100)
        assert answer.status_code == status and set(answer.json()) == {"error"}
    made.live.fail = RuntimeError("a secret place")
    with pytest.raises(ollama.ResponseError, match="model failed") as failed:
        client.generate("scripted", "x")
    assert failed.value.status_code == 500 and "secret" not in str(failed.value)
    with pytest.raises(ollama.ResponseError, match="model failed"):
        list(client.generate("scripted", "x", stream=True))
