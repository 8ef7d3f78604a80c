"""Which of llama.cpp's ways of cutting text into words is a tokenizer's own; refused where none is.

llama.cpp has them built in, by name. A name is given here only for exactly the components and expressions that it
stands for (llama.cpp: src/llama-vocab.cpp, whose comments quote the expressions of tokenizer.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tunesmith.errors import ModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# (expression, ignore_merges: a whole word that is a token stays one, whatever the merges) → llama.cpp's name
_SPLITS = {
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",  # the same cuts, merges obeyed
    (_QWEN2, False): "qwen2",
    (_TEKKEN, True): "tekken",
}


class PreTokenizer(NamedTuple):
    """llama.cpp's name, and for which texts its tokens are known to differ from the tokenizer's."""

    name: str
    differs: str | None = None


def recognise(tokenizer: Mapping[str, Any]) -> PreTokenizer:
    """Of a byte-level BPE tokenizer (tokenizer.json's content). ModelError names what llama.cpp lacks."""
    cuts, ignore = tokenizer.get("pre_tokenizer") or {}, bool(tokenizer["model"].get("ignore_merges"))
    name = _by_bytes(cuts, ignore) or _by_split(cuts, ignore)
    if name is None:
        raise unknown(f"pre_tokenizer {_short(cuts)} with ignore_merges {str(ignore).lower()}")
    normalizer = tokenizer.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        raise unknown(f"normalizer {_short(normalizer)}")
    if name == "tekken":
        return PreTokenizer(name, "text with combining marks (Kannada, Hindi, Thai) or accented capitals")
    return PreTokenizer(name, "text that is not in Unicode's composed form (NFC)" if normalizer else None)


def unknown(what: str) -> ModelError:
    """The refusal: never a guess, since other cuts mean other tokens without any error."""
    return ModelError(
        f"llama.cpp has nothing that cuts text as this tokenizer does: {what}",
        where="tokenizer.json",
        fix="leave export.gguf out; the merged folder serves with transformers and vLLM",
    )


def _by_bytes(cuts: Mapping[str, Any], ignore: bool) -> str | None:
    """GPT-2's own expression, alone or after single digits."""
    parts = _parts(cuts)
    if ignore or not parts or not _is_level(parts[-1], own_expression=True):
        return None
    before = parts[:-1]
    if not before:
        return "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    return "smollm" if before == [digits] else None


def _by_split(cuts: Mapping[str, Any], ignore: bool) -> str | None:
    parts = _parts(cuts)
    if len(parts) != 2 or not _is_level(parts[1], own_expression=False):
        return None
    split = parts[0]
    plain = split.get("type") == "Split" and split.get("behavior") == "Isolated" and not split.get("invert")
    pattern = (split.get("pattern") or {}).get("Regex") if plain else None
    return _SPLITS.get((str(pattern), ignore))


def _parts(cuts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(cuts.get("pretokenizers", [])) if cuts.get("type") == "Sequence" else [cuts]


def _is_level(part: Mapping[str, Any], own_expression: bool) -> bool:
    return (
        part.get("type") == "ByteLevel"
        and not part.get("add_prefix_space")
        and bool(part.get("use_regex", True)) == own_expression
    )


def _short(value: object, most: int = 300) -> str:
    text = str(value)
    return text if len(text) <= most else text[:most] + " …"
