"""Token ids to text while they come: never half a character, and in sum exactly what `Contract.decode` says of all.

A byte-level tokenizer's token may end inside a character, which then decodes to U+FFFD until the rest has come. One
with byte fallback (`<0xE0>`) decodes a whole run of such tokens anew with each of them: the run is held until it ends.
"""

from __future__ import annotations

import json
import re
from typing import Any
from weakref import WeakKeyDictionary

from tunesmith.contract import Contract

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_HALF = "\ufffd"


class Pieces:
    """Single tokens of a contract's tokenizer as bytes."""

    def __init__(self, contract: Contract) -> None:
        self.tokenizer = contract.tokenizer
        added = self.tokenizer.get_added_tokens_decoder()
        self.control = {number: one.content for number, one in added.items() if one.special}
        self._added = {number: one.content for number, one in added.items()}
        kinds = _kinds(self.tokenizer.decoder)
        self.byte_level = "ByteLevel" in kinds
        self.fallback = "ByteFallback" in kinds
        self._bytes = _byte_of_letter() if self.byte_level else {}

    @classmethod
    def of(cls, contract: Contract) -> Pieces:
        """Made once for each contract."""
        if contract not in _MADE:
            _MADE[contract] = cls(contract)
        return _MADE[contract]

    def is_byte(self, one: int) -> bool:
        """Whether it stands for a single byte of a character that has no token."""
        return _BYTE.fullmatch(self.tokenizer.id_to_token(one) or "") is not None

    def shows(self, one: int, control: bool) -> bool:
        """Whether decoding looks at it at all; a model's output may be wider than its vocabulary."""
        return self.tokenizer.id_to_token(one) is not None and (control or one not in self.control)

    def bytes_of(self, one: int) -> bytes:
        """What the token writes; a control token is spelled."""
        if one in self._added:
            return self._added[one].encode()
        spelled = self.tokenizer.id_to_token(one) or ""
        if self.byte_level:
            try:
                return bytes([self._bytes[letter] for letter in spelled])
            except KeyError:
                return spelled.encode()
        if self.fallback and (found := _BYTE.fullmatch(spelled)):
            return bytes([int(found[1], 16)])
        return spelled.replace("▁", " ").encode()


_MADE: WeakKeyDictionary[Contract, Pieces] = WeakKeyDictionary()


class Detokeniser:
    """Of one answer. `control`: whether control tokens are spelled; in answers they are left out."""

    def __init__(self, pieces: Pieces, control: bool = False) -> None:
        self._pieces, self._control = pieces, control
        self._window: list[int] = []  # what has to be decoded with the next token
        self._context = (
            0  # tokens at its head whose text is out; other decoders than byte level look back at them
        )
        self._out = 0  # characters of the window's text that are out

    def push(self, one: int) -> str:
        """What can be shown now that this token has come."""
        if not self._pieces.shows(one, self._control):
            return ""
        self._window.append(one)
        if self._pieces.fallback and self._pieces.is_byte(one):
            return ""
        text = self._text()
        whole = not text.endswith(_HALF)
        sure = len(text) if whole else len(text) - 1  # only the last character may still become another
        if sure <= self._out:
            return ""
        shown = text[self._out : sure]
        self._out = sure
        if whole:
            self._begin_window()
        return shown

    def finish(self) -> str:
        """What was held back: no more tokens come."""
        return self._text()[self._out :]

    def _begin_window(self) -> None:
        if self._pieces.byte_level:
            self._window, self._out = [], 0
            return
        self._window = self._window[self._context :]
        self._context = len(self._window)
        self._out = len(self._text())

    def _text(self) -> str:
        return str(self._pieces.tokenizer.decode(self._window, skip_special_tokens=not self._control))


def _kinds(decoder: Any) -> set[str]:
    """Names of a decoder's parts."""
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {part["type"] for part in state.get("decoders", [state])}


def _byte_of_letter() -> dict[str, int]:
    """The letters by which byte-level vocabularies spell bytes (GPT-2's table: printable ones stand for themselves)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
