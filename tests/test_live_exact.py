"""A live answer is what the batch generator writes for its prompt alone, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from held_answers import NASTY, guide, random_model
from live_answers import Ear, alone, differs
from test_lora_bank import TUNES, folders  # noqa: F401  # a fixture
from test_slots import STOPS, model_of, prompts
from tiny_models import tiny
from tiny_run import write_byte_tokenizer
from transformers import PreTrainedModel

from tunesmith.contract import Contract
from tunesmith.generate import replay, sampling
from tunesmith.generate.cache import SlotCache
from tunesmith.generate.live import decoder as live_decoder
from tunesmith.generate.live import session as live_session
from tunesmith.generate.live.decoder import LiveDecoder
from tunesmith.generate.live.session import LiveSession, LiveWork
from tunesmith.generate.protocol import Guide, LiveRequest
from tunesmith.generate.session import Session
from tunesmith.model.adapter import load_adapter
from tunesmith.model.attention import register
from tunesmith.model.lora_bank import LoraBank

WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5, "top_p": 0.9},
    {"temperature": 0.8, "seed": 3, "top": 2},
    {"top": 3},
    {"temperature": 2.0, "seed": 9, "sample": 2},
    {"prompt_logprobs": True, "temperature": 1.1, "top_p": 0.5},
    {"max_tokens": 1},
]


def requests(ways: Sequence[Mapping[str, Any]] = WAYS) -> list[LiveRequest]:
    """Prompts of 1 to 30 tokens, each in its own way."""
    made = []
    for number, prompt in enumerate(prompts() + [one[::-1] for one in prompts()]):
        own = {"max_tokens": 5 + number % 9, **ways[number % len(ways)]}
        made.append(LiveRequest(prompt, stop_ids=STOPS if number % 3 else frozenset(), **own))
    return made


def play(
    model: PreTrainedModel,
    asked: Sequence[LiveRequest],
    *,
    slots: int = 4,
    every: int = 2,
    cancel: Mapping[int, int] | None = None,
    overlaps: bool = False,
    padded: bool = False,
    budget: int = 512,
    bank: LoraBank | None = None,
    held: Mapping[int, Guide] | None = None,
    length: int = 256,
) -> Ear:
    """Request n comes at turn `every` * n // 2. cancel: request → turn; padded: steps of more slots, as of graphs."""
    session = LiveSession(LiveDecoder(model, slots, length, bank))
    session.overlaps, session.tokens = overlaps, budget
    session.decoder._replays = padded
    ear, turn = Ear(), 0
    works = [LiveWork(n, one, (held or {}).get(n)) for n, one in enumerate(asked)]
    while turn <= every * len(works) // 2 or session.busy:
        session.waiting += [work for n, work in enumerate(works) if every * n // 2 == turn]
        session.end([work for n, work in enumerate(works) if (cancel or {}).get(n) == turn])
        session.turn()
        told, session.events = session.events, []
        if told:
            ear(told)
        assert len(session.active) + (session.staged is not None) <= slots
        turn += 1
        assert turn < 5000
    assert len(ear.heard) == len(works) and all(one.end for one in ear.heard.values())
    return ear


def wrong(model: PreTrainedModel, asked: Sequence[LiveRequest], **how: Any) -> list[str]:
    """What differs from each request alone."""
    ear = play(model, asked, **how)
    return [
        f"{n} {said}"
        for n, one in enumerate(asked)
        if n not in (how.get("cancel") or {})
        and (said := differs(ear.heard[n], expected(model, one, (how.get("held") or {}).get(n)), one))
    ]


_KNOWN: dict[Any, Any] = {}


def expected(model: PreTrainedModel, one: LiveRequest, held: Guide | None = None) -> Any:
    key = (id(model), str(one), held and held.key)
    if key not in _KNOWN:
        _KNOWN[key] = (alone(model, one, held), model)  # the model stays, and with it its id
    return _KNOWN[key][0]


@pytest.fixture(autouse=True)
def never_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_OFTEN", 10**9)  # there is no card to capture on


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return model_of("llama")


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_answers_are_those_of_each_alone(llama: PreTrainedModel, slots: int, overlaps: bool) -> None:
    for every in (0, 1, 5):
        assert not wrong(llama, requests(), slots=slots, every=every, overlaps=overlaps)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_of_every_kind_of_model(kind: str) -> None:
    assert not wrong(model_of(kind), requests(), overlaps=True, padded=True)


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_long_prompts_go_through_in_parts(llama: PreTrainedModel, overlaps: bool, padded: bool) -> None:
    how = {"overlaps": overlaps, "padded": padded}
    for budget in (7, 12):
        assert not wrong(llama, requests(), budget=budget, **how)
    assert not wrong(llama, requests(), budget=7, slots=1, **how)
    assert not wrong(model_of("mistral"), requests(), budget=7, **how)  # a window of 5


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("budget", [7, 512])
def test_whoever_is_cancelled_beside_it(llama: PreTrainedModel, overlaps: bool, budget: int) -> None:
    asked = requests()
    cancel = {n: n + 1 + n % 4 for n in range(0, len(asked), 3)}
    how: dict[str, Any] = {"overlaps": overlaps, "cancel": cancel, "budget": budget, "padded": overlaps}
    assert not wrong(llama, asked, **how)
    ear = play(llama, asked, **how)
    ends = [ear.heard[n].end for n in cancel]
    assert ends.count("cancelled") >= 5
    for n in cancel:  # what was told until then is the beginning of the answer
        ids = [-1 if one in asked[n].stop_ids else one for one in ear.heard[n].ids]
        assert ids == expected(llama, asked[n]).ids[: len(ids)]


def test_a_cancelled_answer_leaves_its_slot_before_the_next_step(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(session: LiveSession) -> list[int]:
        seen: list[int] = []
        step = session.decoder.step
        session.decoder.step = lambda count, *rest: (seen.append(count), step(count, *rest))[1]  # type: ignore[method-assign]
        return seen

    def sizes(overlaps: bool) -> list[int]:
        session = LiveSession(LiveDecoder(llama, 3, 64, None))
        session.overlaps = overlaps
        seen = rows(session)
        works = [LiveWork(n, LiveRequest([5, 6 + n], 40, frozenset())) for n in range(4)]
        session.waiting += works
        session.turn()
        session.turn()
        session.end(works[1:2])
        session.turn()
        session.end(works[2:])
        session.turn()
        assert [event.end for event in session.events if event.end] == ["cancelled"] * 3
        return seen

    # at the third turn the fourth request has the place of the second
    assert sizes(False) == sizes(True) == [3, 3, 3, 1]
    spent = LiveWork.spent.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(LiveWork, "spent", property(lambda self: spent(self) and self.told >= 40))
    assert sizes(False) != [3, 3, 3, 1]


def test_each_request_has_its_own_adapter(folders: dict[str, Path]) -> None:  # noqa: F811
    names = ["", *TUNES]
    asked = [dataclasses.replace(one, adapter=names[n % 4]) for n, one in enumerate(requests())]
    single = {name: tiny(attention=register()) for name in names}
    for name in TUNES:
        load_adapter(single[name], folders[name])
    model = tiny(attention=register())
    bank = LoraBank(model, folders)

    def off() -> list[str]:
        found = []
        for how in ({"overlaps": True, "padded": True}, {"budget": 7}):
            ear = play(model, asked, bank=bank, **how)  # type: ignore[arg-type]
            plain = [dataclasses.replace(one, adapter="") for one in asked]
            found += [
                said
                for n, one in enumerate(plain)
                if (said := differs(ear.heard[n], expected(single[asked[n].adapter], one), one))
            ]
        return found

    assert not off()
    rows = LiveDecoder.rows
    with pytest.MonkeyPatch.context() as patch:  # an answer that moves gets the adapter of its new slot
        patch.setattr(LiveDecoder, "rows", lambda self: rows(self)[:-1])
        assert off()
    with pytest.MonkeyPatch.context() as patch:  # prompts go through without any
        assign = LiveDecoder.assign
        patch.setattr(
            LiveDecoder,
            "assign",
            lambda self, first, asked: (assign(self, first, asked), self.adapter.zero_()),
        )
        assert off()


def test_some_are_held_to_a_schema(tmp_path: Path) -> None:
    contract = Contract.make(write_byte_tokenizer(tmp_path), template="llama3")
    model = random_model(1)
    small = {"properties": {"a": {"enum": [1, 27, None]}}, "required": ["a"], "additionalProperties": False}
    grammars = [guide(contract, NASTY, 270), None, guide(contract, small, 270), None]
    asked, held = [], {}
    for n in range(12):
        if (grammar := grammars[n % 4]) is not None:
            held[n] = grammar
        asked.append(
            LiveRequest(
                contract.tokens_of("report"[: 1 + n % 6]),
                30 + 7 * n,
                contract.stop_ids,
                n % 3 / 2,
                seed=n,
                top=n % 2,
            )
        )
    for overlaps in (False, True):
        assert not wrong(model, asked, held=held, overlaps=overlaps, padded=overlaps)
    ended = sum(expected(model, asked[n], one).end == "stop" for n, one in held.items())
    assert ended >= 3
    # a matcher that stays with the slot when its answer moves on would be seen

    def off_by_one(self: LiveSession, works: list[LiveWork], *others: Any) -> Any:
        states = [work.state for work in works]
        for work, state in zip(works, states[1:] + states[:1], strict=True):
            work.state = state if work.guide is not None and state is not None else work.state
        return choose(self, works, *others)

    choose = LiveSession._choose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveSession, "_choose", off_by_one)
        assert wrong(model, asked, held=held)


def test_mutants_are_caught(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests()
    rows = LiveDecoder.rows
    for number, name in enumerate(["last", "position", "count", "key", "temperature", "top_p"]):
        with monkeypatch.context() as patch:  # an answer that moves gets this of its new slot
            patch.setattr(LiveDecoder, "rows", lambda self, n=number: rows(self)[:n] + rows(self)[n + 1 :])
            assert caught(llama, asked), name
            assert caught(llama, asked, overlaps=True, padded=True), name
    mutants: list[tuple[Any, str, Any, dict[str, Any]]] = [
        (SlotCache, "move", lambda *_: None, {}),
        (live_session, "way_of", lambda requests: "greedy", {}),
        (live_session, "way_of", lambda requests: "drawn", {}),
        (live_session, "stream_key", lambda seed, prompt, sample: sampling.stream_key(seed, prompt, 0), {}),
        (live_decoder, "choose_each", _one_for_all, {}),
        (Session, "prefill_chunk", _from_zero(Session.prefill_chunk), {"budget": 7}),
        (LiveSession, "_part_of", _written_over(LiveSession._part_of), {"budget": 7, "padded": True}),
        (LiveSession, "_tell", _in_another_order(LiveSession._tell), {"overlaps": True}),
    ]  # fmt: skip
    for owner, name, mutant, how in mutants:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, mutant)
            assert caught(llama, asked, **how), name


def caught(model: PreTrainedModel, asked: Sequence[LiveRequest], **how: Any) -> bool:
    """A request never ends, is told something behind its end, or is answered otherwise."""
    try:
        return bool(wrong(model, asked, **how))
    except AssertionError:
        return True


def _one_for_all(logits: Any, temperature: Any, top_p: Any, *others: Any) -> Any:
    return sampling.choose_each(logits, temperature[:1].expand_as(temperature), top_p, *others)


def _from_zero(right: Any) -> Any:
    """A part of a prompt that does not see the parts before it."""
    return lambda self, slot, ids, before, whole=False: right(self, slot, ids, 0, whole)


def _written_over(right: Any) -> Any:
    """The slot of a prompt that goes through in parts is not kept out of the steps of others."""

    def mutant(self: LiveSession, work: LiveWork) -> Any:
        made = right(self, work)
        if self.staged is work:
            self.decoder.position[self.slots - 1] = 0
        return made

    return mutant


def _in_another_order(right: Any) -> Any:
    """Tokens are told to those who are in the slots by now."""

    def mutant(self: LiveSession, one: Any) -> Any:
        works = (self.active + one.works)[: len(one.works)]
        return right(self, dataclasses.replace(one, works=works))

    return mutant
