"""The Contract's tokenizer in GGUF's words: tokens with their kinds, merges or scores, special ids, stops, template.

Byte-level BPE (Llama 3, Qwen, GPT-2) becomes llama.cpp's model `gpt2`, BPE with byte fallback (Llama 2, Mistral) its
model `llama` (sentencepiece.py). What would give other tokens than the Contract's is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.contract import DATE, Contract
from tunesmith.errors import ModelError
from tunesmith.export.gguf.pretokenizer import PreTokenizer, recognise, unknown
from tunesmith.export.gguf.sentencepiece import piece_model
from tunesmith.templates import frozen

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf: TokenType


@dataclass(frozen=True)
class Vocabulary:
    """All that GGUF's keys `tokenizer.*` say."""

    model: str
    """gpt2 or llama."""
    pre: str
    """How text is cut into words."""
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    special: Mapping[str, int]
    """bos, eos, eot, unk, pad → id."""
    space_prefix: bool | None
    """Whether llama.cpp puts a space before a text; None: its way for this model."""
    template: str
    differs: str | None
    """For which texts llama.cpp's tokens are known not to be the Contract's."""


def read_vocabulary(contract: Contract, size: int, where: Path) -> Vocabulary:
    """`size`: rows of the embedding; ids beyond the tokenizer's are filled up. ModelError where it can't be exact."""
    tokenizer = json.loads(contract.tokenizer_files["tokenizer.json"])
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise unknown(f"its model is {model.get('type')}, not BPE")
    _require_plain_merging(model)
    added = _added(tokenizer)
    tokens = _tokens(model["vocab"], added, size, where)
    types = [NORMAL if i in tokens else UNUSED for i in range(size)]
    for i, one in added.items():
        types[i] = CONTROL if one["special"] else USER_DEFINED
    merges = [tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in model["merges"]]
    prefix: bool | None = None
    differs: str | None = None
    scores: Sequence[float] = ()
    if model.get("byte_fallback"):
        pieces = piece_model(tokenizer, merges, set(added), contract)
        name, pre, prefix, merges = "llama", "default", pieces.space_prefix, []
        scores = [pieces.scores.get(tokens.get(i, ""), pieces.lowest) for i in range(size)]
        for i in pieces.bytes:
            types[i] = BYTE
    else:
        cuts = _byte_level(tokenizer, tokens, merges)
        name, pre, differs = "gpt2", cuts.name, cuts.differs
    special = _special(contract)
    if "unk" in special and types[special["unk"]] in (NORMAL, CONTROL) and name == "llama":
        types[special["unk"]] = UNKNOWN
    return Vocabulary(
        model=name,
        pre=pre,
        tokens=[tokens.get(i, f"[PAD{i}]") for i in range(size)],
        types=types,
        merges=[" ".join(pair) for pair in merges],
        scores=scores,
        special=special,
        space_prefix=prefix,
        template=frozen(contract.template, DATE),
        differs=differs,
    )


def _require_plain_merging(model: Mapping[str, Any]) -> None:
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise unknown(f"its model has {key}: {model[key]!r}")


def _added(tokenizer: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Tokens that are found in a text before anything else, by id."""
    found = {int(one["id"]): one for one in tokenizer.get("added_tokens", [])}
    for one in found.values():
        odd = next((key for key in ("lstrip", "rstrip", "single_word") if one.get(key)), None)
        if (
            odd is None
            and one.get("normalized")
            and tokenizer.get("normalizer") not in (None, {"type": "NFC"})
        ):
            odd = "normalized"
        if odd:
            raise unknown(f"its token {one['content']!r} has {odd}")
    return found


def _tokens(
    vocabulary: Mapping[str, int], added: Mapping[int, Mapping[str, Any]], size: int, where: Path
) -> dict[int, str]:
    tokens = {number: text for text, number in vocabulary.items()}
    tokens |= {number: str(one["content"]) for number, one in added.items()}
    if max(tokens) >= size:
        raise ModelError(
            f"the tokenizer has the id {max(tokens):,}, the model has {size:,} embeddings",
            where=str(where),
            fix="use the tokenizer that this model was trained with",
        )
    fillers = [f"[PAD{i}]" for i in range(size) if i not in tokens]
    seen = set(fillers)
    for text in tokens.values():
        # llama.cpp ends the process for two equal texts, and reads a text up to its NUL
        if text in seen or not text or "\0" in text:
            raise unknown(f"its token {text!r} can't be told from another one there")
        seen.add(text)
    return tokens


def _byte_level(
    tokenizer: Mapping[str, Any], tokens: Mapping[int, str], merges: Sequence[Sequence[str]]
) -> PreTokenizer:
    found = recognise(tokenizer)
    lacking = set(_byte_alphabet()) - set(tokens.values())
    if lacking:
        raise unknown(f"its vocabulary lacks {len(lacking)} of the 256 bytes")
    if any(" " in part for pair in merges for part in pair):
        raise unknown("its merges hold spaces")
    return found


def _byte_alphabet() -> list[str]:
    """GPT-2's letter for each byte (openai/gpt-2, encoder.py)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in kept] + [chr(0x100 + n) for n in range(256 - len(kept))]


def _special(contract: Contract) -> dict[str, int]:
    """Programs stop at `eos` and at `eot`: the terminator, and the tokenizer's own end where that is another."""
    found = {"eos": contract.terminator_id}
    if contract.bos_id is not None:
        found["bos"] = contract.bos_id
    others = sorted(contract.stop_ids - {contract.terminator_id})
    if others:
        found["eot"] = others[0]
    if contract.pad_is_control:
        found["pad"] = contract.pad_id
    unk = contract.special.get("unk_token")
    if unk is not None and len(ids := contract.tokens_of(unk)) == 1:
        found["unk"] = ids[0]
    return found
