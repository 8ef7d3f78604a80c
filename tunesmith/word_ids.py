"""Token ids by looking words up: what a byte-level BPE tokenizer says, for words that come again and again.

Such a tokenizer (GPT-2, Llama 3, Qwen) cuts a text at its added tokens, cuts the rest into words by one regular
expression, and encodes each word by itself. The expression is the tokenizer's own, run by other engines (`re` for
ASCII, `regex`); each character is allowed only after an engine has been seen to cut around it as the tokenizer does.
Where anything else is at work (a normaliser, other pre-tokenizers, added tokens that take spaces with them), there is
no short cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_Expression = Any  # of `re` or `regex`
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # what ByteLevel cuts by itself
MOST_WORDS = 500_000  # words remembered, of at most LONGEST characters
LONGEST = 40
# a character beside letters, digits, spaces, line breaks, signs and itself, and in a contraction
_PROBE = (
    "a{0}a a'{0}a a'r{0}a a'v{0}a a'l{0}a {0}'s {0} {0}{0}  {0}1{0}1'{0} '{0} '{0}'{0}"
    "\n{0}\n {0}\r\n{0}.{0}. .{0}12345{0}\t{0}"
)


class BatchIds:
    """Ids of many texts: words looked up where that is sound, the rest by the tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _words(self) -> WordIds | None:
        return word_ids(self._tokenizer)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text, without any that a post-processor adds."""
        looked_up = [self._words.ids(text) if self._words else None for text in texts]
        left = [text for text, ids in zip(texts, looked_up, strict=True) if ids is None]
        rest = iter(self._tokenizer.encode_batch_fast(left, add_special_tokens=False))
        return [next(rest).ids if ids is None else ids for ids in looked_up]


def word_ids(tokenizer: Tokenizer) -> WordIds | None:
    """The short cut for a tokenizer; None where its words are not looked up so simply."""
    added = tokenizer.get_added_tokens_decoder().values()
    if tokenizer.normalizer is not None or type(tokenizer.model).__name__ != "BPE" or tokenizer.model.dropout:
        return None
    if any(one.lstrip or one.rstrip or one.single_word or one.normalized for one in added):
        return None
    pattern = _pattern(json.loads(tokenizer.pre_tokenizer.__getstate__()) if tokenizer.pre_tokenizer else {})
    return WordIds(tokenizer, pattern) if pattern else None


def _pattern(state: dict[str, Any]) -> str | None:
    """The expression that cuts words, where that and bytes are all that the pre-tokenizer does."""
    if state.get("type") == "ByteLevel" and state["use_regex"] and not state["add_prefix_space"]:
        return _GPT2
    parts = state.get("pretokenizers") or []
    if state.get("type") != "Sequence" or [part.get("type") for part in parts] != ["Split", "ByteLevel"]:
        return None
    split, level = parts
    plain = split["behavior"] == "Isolated" and not split["invert"]
    if not plain or level["add_prefix_space"] or level["use_regex"]:
        return None
    found = split["pattern"].get("Regex")
    return str(found) if found else None


def _ascii(pattern: str) -> str | None:
    """The expression for ASCII text, in the words of `re`."""
    classes = {r"\p{L}": "A-Za-z", r"\p{N}": "0-9"}
    made, inside = [], False
    for part in re.findall(r"\\p\{\w+\}|\\.|.", pattern, re.DOTALL):
        inside = part == "[" or (inside and part != "]")
        if part.startswith(r"\p") and part not in classes:
            return None
        made.append(
            classes[part] if inside and part in classes else f"[{classes[part]}]" if part in classes else part
        )
    return "".join(made)


class _Known(dict[str, tuple[int, ...]]):
    """Word → ids; a word that is asked for first is encoded and, where there is room, remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer as Bare
        from tokenizers.pre_tokenizers import ByteLevel

        super().__init__()
        self._bare = Bare(tokenizer.model)  # no expression and no added tokens: one word as it stands
        self._bare.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._bare.encode(word, add_special_tokens=False).ids)
        if len(self) < MOST_WORDS and len(word) <= LONGEST:
            self[word] = ids
        return ids


class WordIds:
    """Made by `word_ids`."""

    def __init__(self, tokenizer: Tokenizer, pattern: str) -> None:
        import regex

        self._cut = tokenizer.pre_tokenizer.pre_tokenize_str
        self._words: _Expression = regex.compile(pattern)
        self._ascii_words: _Expression = self._words
        if (simple := _ascii(pattern)) is not None:
            with suppress(re.error):
                self._ascii_words = re.compile(simple, re.ASCII)
        added = {one.content: number for number, one in tokenizer.get_added_tokens_decoder().items()}
        longest = sorted(added, key=len, reverse=True)
        self._added = {text: (number,) for text, number in added.items()}
        self._apart = re.compile(f"({'|'.join(map(re.escape, longest))})" if longest else "(?!)")
        self._known = _Known(tokenizer)
        self._safe: set[str] = set()
        self._unsafe: set[str] = set()
        self._ascii = all(self._alike(chr(code), self._ascii_words) for code in range(128))

    def ids(self, text: str) -> list[int] | None:
        """Ids without any that a post-processor adds; None where a character is cut around differently."""
        cut = self._ascii_words.findall
        if not (self._ascii and text.isascii()):
            cut = self._words.findall
            new = set(text) - self._safe
            if new and not all(map(self._is_safe, sorted(new))):
                return None
        found: list[int] = []
        for number, part in enumerate(self._apart.split(text)):
            if number % 2:
                found += self._added[part]
            elif part:
                words = cut(part)
                if sum(map(len, words)) != len(part):  # what the expression passes over is a word, too
                    return None
                found += chain.from_iterable(map(self._known.__getitem__, words))
        return found

    def _is_safe(self, character: str) -> bool:
        if character in self._safe:
            return True
        if character in self._unsafe:
            return False
        alike = self._alike(character, self._words)
        (self._safe if alike else self._unsafe).add(character)
        return alike

    def _alike(self, character: str, words: _Expression) -> bool:
        probe = _PROBE.format(character)
        return [span for _, span in self._cut(probe)] == [one.span() for one in words.finditer(probe)]
