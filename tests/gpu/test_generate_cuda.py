"""The generator on a card: its kernel and its graphs give what plain steps give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_slots import GREEDY, KINDS, SAMPLED, STOPS, draws, in_order, model_of, prompts

from tunesmith.generate import decoder
from tunesmith.generate.protocol import Decoding, Generated
from tunesmith.generate.slots import SlotGenerator

pytestmark = pytest.mark.gpu
LONG = Decoding(max_tokens=40)


def answers(model: Any, decoding: Decoding = GREEDY, **how: Any) -> list[Generated]:
    return in_order(SlotGenerator(model, **how).generate(prompts(), decoding, STOPS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_answers_as_a_cpu_does(kind: str) -> None:
    model = model_of(kind)
    for decoding in (GREEDY, SAMPLED):
        told = answers(model.cpu(), decoding, slots=4)
        found = answers(model.cuda(), decoding, slots=4)
        assert draws(found) == draws(told)
        assert max(abs(a.logprob - b.logprob) for a, b in zip(found, told, strict=True)) < 1e-3


def test_graphs_are_replayed_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama").cuda()
    replayed: list[int] = []
    original = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (replayed.append(1), original(self))[1])
    with_graphs = {n: answers(model, LONG, slots=n) for n in (1, 3, 8)}
    assert len(replayed) > 100
    monkeypatch.setattr(decoder.Decoder, "_can_replay", lambda self: False)
    before = len(replayed)
    for count, found in with_graphs.items():
        assert draws(found) == draws(answers(model, LONG, slots=count))
    assert len(replayed) == before
    # a graph that reads a stale token would be seen
    monkeypatch.undo()
    kept = decoder.Decoder.choose

    def forgets(self: Any, logits: Any, first: int, behind: int) -> None:
        last = self.last[first:behind].clone()
        kept(self, logits, first, behind)
        if torch.cuda.is_current_stream_capturing():
            self.last[first:behind] = last

    monkeypatch.setattr(decoder.Decoder, "choose", forgets)
    assert draws(answers(model, LONG, slots=8)) != draws(with_graphs[8])


def test_slots_by_the_card() -> None:
    model = model_of("llama", torch.bfloat16).cuda()
    few = SlotGenerator(model, memory=0.25)
    assert draws(in_order(few.generate(prompts(), GREEDY, STOPS)))[0][2]
