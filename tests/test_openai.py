"""OpenAI's API by its official client, against a real server: the starter, and a generator that writes on order."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from scripted_openai import TEXT, chat, contract, joined, scripted
from served_models import ScriptedLive, served_at, starter_contract, starter_served

from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.example import Message
from tunesmith.generate.protocol import Decoding
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.load import load_model
from tunesmith.recipe import Model
from tunesmith.serve.protocol import Served
from tunesmith.starter.reports import rows

SCHEMA = {
    "type": "object",
    "properties": {"stage": {"enum": ["I", "II"]}, "size": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["stage", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def starter() -> Iterator[tuple[Served, str]]:
    """The starter behind a server."""
    served = starter_served(slots=16)
    with served_at(served) as url:
        yield served, url


@pytest.fixture(scope="module")
def client(starter: tuple[Served, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{starter[1]}/v1", api_key="none", max_retries=0) as made:
        yield made


def asked(number: int) -> str:
    row = rows("train", 20)[number]
    return f"{row['instruction']}\n\n{row['input']}"


# ---- the starter: what is served is what the generator says


def _alone(questions: Sequence[str], most: int) -> list[tuple[str, int, str]]:
    """Text, tokens and end of each answer, by the generator that evaluation uses, one at a time."""
    model = load_model(resolve(Model(base="starter")), dtype="float32")
    contract, made = starter_contract(), []
    for question in questions:
        prompt = contract.prompt_ids([Message("user", question)])
        (one,) = SlotGenerator(model, slots=1).generate([prompt], Decoding(most), contract.stop_ids)
        made.append(
            (contract.decode(one.ids), len(one.ids) + one.stopped, "stop" if one.stopped else "length")
        )
    return made


def test_sixteen_at_once_streamed_and_whole_are_what_the_generator_writes_alone(
    client: openai.OpenAI,
) -> None:
    questions = [asked(n) for n in range(16)]
    expected = _alone(questions, 24)
    assert len({text for text, _, _ in expected}) > 8, "different questions, different answers"

    def ask(number: int) -> tuple[tuple[str, int, str], tuple[str, int, str]]:
        about: dict[str, Any] = {
            "model": "starter",
            "messages": [{"role": "user", "content": questions[number]}],
            "max_tokens": 24,
            "temperature": 0,
        }
        whole = client.chat.completions.create(**about)
        chunks: list[ChatCompletionChunk] = list(
            client.chat.completions.create(**about, stream=True, stream_options={"include_usage": True})
        )
        assert whole.usage is not None and chunks[-1].usage is not None and not chunks[-1].choices
        (end,) = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
        choice = whole.choices[0]
        return (
            (choice.message.content or "", whole.usage.completion_tokens, choice.finish_reason),
            (joined(chunks), chunks[-1].usage.completion_tokens, end),
        )

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    for number, (whole, streamed) in enumerate(answers):
        assert whole == streamed == expected[number]


def test_answers_are_held_to_a_schema(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA, "strict": True}}
    about: dict[str, Any] = {"model": "starter", "messages": [{"role": "user", "content": asked(0)}]}
    made = client.chat.completions.create(
        **about, response_format=form, max_tokens=60, temperature=1.0, seed=3
    )
    answer = json.loads(made.choices[0].message.content or "")
    assert answer["stage"] in ("I", "II") and 0 <= answer["size"] <= 9
    some = client.chat.completions.create(**about, response_format={"type": "json_object"}, max_tokens=60)
    assert (some.choices[0].message.content or "").lstrip().startswith("{")
    parsed = client.chat.completions.create(**about, response_format={"type": "text"}, max_tokens=3)
    assert parsed.usage is not None and parsed.usage.completion_tokens == 3


@pytest.mark.parametrize(
    "schema",
    [{"type": "array"}, {"type": "wrong"}, {"properties": {"a": {"$ref": "#/nowhere"}}, "type": "object"},
     {"type": "object", "properties": {"a": {"$ref": "http://169.254.169.254/x"}}},
     {"type": "object", "properties": {"a": {"type": "string", "pattern": "(["}}}],
)  # fmt: skip
def test_unsound_schemas_are_400(client: openai.OpenAI, schema: dict[str, Any]) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="starter", messages=[{"role": "user", "content": "x"}], response_format=form
        )
    assert str(caught.value.param).startswith("response_format")


def test_seeds_draw_the_same_answer_again_and_n_draws_several(client: openai.OpenAI) -> None:
    about: dict[str, Any] = {"model": "starter", "messages": [{"role": "user", "content": asked(1)}]}
    about |= {"max_tokens": 12, "temperature": 1.5, "n": 4}
    texts = [
        [choice.message.content for choice in client.chat.completions.create(**about, seed=seed).choices]
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) > 1
    chunks = list(client.chat.completions.create(**about, seed=5, stream=True))
    assert [joined(chunks, index) for index in range(4)] == texts[0]
    free = [client.chat.completions.create(**about).choices[0].message.content for _ in range(3)]
    assert len(set(free)) > 1, "without a seed, another answer every time"


def test_log_probabilities_of_a_prompt_and_its_answer_are_the_models(
    starter: tuple[Served, str], client: openai.OpenAI
) -> None:
    """`echo` with `logprobs`, as lm-eval's loglikelihood asks: against a full forward pass."""
    import torch

    ids = [
        starter[0].contract.bos_id or 0,
        *starter[0].contract.tokens_of("Findings: 3 cm mass in the left lung"),
    ]
    made = client.completions.create(
        model="starter", prompt=ids, max_tokens=1, logprobs=2, echo=True, temperature=0, seed=1
    )
    told = made.choices[0].logprobs
    assert told is not None and told.tokens and told.token_logprobs and told.top_logprobs and told.text_offset
    model = load_model(resolve(Model(base="starter")), dtype="float32")
    model.set_attn_implementation("sdpa")
    logp = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    expected = logp[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert told.token_logprobs[0] is None and len(told.tokens) == len(ids) + 1
    assert told.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    assert told.token_logprobs[-1] == pytest.approx(logp[-1].max().item(), abs=1e-4)
    for place, top in enumerate(told.top_logprobs[1:], 1):
        assert top is not None and told.tokens[place] in top and len(top) in (2, 3)
        assert max(top.values()) == pytest.approx(logp[place - 1].max().item(), abs=1e-4)
    assert "".join(told.tokens[:-1]) == "<|begin_of_text|>Findings: 3 cm mass in the left lung"
    assert told.text_offset[1] == len("<|begin_of_text|>")


# ---- shapes, with answers that are known


def test_a_chat_completion(scripted: Any, contract: Contract) -> None:
    made, client, _ = scripted
    made.ids = contract.tokens_of(TEXT)
    answer = chat(client)
    prompt = contract.prompt_ids([Message("user", TEXT)])
    assert list(made.live.requests[0].prompt) == prompt
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == (
        "chat.completion",
        "scripted",
        "stop",
    )
    assert (answer.choices[0].message.content, answer.choices[0].message.role) == (TEXT, "assistant")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), len(made.ids) + 1)
    assert answer.usage.total_tokens == len(prompt) + len(made.ids) + 1
    assert chat(client, max_tokens=3).choices[0].finish_reason == "length"
    assert chat(client, max_tokens=None, max_completion_tokens=4).usage.completion_tokens == 4
    assert answer.choices[0].logprobs is None and answer.id.startswith("chatcmpl-")


def test_chunks(scripted: Any, contract: Contract) -> None:
    made, client, _ = scripted
    made.live.seconds, made.ids = 0.03, contract.tokens_of(TEXT)  # parts that come together are one chunk
    chunks = list(chat(client, stream=True))
    assert joined(chunks) == TEXT and len(chunks) > 8
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop" and chunks[-1].usage is None
    assert not any("\ufffd" in (c.choices[0].delta.content or "") for c in chunks)
    assert len({c.id for c in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"
    chunks = list(chat(client, stream=True, n=2, stream_options={"include_usage": True}))
    assert joined(chunks, 0) == joined(chunks, 1) == TEXT
    assert chunks[-1].usage.completion_tokens == 2 * (len(made.ids) + 1) and not chunks[-1].choices


def test_server_sent_events_on_the_wire(scripted: Any, contract: Contract) -> None:
    made, _, url = scripted
    made.ids = contract.tokens_of("line\u2028break\n\ndata: x")
    about = {"model": "scripted", "prompt": "x", "stream": True, "stream_options": {"include_usage": True}}
    answer = httpx.post(f"{url}/v1/completions", json=about, timeout=100)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(one.startswith("data: ") for one in events[:-1])
    told = [json.loads(one[6:]) for one in events[:-2]]
    assert "".join(one["choices"][0]["text"] for one in told[:-1]) == "line\u2028break\n\ndata: x"
    assert all(one["usage"] is None for one in told[:-1]) and told[-1]["usage"]["prompt_tokens"] == 2


def test_stop_strings(scripted: Any, contract: Contract) -> None:
    made, client, _ = scripted
    made.ids = contract.tokens_of("one two three four five")
    for stop in ("thr", ["zzz", "hree", "three"]):
        whole = chat(client, stop=stop)
        chunks = list(chat(client, stop=stop, stream=True))
        expected = "one two " + ("t" if isinstance(stop, list) and "three" not in stop else "")
        assert whole.choices[0].message.content == joined(chunks) == expected
        assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"
        assert whole.usage.completion_tokens <= len(made.ids)


def test_log_probabilities_of_a_chat(scripted: Any, contract: Contract) -> None:
    made, client, _ = scripted
    made.ids = contract.tokens_of(TEXT)
    told = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(told) == len(made.ids) + 1
    assert bytes(byte for one in told for byte in one.bytes or []).decode() == TEXT
    assert told[-1].token == "<|eot_id|>" and told[-1].bytes is None
    for place, (one, number) in enumerate(zip(told, made.ids, strict=False)):
        expected = ScriptedLive.told(number, place, 3)
        assert one.logprob == pytest.approx(expected.logprob)
        assert [top.logprob for top in one.top_logprobs] == pytest.approx([lp for _, lp in expected.top])
    chunks = list(chat(client, logprobs=True, stream=True))
    streamed = [t for c in chunks for one in c.choices if one.logprobs for t in one.logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in told]
    assert not streamed[0].top_logprobs


def test_completions_of_text_ids_and_lists(scripted: Any, contract: Contract) -> None:
    made, client, _ = scripted
    ids = contract.tokens_of(TEXT)

    def texts(prompt: Any, **about: Any) -> list[str]:
        answer = client.completions.create(model="scripted", prompt=prompt, max_tokens=90, **about)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    assert texts(TEXT) == [TEXT]  # the generator echoes it; BOS went before it
    assert texts([TEXT, "b c"], n=2) == [TEXT, TEXT, "b c", "b c"]
    assert texts(ids) == [contract.decode(ids[1:])]
    assert texts([ids, [1, *ids]]) == [contract.decode(ids[1:]), TEXT]
    assert list(made.live.requests[0].prompt) == [contract.bos_id, *ids]
    assert texts("p q", echo=True) == ["p qp q"]
    nothing = client.completions.create(model="scripted", prompt="p q", echo=True, max_tokens=0, logprobs=1)
    assert (nothing.choices[0].text, nothing.choices[0].finish_reason) == ("p q", "length")
    assert nothing.usage.completion_tokens == 0 and nothing.choices[0].logprobs.text_offset[:2] == [0, 0]
    chunks = list(
        client.completions.create(model="scripted", prompt="p q", echo=True, stream=True, max_tokens=9)
    )
    assert "".join(c.choices[0].text for c in chunks) == "p qp q"


def test_parts_of_characters_have_names_of_their_own(scripted: Any, contract: Contract) -> None:
    made, client, _ = scripted
    made.ids = contract.tokens_of("😀")
    assert len(made.ids) > 1
    told = client.completions.create(model="scripted", prompt="x", logprobs=0).choices[0].logprobs
    assert all(name.startswith("bytes:\\x") for name in told.tokens[:-1])
    assert told.top_logprobs[0] == {told.tokens[0]: pytest.approx(told.token_logprobs[0])}


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("starter", "model", "tunesmith")
    assert client.models.retrieve("starter").id == "starter"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no/such")
    assert caught.value.code == "model_not_found"
