"""The lean pass on a card: as near to fp32 as transformers' own layers, and the same answers in fp32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from live_answers import alone, differs, write
from test_lean import CASES, apart_on, model_of
from test_live_exact import WAYS, requests
from test_lora_bank import TUNES, folders  # noqa: F401  # a fixture
from test_slots import SAMPLED, STOPS, draws, in_order, prompts
from tiny_models import tiny
from tiny_run import write_byte_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tunesmith.contract import Contract
from tunesmith.generate import decoder
from tunesmith.generate.cache import Decode
from tunesmith.generate.decoder import SlotState
from tunesmith.generate.lean import LeanForward, forward_of, their_forward
from tunesmith.generate.live.engine import LiveSlots
from tunesmith.generate.protocol import Decoding
from tunesmith.generate.session import Session
from tunesmith.generate.slots import SlotGenerator
from tunesmith.kernels.chosen import kernels_for
from tunesmith.model.adapter import load_adapter
from tunesmith.model.attention import register
from tunesmith.model.lora_bank import LoraBank

pytestmark = pytest.mark.gpu


def wide_model(dtype: torch.dtype) -> PreTrainedModel:
    """Two layers as wide as those of Llama 3.1 8B, weights rounded to bf16 whatever their type."""
    config = LlamaConfig(
        vocab_size=8192, hidden_size=4096, intermediate_size=14336, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=4096,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 1024},
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(config, attn_implementation=register(), dtype=torch.bfloat16)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data.normal_(1.0, 0.3)
            parameter.data = parameter.data.to(dtype)  # not the angles' frequencies, which stay fp32
    return model.eval()


@torch.no_grad()
def logits_of(model: PreTrainedModel, forward: Callable[..., Tensor]) -> Tensor:
    """[12, V] in fp64: behind prompts of four lengths, and of a token more for each, twice."""
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(3, 8192, (n,), generator=generator).tolist() for n in (300, 7, 64, 1)]
    state = SlotState(model, 4, 320)
    state.forward = forward
    session: Session[Any, int] = Session(state)
    found = [session.prefill(ids)]
    session.begin([0, 1, 2, 3], [len(one) for one in ids], [0] * 4)
    for step in range(2):
        state.position += 1
        state.last = torch.tensor([5, 77, 4000, 901], device="cuda") + step
        found.append(state.next_logits(4, [len(one) + step for one in ids]))
    return torch.cat(found).double()


def off(found: Tensor, told: Tensor) -> float:
    """1 − cosine, the worst row."""
    return float((1 - torch.cosine_similarity(found, told, dim=-1)).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_in_a_half_type_are_as_near_to_fp32(dtype: torch.dtype) -> None:
    exact = wide_model(torch.float32)
    told = logits_of(exact, their_forward(exact))
    whole = off(logits_of(exact, LeanForward(exact, kernels_for(exact.device))), told)
    assert whole < 1e-9
    model = wide_model(dtype)
    theirs = off(logits_of(model, their_forward(model)), told)
    forward = forward_of(model)
    assert isinstance(forward, LeanForward)
    ours = off(logits_of(model, forward), told)
    print(f"1 - cosine to fp32: lean {ours:.2e}, transformers {theirs:.2e}; in fp32 {whole:.1e}")
    assert ours < 1.1 * theirs
    forward.layers[1].kernels = dataclasses.replace(forward.layers[1].kernels, rotate=lambda *arguments: None)
    assert off(logits_of(model, forward), told) > 10 * theirs


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_layer(case: str) -> None:
    model = model_of(case).cuda()
    forward = forward_of(model)
    assert isinstance(forward, LeanForward)
    assert apart_on(model, forward) < 1e-4  # attention alone may sum in another order


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    return Contract.make(write_byte_tokenizer(tmp_path / "tokenizer"), template="llama3")


def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every graph that is launched."""
    seen: list[int] = []
    original = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (seen.append(1), original(self))[1])
    return seen


@pytest.mark.parametrize("case", ["llama", "llama, biases everywhere", "mistral, window", "qwen3"])
def test_answers_are_those_of_transformers_layers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, replayed = model_of(case).cuda(), replays(monkeypatch)

    def answers(decoding: Decoding) -> list[Any]:
        return draws(in_order(SlotGenerator(model, slots=6).generate(prompts(), decoding, STOPS)))

    for decoding in (Decoding(max_tokens=40), dataclasses.replace(SAMPLED, max_tokens=40)):
        found = answers(decoding)
        with monkeypatch.context() as changed:
            changed.setattr(decoder, "forward_of", their_forward)
            told = answers(decoding)
        wrong = sum(a != b for a, b in zip(found, told, strict=True))
        assert wrong <= 1, (found, told)  # near ties fall either way
    assert len(replayed) > 50


def test_live_answers_are_those_of_each_alone_by_transformers_layers(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, replayed = model_of("llama").cuda(), replays(monkeypatch)
    asked = [dataclasses.replace(one, max_tokens=one.max_tokens * 3) for one in requests(WAYS)]
    found = write(LiveSlots(model, contract, slots=5, context=256), asked)
    monkeypatch.setattr(decoder, "forward_of", their_forward)
    wrong = [said for a, b in zip(found, asked, strict=True) if (said := differs(a, alone(model, b), b))]
    assert len(wrong) <= 1 and len(replayed) > 50, wrong


def test_adapters_of_a_bank(
    contract: Contract,
    folders: dict[str, Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["", *TUNES]
    asked = [
        dataclasses.replace(one, adapter=names[n % 4], max_tokens=30) for n, one in enumerate(requests([{}]))
    ]
    model = tiny(attention=register()).cuda()
    found = write(LiveSlots(model, contract, slots=8, context=256, adapters=LoraBank(model, folders)), asked)
    monkeypatch.setattr(decoder, "forward_of", their_forward)
    wrong = 0
    for name in names:
        single = tiny(attention=register()).cuda()
        if name:
            load_adapter(single, folders[name])
        wrong += sum(
            bool(differs(heard, alone(single, one), one))
            for heard, one in zip(found, asked, strict=True)
            if one.adapter == name
        )
    assert wrong <= 1


def test_a_place_behind_the_cache_is_left_out() -> None:
    """A token that has no place any more spoils nobody's memory."""
    state = SlotState(model_of("llama").cuda(), 3, 16)
    before = [memory.clone() for memory in state.cache.keys]
    ids = torch.tensor([5, 6, 7], device="cuda")
    places = torch.full_like(ids, 16)
    with torch.no_grad():
        state.logits(ids, places, _Writes(state.cache, places), None)
    assert all(torch.equal(a, b) for a, b in zip(before, state.cache.keys, strict=True))


class _Writes(Decode):
    """Writes, and attends to nothing."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        self.cache.write(layer, self._slots_N, self.positions_N, k, v)
        return q.transpose(1, 2)
