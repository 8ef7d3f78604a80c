"""From an engine's tokens to text that can be shown: whole characters, stop strings, one answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served_models import starter_contract
from tiny_run import write_byte_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from tunesmith.contract import Contract
from tunesmith.generate.protocol import LiveToken, TokenEvent
from tunesmith.serve.writing import choice as writing_choice
from tunesmith.serve.writing.choice import Choice
from tunesmith.serve.writing.detokenise import Detokeniser, Pieces
from tunesmith.serve.writing.stops import StopFinder

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
