"""Decoding over the slots' cache against a full forward pass, what all prompts begin with, and mutants."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from test_slots import GREEDY, KINDS, STOPS, agrees, answer_all, draws, in_order, model_of, prompts, referee
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.generate import decoder, session, slots
from tunesmith.generate.cache import Decode, Prefill, SlotCache
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.attention import ATTENTION, Packed, head_shape


def decoded_logits(model: PreTrainedModel, wrong: int = 0) -> float:
    """Largest distance of logits from a full forward: prompts of 5 to 8 tokens into slots, then a token at a time."""
    torch.manual_seed(4)
    ids = torch.randint(3, 96, (3, 24))
    starts = [8, 5, 6]
    key_heads, head_dim = head_shape(model.config)
    cache = SlotCache(2, 3, key_heads, 32, head_dim, torch.float64, torch.device("cpu"))
    edges = torch.tensor([0, *itertools.accumulate(starts)], dtype=torch.int32)
    places = torch.cat([torch.arange(start) for start in starts])
    of = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor(starts))
    stream = torch.cat([row[:start] for row, start in zip(ids, starts, strict=True)])

    def call(tokens: Tensor, position: Tensor, attention: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(
                input_ids=tokens[None], position_ids=position[None], use_cache=False, attention=attention
            ).logits[0]
        return logits

    prefill = call(stream, places, Prefill(cache, Packed(edges, 8), of, places))
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        exact = model(input_ids=ids, use_cache=False).logits
    model.set_attn_implementation(ATTENTION)
    worst = float((prefill - exact[of, places]).abs().max())
    position = torch.tensor(starts)
    for _ in range(16):
        attention = Decode(cache, position + wrong, (position + wrong).tolist())
        logits = call(ids[torch.arange(3), position], position + wrong, attention)
        worst = max(worst, float((logits - exact[torch.arange(3), position]).abs().max()))
        position = position + 1
    return worst


@pytest.mark.parametrize("kind", KINDS)
def test_decode_logits_equal_a_full_forward(kind: str) -> None:
    model = model_of(kind, torch.float64)
    assert decoded_logits(model) < 1e-10
    assert decoded_logits(model, wrong=1) > 1e-3  # the same check sees a position that is one off


def _off_by_one(cache: SlotCache, positions: Tensor, lengths: Sequence[int]) -> Decode:
    return Decode(cache, positions + 1, [length + 1 for length in lengths])


def _too_short(cache: SlotCache, positions: Tensor, lengths: Sequence[int]) -> Decode:
    return Decode(cache, positions, [length - 1 for length in lengths])


@dataclasses.dataclass(frozen=True, eq=False)
class _ForgetsTheBeginning(Prefill):
    """A prompt whose shared beginning is left out and not looked at."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        self.cache.write(layer, self.slots_T, self.positions_T, k, v)
        return self.packed.attend(layer, q, k, v, scale, window)


@dataclasses.dataclass(frozen=True, eq=False)
class _KeepsEarlierKeys(Prefill):
    """A slot that is not filled anew when its next prompt moves in."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        return self.packed.attend(layer, q, k, v, scale, window)


@pytest.mark.parametrize(
    "name, mutant",
    [
        ("Decode", _off_by_one),
        ("Decode", _too_short),
        ("Prefill", _KeepsEarlierKeys),
    ],
)
def test_mutants_of_the_cache_are_caught(name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    expected = referee(model)
    monkeypatch.setattr(session if name == "Prefill" else decoder, name, mutant)
    assert not agrees(answer_all(model), expected)


def test_mutants_of_the_slots_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    expected = referee(model)
    with monkeypatch.context() as patch:  # the answer moves to another slot, its keys don't
        patch.setattr(SlotCache, "move", lambda *_: None)
        assert not agrees(answer_all(model), expected)
    original = decoder.Decoder.choose

    def keeps_position(self: Any, logits: Tensor, first: int, behind: int) -> None:
        if int(self.count[first]) == 0:  # just admitted
            self.position[first:behind] += self.count.max()
        original(self, logits, first, behind)

    with monkeypatch.context() as patch:  # the slot's position is not set back for its next answer
        patch.setattr(decoder.Decoder, "choose", keeps_position)
        assert not agrees(answer_all(model), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_all_prompts_begin_with_is_computed_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(kind, torch.float64)
    head = torch.randint(3, 96, (21,), generator=torch.Generator().manual_seed(8)).tolist()
    begun = [head + prompt for prompt in prompts()] + [head]
    seen: list[int] = []
    original = decoder.Decoder.logits

    def counting(self: Any, ids: Tensor, *others: Any) -> Tensor:
        seen.append(len(ids))
        return original(self, ids, *others)

    monkeypatch.setattr(decoder.Decoder, "logits", counting)
    shared = in_order(SlotGenerator(model, slots=4).generate(begun, GREEDY, STOPS))
    assert seen[0] == 20  # the last prompt keeps one token of its own
    with_head = sum(seen)
    monkeypatch.setattr(slots, "SHARED", 1000)
    alone = in_order(SlotGenerator(model, slots=4).generate(begun, GREEDY, STOPS))
    assert sum(seen) - with_head == with_head + 20 * (len(begun) - 1)
    assert draws(shared) == draws(alone)
    assert max(abs(a.logprob - b.logprob) for a, b in zip(shared, alone, strict=True)) < 1e-10
    monkeypatch.setattr(slots, "SHARED", 8)
    monkeypatch.setattr(session, "Prefill", _ForgetsTheBeginning)
    assert draws(in_order(SlotGenerator(model, slots=4).generate(begun, GREEDY, STOPS))) != draws(alone)
