"""The live transformers engine: what it refuses, what is cancelled or closed, and what fails alone."""

# ruff: noqa: F401, F811  (fixtures)

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from held_answers import random_model
from live_answers import Ear, alone, close_where_it_stands, differs, write
from test_live import Maker, ask, contract, llama, make
from test_lora_bank import folders
from test_slots import STOPS, model_of
from tiny_models import tiny
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.contract import Contract
from tunesmith.errors import ModelError, NotFinite, OutOfRoom, RecipeError, TunesmithError
from tunesmith.generate import room
from tunesmith.generate.cache import SlotCache
from tunesmith.generate.live.decoder import LiveDecoder
from tunesmith.generate.live.engine import MOST_SLOTS, LiveSlots
from tunesmith.model.attention import register
from tunesmith.model.lora_bank import LoraBank


def test_what_has_no_room_is_refused_with_figures(make: Maker) -> None:
    live = make()
    assert make(context=10**6).room == 256  # the model's positions
    with pytest.raises(
        ModelError, match="the prompt has 100 tokens, with 29 for the answer more than the 128 that"
    ):
        live.submit(1, ask([5] * 100, 29))
    live.submit(1, ask([5] * 100, 28))
    for wrong in (
        dataclasses.replace(ask(), prompt=[]), ask([5, 96]), ask([-1]), ask(adapter="x"), ask(top=97), ask(top_p=1.5),
        ask(temperature=-0.1), ask(temperature=float("nan")), ask(temperature=float("inf")), ask(max_tokens=-1),
    ):  # fmt: skip
        with pytest.raises(ModelError):
            live.submit(2, wrong)
    unsound = {"properties": {"a": {"not": {"type": "string"}}}}
    with pytest.raises(RecipeError, match="Unimplemented keys"):
        make(random_model(1)).submit(2, ask(schema=unsound, stop_ids=frozenset({5})))
    assert live.load() == (0, 1, 0)
    with pytest.raises(ValueError, match="ticket 1 is in use"):
        live.submit(1, ask())
    live.close()
    with pytest.raises(TunesmithError, match="unloaded"):
        live.submit(3, ask())


def test_adapters_are_those_of_the_bank(
    make: Maker,
    contract: Contract,
    folders: dict[str, Path],
) -> None:
    model = tiny(attention=register())
    live = make(model, adapters=LoraBank(model, folders))
    assert live.adapters == ("all", "some", "root")
    with pytest.raises(ModelError, match="no adapter 'alll'; did you mean 'all'"):
        live.submit(1, ask(adapter="alll"))
    with pytest.raises(TypeError, match="eager"):
        LiveSlots(tiny(), contract, context=16)


def test_slots_auto_are_what_fits(
    make: Maker, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make(slots="auto")
    assert live.slots == MOST_SLOTS
    layers, heads, dim = 2, 2, 16
    monkeypatch.setattr(room, "_CPU_CACHE", 5 * 2 * layers * heads * dim * 4 * 128)
    assert make(slots="auto").slots == 5 and make(slots="auto", context=64).slots == 10
    assert live._session is not None
    cache = live._session.decoder.cache
    taken = sum(one.nbytes for one in (*cache.keys, *cache.values))
    assert taken == MOST_SLOTS * 2 * layers * heads * dim * 4 * 128


def test_cancelling_is_told_once_and_unknown_tickets_are_nothing(make: Maker) -> None:
    live, ear = make(slots=1), Ear()
    ear.stand(1, 2)
    live.start(ear)
    live.submit(1, ask(max_tokens=120))
    live.submit(2, ask(max_tokens=120))
    ear.wait(1, tokens=2)
    assert live.load()[:2] == (1, 1)
    live.cancel(2)
    live.cancel(99)
    ear.stand(1, 3)
    ear.go()
    ear.wait(2)
    ear.wait(1, tokens=3)
    live.cancel(1)
    live.cancel(1)
    ear.go()
    ear.wait(1)
    assert ear.heard[1].end == ear.heard[2].end == "cancelled"
    assert not ear.heard[2].tokens and len(ear.heard[1].tokens) < 119
    live.submit(1, ask())  # its number is free again
    ear.heard.clear()
    ear.wait(1)
    assert ear.heard[1].end == "length"


def test_closing_ends_what_is_in_progress(make: Maker) -> None:
    live, ear = make(), Ear()
    ear.stand(0, 1)
    live.start(ear)
    for ticket in range(8):
        live.submit(ticket, ask(max_tokens=120))
    ear.wait(0, tokens=1)
    close_where_it_stands(live, ear)
    assert [ear.heard[ticket].end for ticket in range(8)] == ["cancelled"] * 8
    assert live._session is None
    live.close()
    idle = make()
    idle.start(Ear())
    idle.close()


def test_output_that_is_not_finite_fails_its_own_answer_alone(make: Maker) -> None:
    model = model_of("llama")
    good = [ask([n, 6], 20, stop_ids=STOPS) for n in range(5, 12)]
    expected = [alone(model, one) for one in good]
    with torch.no_grad():
        model.get_input_embeddings().weight[95] = torch.nan
    bad = [ask([5] * 30 + [95], 20), ask([95, 5], 1), ask([5, 95, 6], 0, prompt_logprobs=True)]
    asked = [*good[:2], bad[0], *good[2:4], bad[1], *good[4:], bad[2], *good]
    for heard, one in zip(write(make(model), asked), asked, strict=True):
        if one in bad:
            assert heard.end == "failed" and isinstance(heard.error, NotFinite) and not heard.tokens
        else:
            assert not differs(heard, expected[good.index(one)], one)
    # the memory of a slot that is not cleansed spoils the next answer in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlotCache, "cleanse", lambda self: None)
        found = write(make(model), asked)
        assert any(heard.end == "failed" for heard, one in zip(found, asked, strict=True) if one not in bad)


def test_a_step_that_fails_ends_those_in_it_and_the_generator_lives_on(
    make: Maker, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, ear = make(), Ear()
    live.start(ear)
    original = LiveDecoder.logits

    def failing(when: Callable[[Tensor], bool], error: Exception) -> None:
        def logits(self: Any, ids: Tensor, *others: Any) -> Tensor:
            if when(ids):
                raise error
            return original(self, ids, *others)

        monkeypatch.setattr(LiveDecoder, "logits", logits)

    live.submit(0, ask(max_tokens=100))
    ear.wait(0, tokens=2)
    failing(lambda ids: len(ids) == 40, torch.OutOfMemoryError("no memory"))
    live.submit(1, ask([5] * 40))
    ear.wait(0, 1)
    assert ear.heard[0].end == "length"  # a prompt that does not fit fails alone
    assert ear.heard[1].end == "failed" and isinstance(ear.heard[1].error, OutOfRoom)
    assert "3 slots of 128 tokens" in str(ear.heard[1].error)
    failing(lambda ids: len(ids) == 2, ValueError("a bug"))
    ear.stand(2, 2)
    live.submit(2, ask(max_tokens=100))
    ear.wait(2, tokens=2)
    live.submit(3, ask([5, 6, 7, 8], max_tokens=100))
    ear.go()
    ear.wait(2, 3)
    for ticket in (2, 3):
        assert ear.heard[ticket].end == "failed" and isinstance(ear.heard[ticket].error, ValueError)
    error = ear.heard[3].error
    assert error is not None and error.__traceback__ is not None  # a bug keeps it
    monkeypatch.undo()
    live.submit(4, ask([9, 8, 7]))
    ear.wait(4)
    assert not differs(ear.heard[4], alone(llama, ask([9, 8, 7])), ask([9, 8, 7]))
    monkeypatch.setattr(SlotCache, "move", lambda *_: 1 / 0)
    live.submit(5, ask(max_tokens=3))
    live.submit(6, ask(max_tokens=20))
    ear.wait(5, 6)
    monkeypatch.undo()
    live.submit(7, ask([9, 8, 7]))
    ear.wait(7)
    assert not differs(ear.heard[7], alone(llama, ask([9, 8, 7])), ask([9, 8, 7]))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_listener_that_raises_ends_the_generator(make: Maker) -> None:
    live = make()

    def deaf(events: Any) -> None:
        raise RuntimeError("the loop is closed")

    live.start(deaf)
    live.submit(1, ask())
    assert live._thread is not None
    live._thread.join(10)
    assert not live._thread.is_alive()
    with pytest.raises(ModelError):
        live.submit(2, ask())
    assert live.closed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_leaves_nobody_waiting(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    live, ear = make(), Ear()
    ear.stand(1, 3)
    live.start(ear)
    live.submit(1, ask(max_tokens=100))
    ear.wait(1, tokens=3)
    monkeypatch.setattr(live, "_take", lambda session: 1 / 0)
    live.submit(2, ask())
    ear.go()
    ear.wait(1, 2)
    for ticket in (1, 2):
        assert ear.heard[ticket].end == "failed" and isinstance(ear.heard[ticket].error, ModelError)
    assert live.closed


def test_a_cancel_that_comes_too_late_does_not_end_the_next_of_its_number(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, ends, done = make(), list[str](), threading.Event()
    turn = live._turn

    def turn_and_cancel(session: Any) -> None:
        turn(session)
        if not ends:
            live.cancel(1)

    def hear(events: Any) -> None:
        if not events[-1].end:
            return
        ends.append(events[-1].end)
        if len(ends) == 1:
            live.submit(1, ask(max_tokens=5))
        else:
            done.set()

    monkeypatch.setattr(live, "_turn", turn_and_cancel)
    live.start(hear)
    live.submit(1, ask(max_tokens=1))
    assert done.wait(30) and ends == ["length", "length"]
