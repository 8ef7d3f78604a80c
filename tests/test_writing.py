"""Tokens to text to clients: whole characters, stop strings never shown, counts, ends; readers that go away."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served_models import ReadyModels, ScriptedLive, starter_contract
from tiny_run import write_byte_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from tunesmith.contract import Contract
from tunesmith.example import Message
from tunesmith.generate.protocol import LiveRequest, LiveToken, TokenEvent
from tunesmith.serve.dispatch import Dispatches
from tunesmith.serve.errors import Ended, TooLong
from tunesmith.serve.limits import Limits
from tunesmith.serve.protocol import Busy, Served, Unservable
from tunesmith.serve.state import ServeState
from tunesmith.serve.writing import choice as writing_choice
from tunesmith.serve.writing.choice import Choice
from tunesmith.serve.writing.detokenise import Detokeniser, Pieces
from tunesmith.serve.writing.prompt import answer_schema, chat_prompt, given_prompt, raw_prompt
from tunesmith.serve.writing.stops import StopFinder
from tunesmith.serve.writing.writing import Answer, Ask, begin

NASTY = [
    "ಶ್ವಾಸಕೋಶದ ಕ್ಯಾನ್ಸರ್ ಹಂತ IV",
    "naïve 😀👩‍👩‍👧‍👦 family, 3 cm",
    "a\u200bb\u00a0c  \t\n\n  d\ufeff",
    "\ufffd is a real one, 漢字かな交じり文",
    "<|eot_id|",
    '{"stage": "IV", "size": 3.5}',
]


@pytest.fixture(scope="module")
def contract() -> Contract:
    return starter_contract()


@pytest.fixture(scope="module")
def byte_contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    return Contract.make(write_byte_tokenizer(tmp_path_factory.mktemp("bytes")), template="llama3")


class SentencePieceLike:
    """A tokenizer with byte fallback and spaces as ▁, as Llama 2's; what `Contract.decode` says of its ids."""

    def __init__(self) -> None:
        words = ["<unk>", "</s>", "▁", "▁a", "b", "▁é", "ß", "▁▁", "é"]
        vocabulary = {word: n for n, word in enumerate(words)} | {
            f"<0x{byte:02X}>": len(words) + byte for byte in range(256)
        }
        self.tokenizer = Tokenizer(BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
        self.tokenizer.add_special_tokens(["</s>"])
        parts = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        self.tokenizer.decoder = decoders.Sequence(parts)
        self.size = len(vocabulary)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def shown(detokeniser: Any, ids: Sequence[int]) -> list[str]:
    return [*(detokeniser.push(one) for one in ids), detokeniser.finish()]


# ---- characters


@pytest.mark.parametrize("text", NASTY)
def test_text_comes_in_whole_characters(contract: Contract, byte_contract: Contract, text: str) -> None:
    for one in (contract, byte_contract):
        ids = one.tokens_of(text)
        parts = shown(Detokeniser(Pieces.of(one)), ids)
        assert "".join(parts) == one.decode(ids) == text
        assert sum("\ufffd" in part for part in parts) == text.count("\ufffd")
        assert len([part for part in parts if part]) > 2, "it comes as it is written"


@given(st.lists(st.integers(0, 2047), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_ids_come_to_what_the_contract_decodes(ids: list[int]) -> None:
    contract = _STARTER
    ids = [one for one in ids if one not in contract.stop_ids]
    assert "".join(shown(Detokeniser(Pieces.of(contract)), ids)) == contract.decode(ids)


@given(st.lists(st.one_of(st.integers(0, 8), st.integers(0, 264)), max_size=30))
@settings(max_examples=400, deadline=None)
def test_any_ids_with_byte_fallback_too(ids: list[int]) -> None:
    like = _LIKE
    assert "".join(shown(Detokeniser(Pieces(like)), ids)) == like.decode(ids)  # type: ignore[arg-type]


_STARTER, _LIKE = starter_contract(), SentencePieceLike()


class _Halves(Detokeniser):
    """The mutant: each token decoded by itself."""

    def push(self, one: int) -> str:
        return str(self._pieces.tokenizer.decode([one]))


class _NoHold(Detokeniser):
    """The mutant: a run of bytes is shown before it has ended."""

    def push(self, one: int) -> str:
        self._pieces.fallback = False
        return super().push(one)


def test_mutant_detokenisers_are_caught(contract: Contract) -> None:
    parts = shown(_Halves(Pieces.of(contract)), contract.tokens_of(NASTY[0]))
    assert "".join(parts) != NASTY[0] and any("\ufffd" in part for part in parts)
    bytes_of = [_LIKE.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in (0xC3, 0xA9, 0xFF)]
    with pytest.raises(AssertionError):  # é is shown, and is none once 0xFF has come
        assert "".join(shown(_NoHold(Pieces(_LIKE)), bytes_of)) == _LIKE.decode(bytes_of)  # type: ignore[arg-type]


def test_bytes_of_tokens_add_up_to_the_text(contract: Contract, byte_contract: Contract) -> None:
    for one in (contract, byte_contract):
        pieces = Pieces.of(one)
        for text in NASTY:
            assert b"".join(map(pieces.bytes_of, one.tokens_of(text))).decode() == text
        assert pieces.bytes_of(one.terminator_id).decode() == one.terminator


# ---- stop strings

_TEXT = st.text("ab\n#", max_size=24)


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Said plainly: character by character, until a stop string is whole."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def _read(finder: StopFinder, parts: Sequence[str]) -> tuple[list[str], bool]:
    seen = []
    for part in parts:
        text, stopped = finder.push(part)
        seen.append(text)
        if stopped:
            return seen, True
    return [*seen, finder.finish()], False


@given(_TEXT, st.lists(st.text("ab\n#", min_size=1, max_size=5), max_size=4), st.lists(st.integers(0, 24)))
@settings(max_examples=1000, deadline=None)
def test_stop_strings_cut_at_the_same_place_wherever_the_borders_lie(
    text: str, stops: list[str], borders: list[int]
) -> None:
    at = sorted({0, len(text), *(one for one in borders if one < len(text))})
    parts = [text[begin:end] for begin, end in itertools.pairwise(at)]
    seen, stopped = _read(StopFinder(stops), parts)
    assert ("".join(seen), stopped) == _cut(text, stops)


class _Eager(StopFinder):
    """The mutant: nothing is held back, so the first part of a stop string is shown."""

    def _begin_of_a_stop(self, text: str) -> int:
        return len(text)


def test_mutant_that_shows_a_part_of_a_stop_string_is_caught() -> None:
    assert _read(StopFinder(["###"]), ["ab#", "##c"]) == (["ab", ""], True)
    with pytest.raises(AssertionError):
        assert _read(_Eager(["###"]), ["ab#", "##c"]) == (["ab", ""], True)


def test_only_what_may_become_a_stop_string_is_held() -> None:
    finder = StopFinder(["\n\nUser:"])
    assert finder.push("one\ntwo") == ("one\ntwo", False)
    assert finder.push("\n") == ("", False)
    assert finder.push("three") == ("\nthree", False)
    assert finder.push("\n\nUse") == ("", False)
    assert finder.finish() == "\n\nUse"


# ---- one answer


def choice_of(
    contract: Contract, ids: Sequence[int], end: str, stops: tuple[str, ...] = ()
) -> tuple[Choice, list[Any]]:
    made = Choice(0, Pieces.of(contract), contract.stop_ids, stops, telling=True)
    parts = []
    for place, one in enumerate(ids):
        last = place == len(ids) - 1
        done = made.feed(TokenEvent(1, LiveToken(one, -float(place)), end=end if last else ""))  # type: ignore[arg-type]
        parts.append(made.part())
        if done:
            break
    return made, [part for part in parts if part]


def test_the_token_that_ends_an_answer_counts_and_is_not_shown(contract: Contract) -> None:
    ids = contract.tokens_of("stage IV")
    made, parts = choice_of(contract, [*ids, contract.terminator_id], "stop")
    assert (made.tokens, made.end) == (len(ids) + 1, "stop")
    assert "".join(part.text for part in parts) == "stage IV"
    assert [told.token.id for part in parts for told in part.told] == [*ids, contract.terminator_id]
    cut, parts = choice_of(contract, ids, "length")
    assert (cut.tokens, cut.end) == (len(ids), "length")


def test_a_stop_string_in_the_middle_of_tokens_ends_it(contract: Contract) -> None:
    ids = contract.tokens_of("grade 2, stage IV, left")
    made, parts = choice_of(contract, ids, "length", ("age IV",))
    assert "".join(part.text for part in parts) == "grade 2, st"
    assert made.end == "stop" and made.tokens < len(ids)
    assert not any(part.text and "age" in part.text for part in parts)
    told = [told for part in parts for told in part.told]
    assert all(one.begin < len("grade 2, st") for one in told), "tokens of the stop string are not told"


def test_a_stop_string_whose_beginning_ends_the_answer_is_shown(contract: Contract) -> None:
    _, parts = choice_of(contract, [*contract.tokens_of("a ##"), contract.terminator_id], "stop", ("###",))
    assert "".join(part.text for part in parts) == "a ##"


def test_tokens_are_told_with_the_text_that_they_write(contract: Contract) -> None:
    text = "😀 ಕ್ಯಾನ್ಸರ್"
    ids = contract.tokens_of(text)
    _, parts = choice_of(contract, ids, "length")
    seen, told = "", []
    for part in parts:
        seen += part.text
        told += part.told
        assert all(one.begin < len(seen) for one in told)
    pieces = Pieces.of(contract)
    assert seen == text and b"".join(pieces.bytes_of(one.token.id) for one in told).decode() == text


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
        before = live.load().tokens
        writing.close()
        await asyncio.sleep(0.2)
        assert live.load().tokens - before <= 2
        assert live.load().active == 0 and state.dispatches.open == 0 and state.admission.requests == 0

    asyncio.run(run())


def test_a_stop_string_ends_the_engines_work(made: Any, contract: Contract) -> None:
    state, served, live = made(lambda request: contract.tokens_of("one two three ") * 300, seconds=0.002)

    async def run() -> list[Answer]:
        return await whole(state, served, Ask([[1]], max_tokens=900, stops=("three",)))

    (answer,) = asyncio.run(run())
    assert (answer.text, answer.end) == ("one two ", "stop")
    time.sleep(0.05)
    assert live.load().active == 0 and live.load().tokens < 40


def test_one_cancelled_while_it_is_put_into_the_queue_is_not_written(made: Any) -> None:
    state, served, live = made(lambda request: [7] * 4000, seconds=0.005)
    slow = live.submit

    def submit(ticket: int, request: LiveRequest) -> None:
        time.sleep(0.1)
        slow(ticket, request)

    live.submit = submit  # type: ignore[method-assign]

    async def run() -> None:
        task = asyncio.ensure_future(begin(state, served, Ask([[1]], max_tokens=4000)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.3)
        assert live.requests and live.load().active == 0 and live.load().tokens < 10
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
        await asyncio.sleep(0.05)
        assert len(dispatches._made) == 1
        del live
        assert len(dispatches._made) == 0

    asyncio.run(run())


def test_mutant_that_counts_without_the_stop_token_is_caught(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Choice._take

    def fewer(self: Choice, token: LiveToken) -> None:
        take(self, token)
        self.tokens -= token.id in self._stop_ids

    monkeypatch.setattr(writing_choice.Choice, "_take", fewer)
    with pytest.raises(AssertionError):
        test_the_token_that_ends_an_answer_counts_and_is_not_shown(contract)
