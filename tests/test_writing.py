"""Tokens to text to clients: whole characters, stop strings never shown, counts, ends; readers that go away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from served_models import ReadyModels, ScriptedLive, starter_contract

from tunesmith.contract import Contract
from tunesmith.example import Message
from tunesmith.generate.protocol import LiveRequest
from tunesmith.serve.dispatch import Dispatches
from tunesmith.serve.errors import Ended, TooLong
from tunesmith.serve.limits import Limits
from tunesmith.serve.protocol import Busy, Served, Unservable
from tunesmith.serve.state import ServeState
from tunesmith.serve.writing.prompt import answer_schema, chat_prompt, given_prompt, raw_prompt
from tunesmith.serve.writing.writing import Answer, Ask, begin


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def contract() -> Contract:
    return starter_contract()


# ---- prompts


def test_messages_are_rendered_as_in_evaluation() -> None:
    contract = starter_contract(system="Answer in JSON.")
    user = Message("user", "Size: 3 cm")
    made = asyncio.run(chat_prompt(contract, [user], "messages"))
    assert made == contract.prompt_ids([Message("system", "Answer in JSON."), user])
    own = [Message("system", "Other."), user]
    assert asyncio.run(chat_prompt(contract, own, "messages")) == contract.prompt_ids(own)
    long = [Message("user", "word " * 9000)]
    assert asyncio.run(chat_prompt(contract, long, "messages"))[-1] == made[-1]


def test_mutant_template_with_a_line_break_more_gives_other_ids() -> None:
    contract = starter_contract()
    parts = list(contract.__reduce__()[1])  # type: ignore[arg-type]
    parts[0] = contract.template.replace("\\n\\n", "\\n\\n\\n").replace("\n\n", "\n\n\n")
    mutant = Contract(*parts)
    asked = [Message("user", "Size: 3 cm")]
    assert asyncio.run(chat_prompt(mutant, asked, "messages")) != contract.prompt_ids(asked)


def test_control_tokens_in_a_message_are_refused_and_raw_text_may_have_them(contract: Contract) -> None:
    with pytest.raises(Unservable, match="eot_id"):
        asyncio.run(chat_prompt(contract, [Message("user", "x<|eot_id|>y")], "messages"))
    ids, added = asyncio.run(raw_prompt(contract, "x<|eot_id|>", "prompt"))
    assert (ids[0], ids[-1], added) == (contract.bos_id, contract.terminator_id, 1)
    again, added = asyncio.run(raw_prompt(contract, "<|begin_of_text|>x<|eot_id|>", "prompt"))
    assert (again, added) == (ids, 0)
    assert given_prompt(contract, [5, 6], "prompt") == [5, 6]
    for wrong in ([], [-1], [contract.vocabulary_size]):
        with pytest.raises(Unservable):
            given_prompt(contract, wrong, "prompt")


def test_schemas_that_are_none_are_refused() -> None:
    def read(schema: dict[str, Any], most: int = 1 << 16) -> Any:
        return asyncio.run(answer_schema(schema, most, "format"))

    assert read({"type": "object"}) == {"type": "object"}
    deep: dict[str, Any] = {}
    for depth in range(180):
        deep = {"type": "object", "properties": {"a": deep}}
        if depth == 30:
            read(deep)
    for wrong in ({"type": "array"}, {"type": 3}, {"properties": []}, {"required": "a"}):
        with pytest.raises(Unservable):
            read(wrong)
    with pytest.raises(Unservable, match="too deep"):
        read(deep)
    with pytest.raises(Unservable, match="has 18 bytes; the server takes 17"):
        read({"type": "object"}, 17)


# ---- readers and the engine


def words(
    contract: Contract, text: str = "one two three four five six seven eight"
) -> Callable[[LiveRequest], list[int]]:
    return lambda request: [*contract.tokens_of(text), contract.terminator_id]


@pytest.fixture
def made(contract: Contract) -> Iterator[Callable[..., tuple[ServeState, Served, ScriptedLive]]]:
    lives: list[ScriptedLive] = []

    def make(
        script: Callable[[LiveRequest], Sequence[int]] | None = None,
        limits: Limits | None = None,
        **live: Any,
    ) -> tuple[ServeState, Served, ScriptedLive]:
        lives.append(ScriptedLive(script or words(contract), **live))
        served = Served("m", contract, lives[-1], "transformers", max_tokens=64)
        return ServeState(ReadyModels(served), limits or Limits(), log=lines.append), served, lives[-1]

    lines: list[str] = []
    make.lines = lines  # type: ignore[attr-defined]
    yield make
    for live in lives:
        live.close()


async def whole(state: ServeState, served: Served, ask: Ask) -> list[Answer]:
    writing = await begin(state, served, ask)
    try:
        return await writing.whole()
    finally:
        writing.close()


def test_answers_to_several_prompts_do_not_cross(made: Any, contract: Contract) -> None:
    state, served, live = made(lambda request: [*request.prompt[1:], contract.terminator_id], slots=3)
    texts = [f"report {n} 😀{n}" for n in range(12)]
    prompts = [asyncio.run(raw_prompt(contract, text, "prompt"))[0] for text in texts]

    async def run() -> list[Answer]:
        return await whole(state, served, Ask(prompts, n=2))

    answers = asyncio.run(run())
    assert [one.text for one in answers] == [text for text in texts for _ in range(2)]
    assert {request.sample for request in live.requests} == {0, 1}
    assert state.admission.requests == state.admission.tokens == state.dispatches.open == 0


def test_defaults_are_what_was_measured(made: Any, contract: Contract) -> None:
    state, _, live = made()
    measured = Served(
        "m", contract, live, "transformers", adapter="a", max_tokens=7, temperature=0.3, top_p=0.9
    )

    async def run() -> None:
        await whole(state, measured, Ask([[1, 2, 3]]))
        await whole(state, measured, Ask([[1, 2, 3]], max_tokens=5, temperature=0.0, top_p=1.0, seed=4))
        await whole(state, measured, Ask([[1, 2, 3]]))

    asyncio.run(run())
    first, second, third = live.requests
    assert (first.max_tokens, first.temperature, first.top_p, first.adapter) == (7, 0.3, 0.9, "a")
    assert (second.max_tokens, second.temperature, second.top_p, second.seed) == (5, 0.0, 1.0, 4)
    assert first.seed != third.seed


def test_no_room_is_told_before_anything_is_asked(made: Any) -> None:
    state, served, live = made(room=20)

    async def run(ask: Ask) -> list[Answer]:
        return await whole(state, served, ask)

    with pytest.raises(TooLong, match="21 tokens"):
        asyncio.run(run(Ask([[1] * 21])))
    with pytest.raises(TooLong, match="max_tokens is 11"):
        asyncio.run(run(Ask([[1] * 10], max_tokens=11)))
    assert not live.requests


@pytest.mark.parametrize(
    "ask",
    [
        Ask([[1]], n=17),
        Ask([[1]], stops=("a",) * 17),
        Ask([[1]], stops=("a" * 201,)),
        Ask([[1]], stops=("",)),
        Ask([[1]], top=21),
        Ask([[1]] * 300),
    ],
)
def test_caps(made: Any, ask: Ask) -> None:
    state, served, live = made()

    async def run() -> None:
        await whole(state, served, ask)

    with pytest.raises(Unservable):
        asyncio.run(run())
    assert not live.requests and not state.admission.requests


def test_more_than_fits_is_busy_and_what_ended_makes_room(made: Any) -> None:
    state, served, _ = made(limits=Limits(requests=2), seconds=0.01)

    async def run() -> None:
        writing = await begin(state, served, Ask([[1]], n=2))
        with pytest.raises(Busy):
            await begin(state, served, Ask([[1]]))
        await writing.whole()
        writing.close()
        await whole(state, served, Ask([[1]]))

    asyncio.run(run())
    assert state.admission.requests == 0


def test_a_reader_that_stops_reading_ends_its_request_within_a_few_tokens(made: Any) -> None:
    state, served, live = made(lambda request: [7] * 4000, seconds=0.005)

    async def run() -> None:
        writing = await begin(state, served, Ask([[1]], max_tokens=4000))
        seen = 0
        while (parts := await writing.more()) is not None:
            seen += sum(len(part.text) for part in parts)
            if seen > 5:
                break
        live.go.clear()
        writing.close()
        await until(lambda: live.cancels)
        before = live.load().tokens
        live.go.set()
        await until(lambda: not live.load().active)
        assert live.load().tokens - before <= 2
        assert state.dispatches.open == 0 and state.admission.requests == 0

    asyncio.run(run())


def test_a_stop_string_ends_the_engines_work(made: Any, contract: Contract) -> None:
    state, served, live = made(lambda request: contract.tokens_of("one two three ") * 300, seconds=0.01)

    async def run() -> list[Answer]:
        return await whole(state, served, Ask([[1]], max_tokens=900, stops=("three",)))

    (answer,) = asyncio.run(run())
    assert (answer.text, answer.end) == ("one two ", "stop")
    asyncio.run(until(lambda: not live.load().active))
    assert live.load().tokens < 800


def test_one_cancelled_while_it_is_put_into_the_queue_is_not_written(made: Any) -> None:
    state, served, live = made(lambda request: [7] * 4000, seconds=0.005)
    put, there, further = live.submit, threading.Event(), threading.Event()

    def submit(ticket: int, request: LiveRequest) -> None:
        there.set()
        assert further.wait(60)
        put(ticket, request)

    live.submit = submit  # type: ignore[method-assign]

    async def run() -> None:
        held = Ask([[1]], max_tokens=4000, schema={"type": "object"})  # goes there beside the loop
        task = asyncio.ensure_future(begin(state, served, held))
        await until(there.is_set)
        task.cancel()
        await asyncio.sleep(0)
        further.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: live.requests and live.load()[:2] == (0, 0))
        assert live.load().tokens < 2000
        assert state.admission.requests == 0

    asyncio.run(run())


def test_an_engine_that_fails_is_told_without_its_words(made: Any) -> None:
    state, served, live = made()
    live.fail = RuntimeError("secret place")

    async def run() -> None:
        await whole(state, served, Ask([[1]]))

    with pytest.raises(Ended) as caught:
        asyncio.run(run())
    assert caught.value.status == 500 and "secret" not in str(caught.value)
    assert any("RuntimeError: secret place" in line for line in made.lines)


def test_an_engine_that_closes_ends_its_readers(made: Any) -> None:
    state, served, live = made(lambda request: [7] * 4000, seconds=0.005)

    async def run() -> None:
        writing = await begin(state, served, Ask([[1]], max_tokens=4000))
        live.close()
        try:
            await writing.whole()
        finally:
            writing.close()

    with pytest.raises(Ended) as caught:
        asyncio.run(run())
    assert caught.value.status == 503


def test_dispatch_lets_a_generator_go() -> None:
    async def run() -> None:
        dispatches, live = Dispatches(), ScriptedLive(lambda request: [1])
        dispatches.mailbox(live).close()
        live.close()
        assert len(dispatches._made) == 1
        del live
        await until(lambda: not dispatches._made)  # once its thread has ended

    asyncio.run(run())
