"""BPE with byte fallback, as SentencePiece made it (Llama 2, Mistral), as llama.cpp's model `llama`.

There the next merge is the pair whose joined token has the highest score, the leftmost of equals, and any two
neighbours that join to a token may merge. tokenizer.json lists pairs in order instead. Both mean the same only where
every such pair is listed, and the pairs of one token stand together; else the tokenizer is refused. One exception:
runs of spaces (all of one score in Mistral's and Llama 2's own files) may be listed together with the longest left
part first, as transformers' converter does today: a run then grows from its left end, as with equal scores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from tunesmith.contract import Contract
from tunesmith.example import Message
from tunesmith.export.gguf.pretokenizer import unknown

_SPACE = "▁"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}


class Pieces(NamedTuple):
    """What `llama` needs beside the tokens."""

    scores: Mapping[str, float]
    """Of each token that merges make."""
    lowest: float
    """Of all others."""
    bytes: list[int]
    """Ids that stand for one byte, in their order."""
    space_prefix: bool
    """Whether a text, and what follows a control token, begins with a space that isn't there."""


def piece_model(
    tokenizer: Mapping[str, Any], merges: Sequence[tuple[str, ...]], added: set[int], contract: Contract
) -> Pieces:
    """ModelError where llama.cpp would find other tokens."""
    vocabulary: Mapping[str, int] = tokenizer["model"]["vocab"]
    numbers = [vocabulary.get(f"<0x{byte:02X}>") for byte in range(256)]
    byte_ids = [number for number in numbers if number is not None]
    if len(byte_ids) < 256:
        raise unknown("it falls back on bytes, and lacks some of the 256")
    known = {text for text, number in vocabulary.items() if number not in added and number not in byte_ids}
    scores = _scores(merges, known)
    return Pieces(scores, -float(len(scores) + 1), byte_ids, _space_prefix(tokenizer, added, contract))


def _scores(merges: Sequence[tuple[str, ...]], known: set[str]) -> dict[str, float]:
    rank = {(left, right): number for number, (left, right) in enumerate(merges)}
    order, runs = _order(merges), _tied_runs(merges)
    if len(order) != len(set(order)):
        order = _order(merges, runs)
        if len(order) != len(set(order)):
            raise unknown("its merges have no order of tokens")
    for text in known:
        splits = [(text[:at], text[at:]) for at in range(1, len(text))]
        able = [pair for pair in splits if pair[0] in known and pair[1] in known]
        if any(pair not in rank for pair in able):
            raise unknown(f"its merges leave out a way to {text!r}")
        if len(set(text)) > 1 and _contested(able, rank):
            raise unknown(f"its merges to {text!r} prefer a later place to an earlier one")
    scores = {text: -float(number) for number, text in enumerate(order)}
    return scores | {text: scores[_SPACE] for text in runs if _SPACE in scores}


def _order(merges: Sequence[tuple[str, ...]], tied: Collection[str] = ()) -> list[str]:
    """The tokens that merges make, in order; those of `tied` as one, under the name of a single space."""
    return [text for text, _ in groupby(_SPACE if a + b in tied else a + b for a, b in merges)]


def _tied_runs(merges: Sequence[tuple[str, ...]]) -> set[str]:
    """Runs of spaces, where their pairs are sorted by the left part, the longest first."""
    spaces = [(left, right) for left, right in merges if set(left + right) == {_SPACE}]
    parts = [len(left) for left, _ in spaces]
    return {left + right for left, right in spaces} if parts == sorted(parts, reverse=True) else set()


def _contested(pairs: Sequence[tuple[str, str]], rank: Mapping[tuple[str, str], int]) -> bool:
    """Whether in a | b | c both a + b and b + c are this token, and the list takes the second."""
    return any(
        first[1] == second[0] and rank[second] < rank[first]
        for first in pairs
        for second in pairs
        if first != second
    )


def _space_prefix(tokenizer: Mapping[str, Any], added: set[int], contract: Contract) -> bool:
    normalizer, cuts = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    if cuts is None and normalizer == {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]}:
        return True
    if cuts is None and normalizer in (_REPLACE, {"type": "Sequence", "normalizers": [_REPLACE]}):
        return False
    if normalizer is None and cuts and cuts.get("type") == "Metaspace" and not cuts.get("split", True):
        scheme, same = cuts.get("prepend_scheme", "always"), cuts.get("replacement") == _SPACE
        if same and scheme == "never":
            return False
        if same and scheme == "first" and contract.prompt_ids([Message("user", "text")])[0] in added:
            return False  # only a text that begins with a word gets a space, and no prompt does
    raise unknown(f"normalizer {normalizer}, pre_tokenizer {cuts}")
