"""The lean forward pass against transformers' own: logits, answers in batches and live, and when it is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from live_answers import Heard
from test_live_exact import WAYS, play, requests
from test_lora_bank import TUNES, folders  # noqa: F401  # a fixture
from test_slots import GREEDY, SAMPLED, STOPS, draws, in_order, prompts
from tiny_models import tiny
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, LlamaForCausalLM, PreTrainedModel

from tunesmith.generate import decoder, lean, replay
from tunesmith.generate.lean import LeanForward, their_forward
from tunesmith.generate.protocol import Decoding, Generated
from tunesmith.generate.slots import SlotGenerator
from tunesmith.kernels.plain import PLAIN
from tunesmith.model.attention import Packed, register
from tunesmith.model.lora import adapters, add_lora, linears
from tunesmith.model.lora_bank import LoraBank
from tunesmith.model.weights import FrozenLinear, quantized
from tunesmith.recipe import Tune

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
WINDOWS = {
    "use_sliding_window": True,
    "sliding_window": 5,
    "max_window_layers": 1,
}  # on the second layer alone
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama_tied", {}),
    "llama, biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3 angles": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, a head as long as all": ("llama", {"num_key_value_heads": 4, "head_dim": 64}),
    "llama, a window that it ignores": ("llama", {"sliding_window": 3}),
    "mistral, window": ("mistral", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows": ("qwen2", WINDOWS),
    "qwen3": ("qwen3", {}),
    "qwen3, windows and ties": ("qwen3", WINDOWS | {"tie_word_embeddings": True}),
}


def model_of(case: str, **more: Any) -> PreTrainedModel:
    kind, config = CASES[case]
    return tiny(kind, attention=register(), **(config | more))


def apart(model: PreTrainedModel, found: LeanForward | None = None) -> float:
    """The largest difference of logits by the plain kernels."""
    return apart_on(model, found or LeanForward(model, PLAIN))


@torch.no_grad()
def apart_on(model: PreTrainedModel, found: LeanForward) -> float:
    """The largest difference of logits, of all tokens of three documents and of the last tokens alone."""
    torch.manual_seed(1)
    lengths, device = [11, 1, 20], model.device
    ids = torch.randint(3, 96, (sum(lengths),)).to(device)
    ends = torch.tensor(lengths, device=device).cumsum(0)
    places = torch.cat([torch.arange(n, device=device) for n in lengths])
    attention = Packed(torch.cat([ends.new_zeros(1), ends]).int(), max(lengths))
    most = 0.0
    for wanted in (None, ends - 1):
        told = their_forward(model)(ids, places, attention, wanted)
        own = found(ids, places, attention, wanted)
        assert own.shape == told.shape and bool(told.std() > 0.3)
        most = max(most, float((own - told).abs().max()))
    return most


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str) -> None:
    assert lean.why_unknown(model_of(case)) is None
    assert apart(model_of(case)) < 1e-5


@pytest.mark.parametrize("how", ["lora", "int8", "nf4"])
def test_linears_are_called_as_they_are(how: str) -> None:
    """Adapters and quantised weights are the linears' own affair."""
    model = model_of("qwen3")
    if how == "lora":
        bare = LeanForward(model_of("qwen3"), PLAIN)
        add_lora(model, Tune(rank=4, alpha=8), 0)
        for adapter in adapters(model):
            nn.init.normal_(adapter.B, std=0.2)
        assert apart(model, bare) > 0.01
    for name in linears(model) if how != "lora" else ():
        parent, _, leaf = name.rpartition(".")
        weight = model.get_submodule(name).weight.detach()
        setattr(model.get_submodule(parent), leaf, FrozenLinear(quantized(weight, how)))
    assert lean.why_unknown(model) is None
    assert apart(model) < 1e-5


def _swap_norms(found: LeanForward) -> None:
    found.layers[0].second, found.layers[1].second = found.layers[1].second, found.layers[0].second


def _never_rotates(found: LeanForward) -> None:
    found.layers[1].kernels = dataclasses.replace(PLAIN, rotate=lambda *arguments: None)


def _forgets_the_residual(found: LeanForward) -> None:
    def norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, total: Tensor, out: Tensor) -> None:
        if delta is not None:
            x.zero_()
        PLAIN.norm(x, delta, weight, eps, total, out)

    found.layers[1].kernels = dataclasses.replace(PLAIN, norm=norm)


def _drops_the_last_part(found: LeanForward) -> None:
    found.kernels = dataclasses.replace(
        PLAIN, norm=lambda x, delta, *rest: PLAIN.norm(x, torch.zeros_like(delta), *rest)
    )


def _swaps_gate_and_up(found: LeanForward) -> None:
    found.layers[0].gate, found.layers[0].up = found.layers[0].up, found.layers[0].gate


def _without_window(found: LeanForward) -> None:
    found.layers[1].window = None


def _window_on_the_other_layer(found: LeanForward) -> None:
    found.layers[0].window = found.layers[1].window


def _without_head_norms(found: LeanForward) -> None:
    found.layers[1].k_norms = None


def _scales_alike(found: LeanForward) -> None:
    found.layers[0].scale *= 1.01


def _plain_angles(found: LeanForward) -> None:
    found.angles.attention_scaling = 1.0


MUTANTS = [
    ("llama", _swap_norms), ("llama", _never_rotates), ("llama", _forgets_the_residual),
    ("llama", _drops_the_last_part), ("llama", _swaps_gate_and_up), ("mistral, window", _without_window),
    ("qwen2, windows", _without_window), ("qwen2, windows", _window_on_the_other_layer),
    ("qwen3", _without_head_norms), ("llama", _scales_alike),
]  # fmt: skip


@pytest.mark.parametrize(("case", "spoil"), MUTANTS, ids=lambda one: getattr(one, "__name__", one))
def test_what_is_wrong_is_seen(case: str, spoil: Callable[[LeanForward], None]) -> None:
    model = model_of(case)
    found = LeanForward(model, PLAIN)
    assert apart(model, found) < 1e-5
    spoil(found)
    assert apart(model, found) > 1e-3


def test_the_scale_of_the_angles_is_the_models_own() -> None:
    model, other = model_of("llama, yarn"), model_of("llama, yarn")
    found = LeanForward(other, PLAIN)
    assert apart(model, found) < 1e-5
    _plain_angles(found)
    assert apart(model, found) > 1e-3


# ---- answers


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From here on all is written by the lean pass: tokens of each of its calls."""
    calls: list[int] = []
    call = LeanForward.__call__

    def counted(self: LeanForward, ids_T: Tensor, *rest: Any) -> Tensor:
        calls.append(len(ids_T))
        return call(self, ids_T, *rest)

    monkeypatch.setattr(LeanForward, "__call__", counted)
    monkeypatch.setattr(replay, "_OFTEN", 10**9)  # there is no card to capture on
    return calls


def lean_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "forward_of", lambda model: LeanForward(model, PLAIN))


def answers(model: PreTrainedModel, decoding: Decoding, slots: int) -> list[Generated]:
    return in_order(SlotGenerator(model, slots=slots).generate(prompts(), decoding, STOPS))


def same(one: Heard, other: Heard) -> bool:
    """Bit by bit the same tokens, and the same of the prompt."""
    pairs = [*zip(one.tokens, other.tokens, strict=False), *zip(one.prompt, other.prompt, strict=False)]
    near = all(not abs(a.logprob - b.logprob) > 1e-4 for a, b in pairs)  # NaN: a prompt's first token
    return one.ids == other.ids and one.end == other.end and len(one.prompt) == len(other.prompt) and near


@pytest.mark.parametrize("case", CASES)
def test_answers_in_batches_are_the_same(
    case: str, walked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(case)
    ways = [(decoding, slots) for decoding in (GREEDY, SAMPLED) for slots in (1, 4, 20)]
    told = [answers(model, *way) for way in ways]
    assert not walked
    lean_only(monkeypatch)
    for way, expected in zip(ways, told, strict=True):
        found = answers(model, *way)
        assert draws(found) == draws(expected)
        assert max(abs(a.logprob - b.logprob) for a, b in zip(found, expected, strict=True)) < 1e-4
    assert len(walked) > 50


@pytest.mark.parametrize("case", ["llama", "mistral, window", "qwen2, windows", "qwen3"])
def test_live_answers_are_the_same(case: str, walked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that go through together and in parts, greedy and drawn, with logits of a prompt's own tokens."""
    model, asked = model_of(case), requests(WAYS)
    ways: list[dict[str, Any]] = [{"overlaps": True, "padded": True}, {"budget": 7}]
    told = [play(model, asked, **how) for how in ways]
    assert not walked
    lean_only(monkeypatch)
    for how, expected in zip(ways, told, strict=True):
        found = play(model, asked, **how)
        for n, one in enumerate(asked):
            assert same(found.heard[n], expected.heard[n]), one
    assert len(walked) > 50


def test_each_live_request_has_its_own_adapter(
    folders: dict[str, Path],  # noqa: F811
    walked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["", *TUNES]
    asked = [dataclasses.replace(one, adapter=names[n % 4]) for n, one in enumerate(requests())]
    model = tiny(attention=register())
    bank = LoraBank(model, folders)
    told = play(model, asked, bank=bank)
    lean_only(monkeypatch)
    found = play(model, asked, bank=bank)
    assert walked
    for n, one in enumerate(asked):
        assert same(found.heard[n], told.heard[n]), one
    bare = [dataclasses.replace(one, adapter="") for one in asked]
    plain = play(model, bare, bank=bank)
    changed = [not same(plain.heard[n], told.heard[n]) for n in range(len(asked))]
    assert sum(changed) > len(asked) // 2  # adapters matter to these answers


# ---- when it is taken


def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    assert "CUDA" in str(lean.why_not_lean(model))
    assert not isinstance(lean.forward_of(model), LeanForward)
    monkeypatch.setattr(lean, "kernels_for", lambda device: dataclasses.replace(PLAIN))
    assert lean.why_not_lean(model) is None and isinstance(lean.forward_of(model), LeanForward)
    gelu = tiny(attention=register(), hidden_act="gelu")
    assert "gelu" in str(lean.why_not_lean(gelu)) and not isinstance(lean.forward_of(gelu), LeanForward)


def _hooked(model: PreTrainedModel) -> None:
    model.get_submodule("model.layers.1").register_forward_hook(lambda *arguments: None)


def _patched(model: PreTrainedModel) -> None:
    norm = model.get_submodule("model.layers.0.input_layernorm")
    norm.forward = lambda x: 2 * x  # type: ignore[method-assign]


def _wide_norm(model: PreTrainedModel) -> None:
    model.get_submodule("model.norm").double()


def _double(model: PreTrainedModel) -> None:
    model.double()


def _two_devices(model: PreTrainedModel) -> None:
    model.get_submodule("lm_head").to("meta")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_hooked, "model.layers.1 has a hook"),
        (_patched, "model.layers.0.input_layernorm has a hook"),
        (_wide_norm, "model.norm is float64"),
        (_double, "float64"),
        (_two_devices, "several devices"),
    ],
)
def test_what_it_does_not_take(change: Callable[[PreTrainedModel], None], says: str) -> None:
    model = model_of("llama")
    change(model)
    assert says in str(lean.why_unknown(model))


def test_other_classes_are_not_taken() -> None:
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    gemma = GemmaForCausalLM(GemmaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=16))
    assert "GemmaForCausalLM is none of Llama" in str(lean.why_unknown(gemma))
    own = type("LlamaForCausalLM", (LlamaForCausalLM,), {"__module__": "somebodys.model"})(
        model_of("llama").config
    )
    assert "not transformers' own" in str(lean.why_unknown(own))
    # a hook on a linear is called, as the linear is
    watched = model_of("llama")
    seen: list[int] = []
    for name in linears(watched):
        watched.get_submodule(name).register_forward_pre_hook(lambda *arguments: seen.append(1))
    assert lean.why_unknown(watched) is None and apart(watched) < 1e-5
    assert len(seen) == 4 * 14
