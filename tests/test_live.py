"""The live generator: its thread, its queue, prompts that are told, schemas that are kept."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from held_answers import NASTY, random_model
from jsonschema import Draft202012Validator
from live_answers import Ear, alone, differs, write
from test_live_exact import requests
from test_slots import model_of, prompts
from tiny_run import write_byte_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.contract import Contract
from tunesmith.errors import RecipeError
from tunesmith.generate.live import session as live_session
from tunesmith.generate.live.decoder import LiveDecoder
from tunesmith.generate.live.engine import LiveSlots
from tunesmith.generate.protocol import LiveGenerator, LiveRequest
from tunesmith.model.attention import ATTENTION


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    return Contract.make(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")), template="llama3")


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return model_of("llama")


Maker = Callable[..., LiveSlots]


@pytest.fixture
def make(llama: PreTrainedModel, contract: Contract) -> Iterator[Maker]:
    """Live generators that are closed in the end, and have ended their threads."""
    made: list[LiveSlots] = []

    def one(model: PreTrainedModel | None = None, **how: Any) -> LiveSlots:
        made.append(LiveSlots(model or llama, contract, **{"slots": 3, "context": 128} | how))
        return made[-1]

    yield one
    for live in made:
        live.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "live"]


def ask(prompt: list[int] | None = None, max_tokens: int = 8, **more: Any) -> LiveRequest:
    return LiveRequest(prompt or [5, 6, 7], max_tokens, more.pop("stop_ids", frozenset()), **more)


# ---- answers


def test_it_is_a_live_generator_and_answers_all(make: Maker, llama: PreTrainedModel) -> None:
    live: LiveGenerator = make()
    asked = requests()
    for one, heard in zip(asked, write(live, asked), strict=True):
        assert not differs(heard, alone(llama, one), one)
    assert live.load().tokens == sum(len(alone(llama, one).tokens) for one in asked)
    assert live.room == 128 and live.slots == 3 and live.adapters == ()


def test_clients_of_many_threads_come_and_go(make: Maker, llama: PreTrainedModel) -> None:
    live, ear, asked = make(slots=5), Ear(), requests()
    live.start(ear)
    draw = random.Random(4)
    waits = [[draw.random() / 200 for _ in range(40)] for _ in range(6)]
    leaves = [[draw.random() < 0.15 for _ in range(40)] for _ in range(6)]

    def client(number: int) -> None:
        for turn in range(40):
            ticket = number * 1000 + turn
            live.submit(ticket, asked[(number * 7 + turn) % len(asked)])
            if not leaves[number][turn] or turn % 2:  # some leave at once
                time.sleep(waits[number][turn])
            if leaves[number][turn]:
                live.cancel(ticket)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tickets = [number * 1000 + turn for number in range(6) for turn in range(40)]
    ear.wait(*tickets)
    cancelled = 0
    for ticket in tickets:
        request, heard = asked[(ticket // 1000 * 7 + ticket % 1000) % len(asked)], ear.heard[ticket]
        if heard.end == "cancelled":
            cancelled += 1
        else:
            assert not differs(heard, alone(llama, request), request)
    assert 5 < cancelled <= sum(map(sum, leaves))
    assert live.load()[:2] == (0, 0)


def test_first_tokens_come_before_an_earlier_answer_ends(make: Maker) -> None:
    live, ear = make(slots=2), Ear()
    ear.stand(1, 3)
    live.start(ear)
    live.submit(1, ask(max_tokens=120))
    ear.wait(1, tokens=3)
    live.submit(2, ask([9, 8], max_tokens=2))
    live.submit(3, ask([9, 9], max_tokens=2))
    ear.go()
    ear.wait(1, 2, 3)
    order = [event.ticket for turn in ear.turns for event in turn if event.end]
    assert order == [2, 3, 1]
    assert any({event.ticket for event in turn} == {1, 2} for turn in ear.turns)  # one batch


def test_a_long_prompt_stalls_nobody(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_session, "PREFILL_TOKENS_ON_CPU", 8)
    live, ear = make(), Ear()
    seen: list[int] = []
    original = LiveDecoder.logits

    def counting(self: Any, ids: Tensor, *others: Any) -> Tensor:
        seen.append(len(ids))
        return original(self, ids, *others)

    monkeypatch.setattr(LiveDecoder, "logits", counting)
    ear.stand(1, 2)
    live.start(ear)
    live.submit(1, ask(max_tokens=90))
    ear.wait(1, tokens=2)
    live.submit(2, ask(list(range(3, 83)), max_tokens=1))
    live.submit(3, ask([4] * 7, max_tokens=3))
    ear.go()
    ear.wait(1, 2, 3)
    assert max(seen) <= 8 and seen.count(8) == 10
    ends = [event.ticket for turn in ear.turns for event in turn if event.end]
    assert ends == [3, 2, 1]  # the short one did not wait for the long one
    told = [sum(event.ticket == 1 for event in turn) for turn in ear.turns]
    assert max(told[1:-1]) <= 1 and sum(told) == 90  # and the first got a token at every turn


# ---- what a prompt's tokens were worth


@pytest.mark.parametrize("budget", [7, 512])
def test_prompt_logprobs_are_those_of_a_full_forward(
    budget: int, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_session, "PREFILL_TOKENS_ON_CPU", budget)
    monkeypatch.setattr("tunesmith.generate.live.decoder._ROWS", 4)
    model = model_of("llama", torch.float64)
    asked = [
        ask(prompt, number % 3, prompt_logprobs=True, top=number % 4)
        for number, prompt in enumerate([*prompts(), *prompts()])
    ]
    found = write(make(model), asked)
    model.set_attn_implementation("sdpa")
    worst = 0.0
    for request, heard in zip(asked, found, strict=True):
        assert heard.end == "length" and len(heard.tokens) == request.max_tokens
        exact = model(torch.tensor([request.prompt]), use_cache=False).logits[0].log_softmax(-1)
        assert [token.id for token in heard.prompt] == request.prompt
        assert math.isnan(heard.prompt[0].logprob) and heard.prompt[0].top == ()
        for place, token in enumerate(heard.prompt[1:]):
            worst = max(worst, abs(token.logprob - exact[place, token.id].item()))
            values, ids = exact[place].topk(request.top) if request.top else ([], [])
            assert [one for one, _ in token.top] == [int(one) for one in ids]
            for (_, said), right in zip(token.top, values, strict=True):
                worst = max(worst, abs(said - right.item()))
        for token in heard.tokens[:1]:
            values, ids = exact[-1].topk(max(1, request.top))
            assert token.id == ids[0] and [one for one, _ in token.top] == ids[: request.top].tolist()
            worst = max([worst, *(abs(a - b.item()) for (_, a), b in zip(token.top, values, strict=False))])
    model.set_attn_implementation(ATTENTION)
    assert worst < 1e-10


def test_nothing_to_write_and_nothing_to_tell_is_an_answer_too(make: Maker) -> None:
    (heard,) = write(make(), [ask(max_tokens=0)])
    assert heard.end == "length" and not heard.tokens and not heard.prompt


# ---- schemas


def test_answers_are_held_to_the_schema_of_their_request(make: Maker, contract: Contract) -> None:
    live = make(random_model(1), context=600)
    prompt = contract.tokens_of("report")
    asked = [
        ask(
            prompt,
            300,
            stop_ids=contract.stop_ids,
            temperature=1.0,
            seed=seed,
            schema=NASTY if seed % 2 else None,
        )
        for seed in range(12)
    ]
    found = write(live, asked)
    whole = [
        heard for request, heard in zip(asked, found, strict=True) if request.schema and heard.end == "stop"
    ]
    assert len(whole) >= 2 and len(live._guides._kept) == 1
    for heard in whole:
        Draft202012Validator(NASTY).validate(json.loads(contract.decode(heard.ids)))
    loose = [
        contract.decode(heard.ids) for request, heard in zip(asked, found, strict=True) if not request.schema
    ]
    assert not any(text.startswith("{") for text in loose)


def test_a_grammar_that_breaks_fails_its_own_answer_alone(
    make: Maker, llama: PreTrainedModel, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(1)
    live, ear = make(model, context=600), Ear()
    prompt = contract.tokens_of("report")
    asked = [
        ask(prompt, 60, stop_ids=contract.stop_ids, temperature=1.0, seed=n, schema=NASTY) for n in range(3)
    ]
    guide = live._guides.of(NASTY, contract.stop_ids)
    hold, calls = guide.hold, [0]

    def breaks(states: Any, logits: Tensor) -> Tensor:
        calls[0] += len(states)
        if calls[0] > 50 and any(state is broken[0] for state in states):
            raise RecipeError("too many items")
        return hold(states, logits)

    begin, broken = guide.begin, []
    monkeypatch.setattr(guide, "begin", lambda: broken.append(begin()) or broken[-1])
    monkeypatch.setattr(guide, "hold", breaks)
    live.start(ear)
    for n, one in enumerate(asked):
        live.submit(n, one)
    ear.wait(0, 1, 2)
    assert [ear.heard[n].end == "failed" for n in range(3)] == [True, False, False]
    assert isinstance(ear.heard[0].error, RecipeError) and len(ear.heard[0].tokens) > 5
    monkeypatch.undo()
    for n in (1, 2):
        assert not differs(ear.heard[n], alone(model, asked[n], guide), asked[n])
