"""The live generator on a card: graphs of all kinds, turns that overlap, and adapters give what each alone gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from held_answers import NASTY, random_model
from live_answers import Ear, alone, differs, write
from test_live import ask
from test_live_exact import WAYS, requests
from test_lora_bank import TUNES, folders  # noqa: F401  # a fixture
from test_slots import STOPS, model_of
from tiny_models import tiny
from tiny_run import write_byte_tokenizer

from tunesmith.contract import Contract
from tunesmith.errors import OutOfRoom
from tunesmith.generate.live import session as live_session
from tunesmith.generate.live.decoder import LiveDecoder
from tunesmith.generate.live.engine import LiveSlots
from tunesmith.model.adapter import load_adapter
from tunesmith.model.attention import register
from tunesmith.model.lora_bank import LoraBank

pytestmark = pytest.mark.gpu


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    return Contract.make(write_byte_tokenizer(tmp_path / "tokenizer"), template="llama3")


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("ways", [[{}], [{}, {"temperature": 0.9}], WAYS], ids=["greedy", "drawn", "all"])
def test_answers_are_those_of_each_alone(
    kind: str, ways: list[dict[str, object]], contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind).cuda()
    asked = [dataclasses.replace(one, max_tokens=one.max_tokens * 3) for one in requests(ways)]
    replayed: list[int] = []
    original = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (replayed.append(1), original(self))[1])
    for budget in (2048, 7):
        monkeypatch.setattr(live_session, "PREFILL_TOKENS", budget)
        for slots in (1, 5, 8):
            found = write(LiveSlots(model, contract, slots=slots, context=256), asked)
            wrong = [
                said for a, b in zip(found, asked, strict=True) if (said := differs(a, alone(model, b), b))
            ]
            assert len(wrong) <= len(asked) // 20, wrong  # near ties fall either way
    assert len(replayed) > 100


def test_graphs_follow_what_is_written_into_the_slots(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama").cuda()
    asked = [  # a seed each: with one for all, every slot would hold the same key
        dataclasses.replace(one, max_tokens=40, seed=n)
        for n, one in enumerate(requests([{"temperature": 1.5, "top_p": 0.9}]))
    ]

    def wrong() -> int:
        found = write(LiveSlots(model, contract, slots=6, context=256), asked)
        return sum(bool(differs(a, alone(model, b), b)) for a, b in zip(found, asked, strict=True))

    assert wrong() <= 1
    rows = LiveDecoder.rows
    monkeypatch.setattr(LiveDecoder, "rows", lambda self: rows(self)[:3] + rows(self)[4:])  # keys stay
    assert wrong() > 5


def test_adapters_share_a_graph(contract: Contract, folders: dict[str, Path]) -> None:  # noqa: F811
    names = ["", *TUNES]
    asked = [
        dataclasses.replace(one, adapter=names[n % 4], max_tokens=30) for n, one in enumerate(requests([{}]))
    ]
    model = tiny(attention=register()).cuda()
    found = write(LiveSlots(model, contract, slots=8, context=256, adapters=LoraBank(model, folders)), asked)
    wrong = 0
    for name in names:
        single = tiny(attention=register()).cuda()
        if name:
            load_adapter(single, folders[name])
        for heard, one in zip(found, asked, strict=True):
            if one.adapter == name:
                wrong += bool(differs(heard, alone(single, one), one))
    assert wrong <= 1


def test_schemas_beside_free_answers(contract: Contract) -> None:
    model = random_model(1).cuda()
    prompt = contract.tokens_of("report")
    asked = [
        ask(prompt, 120, stop_ids=contract.stop_ids, temperature=1.0, seed=n, schema=NASTY if n % 2 else None)
        for n in range(12)
    ]
    live = LiveSlots(model, contract, slots=6, context=256)
    guide = live._guides.of(NASTY, contract.stop_ids)
    found = write(live, asked)
    wrong = [
        said
        for a, b in zip(found, asked, strict=True)
        if (said := differs(a, alone(model, b, guide if b.schema else None), b))
    ]
    assert len(wrong) <= 1, wrong


def test_auto_takes_what_is_free_and_no_memory_is_told(contract: Contract) -> None:
    model = model_of("llama", torch.bfloat16).cuda()
    assert LiveSlots(model, contract, context=256).slots == 64
    torch.cuda.empty_cache()
    model.config.max_position_embeddings = 2**40
    with pytest.raises(OutOfRoom, match="no memory for"):
        LiveSlots(model, contract, slots=4096, context=2**24)


def test_cancelling_between_turns_that_overlap(contract: Contract) -> None:
    model = model_of("llama").cuda()
    live, ear = LiveSlots(model, contract, slots=4, context=256), Ear()
    live.start(ear)
    asked = [ask([5, 6 + n], 200, stop_ids=STOPS if n % 2 else frozenset()) for n in range(16)]
    for n, one in enumerate(asked):
        live.submit(n, one)
    for n in range(0, 16, 3):
        ear.wait(n, tokens=1 + n)
        live.cancel(n)
    ear.wait(*range(16))
    live.close()
    wrong = sum(bool(differs(ear.heard[n], alone(model, asked[n]), asked[n])) for n in range(16) if n % 3)
    assert wrong <= 1
