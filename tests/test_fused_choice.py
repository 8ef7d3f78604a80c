"""Which engine trains, and what is said where it is not the fused one."""

from __future__ import annotations

import pytest
import torch
from test_engine_exact import engine, recipe
from tiny_models import tiny
from transformers import GemmaConfig, GemmaForCausalLM

from tunesmith.engine import fused_attention
from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_fits import why_not
from tunesmith.engine.fused_host import Outer
from tunesmith.engine.fused_stream import Stream
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.errors import ModelError, SetupError
from tunesmith.model.attention import register
from tunesmith.model.lora import add_lora
from tunesmith.recipe import Tune
from tunesmith.train.build import choose_engine


def test_what_the_engine_does_not_take() -> None:
    ordinary = tiny(attention=register())
    add_lora(ordinary, recipe().tune, 0)
    assert why_not(recipe(), ordinary) is None
    assert "packing" in str(why_not(recipe(packing=False), ordinary))
    full = recipe().model_copy(update={"tune": Tune(method="full")})
    assert "full" in str(why_not(full, ordinary))
    gelu = tiny(attention=register(), hidden_act="gelu")
    add_lora(gelu, recipe().tune, 0)
    assert "gelu" in str(why_not(recipe(), gelu))
    config = GemmaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    gemma = GemmaForCausalLM(config)
    add_lora(gemma, recipe().tune, 0)
    assert "GemmaForCausalLM is none of Llama" in str(why_not(recipe(), gemma))


def test_choosing(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny(attention=register())
    add_lora(model, recipe().tune, 0)
    assert type(choose_engine(recipe(), model)) is ReferenceEngine
    assert "engine: reference (not the fused one: it is made for CUDA)" in capfd.readouterr().err
    assert type(choose_engine(recipe(engine="reference"), model)) is ReferenceEngine
    assert type(choose_engine(recipe(engine="fused"), model)) is FusedEngine
    with pytest.raises(SetupError, match=r"can't train this: train.packing") as caught:
        choose_engine(recipe(engine="fused", packing=False), model)
    assert caught.value.where == "train.engine" and "auto" in str(caught.value.fix)


def test_layers_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(attention=register())
    add_lora(model, recipe().tune, 0)
    forward = type(model.model.layers[0].mlp).forward
    model.model.layers[1].mlp.forward = lambda x: 1.2 * forward(model.model.layers[1].mlp, x)
    places = []
    place = Outer.place
    monkeypatch.setattr(
        Outer, "place", lambda self, on_host: place(self, on_host=places.append(on_host) or on_host)
    )
    monkeypatch.setattr(FusedEngine, "_is_tight", lambda self: True)
    with pytest.raises(ModelError, match="compute something else"):
        FusedEngine(model, recipe())
    assert places == [True, False]  # the reference engine finds embedding and head where they were
    assert type(engine().model) is type(model)


@pytest.mark.parametrize("dense, window", [(False, None), (False, 64), (True, None)])
def test_this_torch_takes_the_calls_of_a_card(
    dense: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's attention operations are its own affair: their arguments must be those we pass, in this version too.

    Without a card there is no kernel to run, so the right answer is that one; a wrong argument answers otherwise.
    """
    monkeypatch.setattr(fused_attention, "_is_fast", lambda q: True)
    x = torch.zeros(256, 8, 64, dtype=torch.bfloat16)
    heads = fused_attention.Heads(x[:, :4], x[:, 4:6], x[:, 6:])
    edges = torch.tensor([0, 128, 256], dtype=torch.int32)
    stream = Stream(edges, 128, x[:, 0], x[:, 0], None, None, dense)
    kept = (torch.zeros(2, 4, 128), torch.zeros(2), torch.zeros(2))
    attended = fused_attention.Attended(torch.zeros(256, 256, dtype=torch.bfloat16), kept)
    for call in (
        lambda: fused_attention.attend(heads, stream, 0.1, window),
        lambda: fused_attention.attend_backward(attended.o, heads, attended, stream, 0.1, window),
    ):
        with pytest.raises(NotImplementedError, match="CPU"):
            call()
    monkeypatch.setattr(fused_attention, "_sides", lambda window: {"window": 1})  # the mutant
    if not dense:
        with pytest.raises(RuntimeError, match="window"):
            fused_attention.attend(heads, stream, 0.1, window)
