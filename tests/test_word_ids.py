"""Ids by looking words up are the tokenizer's own ids, or there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama3_referee import write_llama3_tokenizer
from tokenizers import Tokenizer

from tunesmith import starter
from tunesmith import word_ids as module
from tunesmith.contract import Contract
from tunesmith.example import Example
from tunesmith.word_ids import WordIds, word_ids

PIECES = [
    "word", "Word", " a", "'s", "'S", "'ll", "'LL", "’s", "ſ", "K", "İ", "don't", "12345", "１２", "²", "½", "Ⅷ", "٣",
    " ", "  ", "\t", "\n", "\r\n", "\n\n ", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u2028", "\u3000",
    "\u200b", "\u200d", "\ufeff", ".", "...", "?!", "—", "_", "e\u0301", "ಕನ್ನಡ", "हिन्दी", "漢字かな", "😀", "👩‍🔬",
    "\x00", "\x7f",
    "<|eot_id|>", "<|start_header_id|>", "<|eot_id", "|>", "ǅ", "ª", "\u0345", "\U0001d7d8", "\U00016ac0",
]  # fmt: skip


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama3_tokenizer(tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="module", params=["llama3", "starter"])
def tokenizer(llama3: Path, request: pytest.FixtureRequest) -> Tokenizer:
    folder = llama3 if request.param == "llama3" else Path(starter.__file__).parent / "base"
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def right(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="module")
def words(tokenizer: Tokenizer) -> WordIds:
    made = word_ids(tokenizer)
    assert made is not None
    return made


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=30).map("".join))
def test_any_text_has_the_tokenizers_ids(tokenizer: Tokenizer, words: WordIds, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert words.ids(text) in (None, right(tokenizer, text))


def test_texts_of_every_day_are_looked_up(tokenizer: Tokenizer, words: WordIds) -> None:
    text = "<|start_header_id|>user<|end_header_id|>\n\nMrs O'Neil's dose:  12.5 mg\tಕನ್ನಡ, 漢字 — naïve?<|eot_id|>"
    for _ in range(2):
        assert words.ids(text) == right(tokenizer, text)
    assert words.ids("") == []


def test_what_does_not_fit_is_encoded_each_time(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WORDS", 3)
    made = word_ids(tokenizer)
    text = "one two three four five " + "x" * 100
    assert made is not None and made.ids(text) == made.ids(text) == right(tokenizer, text)
    assert len(made._known) == 3


@pytest.mark.parametrize("change", [(r"\p{N}{1,3}", r"\p{N}{1,2}"), (r"|\s+(?!\S)", ""), (r"(?i:", "(?:")])
def test_another_expression_is_seen(
    llama3: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str]
) -> None:
    """The mutant: an engine that cuts differently. ASCII is then not looked up, nor is anything else."""
    tokenizer = Tokenizer.from_file(str(llama3 / "tokenizer.json"))
    real = module._pattern

    def other(state: dict[str, Any]) -> str | None:
        pattern = real(state)
        assert pattern is not None and change[0] in pattern
        return pattern.replace(*change)

    monkeypatch.setattr(module, "_pattern", other)
    made = word_ids(tokenizer)
    assert made is not None and made.ids("IT'S 12345  ok\n") is None


def test_other_tokenizers_have_no_short_cut(tokenizer: Tokenizer) -> None:
    state = json.loads(tokenizer.to_str())
    first = state["added_tokens"][0]
    for change in (
        {"normalizer": {"type": "NFC"}},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
        {"pre_tokenizer": None},
        {"added_tokens": [first | {"lstrip": True}, *state["added_tokens"][1:]]},
        {"added_tokens": [first | {"normalized": True}, *state["added_tokens"][1:]]},
        {"model": state["model"] | {"dropout": 0.1}},
    ):
        assert word_ids(Tokenizer.from_str(json.dumps(state | change))) is None, change


def test_rows_are_encoded_alike_with_and_without_it(llama3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Example.make(f"what's {piece} in {i} words?", f"{piece} it's") for i, piece in enumerate(PIECES)]
    fast = Contract.make(llama3, template="llama3").encode_batch(rows)
    monkeypatch.setattr("tunesmith.word_ids.word_ids", lambda _: None)
    slow = Contract.make(llama3, template="llama3").encode_batch(rows)
    assert [getattr(one, "ids", str(one)) for one in fast] == [getattr(one, "ids", str(one)) for one in slow]
    assert sum(hasattr(one, "ids") for one in fast) > 40
