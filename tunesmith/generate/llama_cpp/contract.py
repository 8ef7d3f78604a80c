"""The Contract of a bare GGUF file: the one that lies beside it, or one made of the file's own vocabulary.

A file of byte-level BPE (Llama 3, Qwen, GPT-2) holds tokens, merges and template; how text is cut before the merges is
only named (`tokenizer.ggml.pre`). The names below are known, any other is refused, never guessed; and what was made
must give the ids that llama.cpp gives on texts that tokenizers disagree about.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.example import Message
from tunesmith.generate.llama_cpp.file import GgufFile, read_gguf
from tunesmith.generate.llama_cpp.library import require_llama_cpp
from tunesmith.templates import choose_template

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}

# as the models' own tokenizer.json write them; not tekken (Mistral Nemo), whose marks llama.cpp cuts otherwise
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS: dict[str, str] = {
    "llama-bpe": rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_LETTERS}|\p{{N}}|{_REST}",
    "gpt-2": "",  # the byte-level rule's own
}
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
_WHOLE_WORDS = {"llama-bpe"}  # a word that is a token is taken whole
_COMPOSED = {"qwen2"}  # Unicode's form C before all else

NASTY = (
    "Plain words, twice.  Two spaces;\ttabs\t\tand\n\nline breaks \n \r\n at the end   ",
    "I'll say it's THEY'RE we'd 1234567890 3.14159 v2.0-rc1 x86_64 ½ ², ³",
    "ಕನ್ನಡದಲ್ಲಿ ಬರೆಯಿರಿ, हिन्दी में, 日本語と中文, العربية, ελληνικά, Žluťoučký",
    "emoji 👩🏽‍⚕️🏳️‍🌈 👍 zero\u200bwidth\u200d\u2060 nbsp\u00a0thin\u2009ideographic\u3000space",
    "<|look|> <|alike|> [INST] <s> </s> ### Answer: {\"a\": [1, -2.5e-3, null]}\\n",
    "        eight spaces, __init__(self, *args): # → ≠ … — “quoted” ‘single’ $€₹",
)  # fmt: skip


def contract_of_gguf(path: Path) -> Contract:
    """How prompts for this file are rendered. ModelError where its tokenizer can't be told, or is another."""
    file = read_gguf(path)
    beside = path.parent
    if (beside / "contract.json").is_file():
        contract = Contract.load(beside)
        _require_same_vocabulary(file, contract)
        return contract
    contract = _made_of(file)
    _require_same_ids(file, contract)
    return contract


def tokens_by_llama_cpp(path: Path, texts: list[str], *, as_prompts: bool = False) -> list[list[int]]:
    """Ids that llama.cpp itself gives for texts, control tokens read as such.

    `as_prompts`: as programs ask for a whole prompt's, with the BOS and EOS that the file wants added; else without.
    """
    library = require_llama_cpp()
    parameters = library.llama_model_default_params()
    parameters.vocab_only, parameters.n_gpu_layers = True, 0
    model = library.llama_model_load_from_file(bytes(path), parameters)
    if not model:
        raise ModelError("llama.cpp can't read this file's vocabulary", where=str(path), fix=_PASS)
    try:
        vocabulary, found = library.llama_model_get_vocab(model), []
        for text in texts:
            raw = text.encode()
            room = (ctypes.c_int32 * (len(raw) + 8))()
            count = library.llama_tokenize(vocabulary, raw, len(raw), room, len(room), as_prompts, True)
            found.append(list(room[: max(count, 0)]))
        return found
    finally:
        library.llama_model_free(model)


_PASS = (
    "put the model's tokenizer beside the file: tokenizer.json, tokenizer_config.json and a contract.json, as "
    "`tunesmith export` writes them; or serve the model's Hugging Face folder"
)


def _require_same_vocabulary(file: GgufFile, contract: Contract) -> None:
    tokens = _tokens(file)
    vocabulary = json_vocabulary(contract)
    for token, one in vocabulary.items():
        if one >= len(tokens) or tokens[one] != token:
            has = tokens[one] if one < len(tokens) else "nothing"
            raise ModelError(
                f"the tokenizer beside the file is another: id {one} is {token!r} there, {has!r} in the file",
                where=f"{file.path}, {file.path.parent / 'tokenizer.json'}",
                fix="put the file beside its own tokenizer, or export the run again: tunesmith export RUN",
            )


def json_vocabulary(contract: Contract) -> dict[str, int]:
    """Every token of tokenizer.json with its id, the added ones included."""
    from tokenizers import Tokenizer

    text = contract.tokenizer_files["tokenizer.json"].decode("utf-8")
    return dict(Tokenizer.from_str(text).get_vocab(with_added_tokens=True))


def _tokens(file: GgufFile) -> list[str]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError("the GGUF file holds no vocabulary", where=str(file.path), fix=_PASS)
    return list(tokens)


def _made_of(file: GgufFile) -> Contract:
    kind = file.metadata.get("tokenizer.ggml.model")
    named = str(file.metadata.get("tokenizer.ggml.pre", ""))
    cut = _SAME.get(named, named)
    if kind != "gpt2" or cut not in _CUTS:
        known = ", ".join([*_CUTS, *_SAME])
        raise ModelError(
            f"the file's tokenizer ({kind or 'none'}, pre-tokenizer {named or 'not named'}) can't be rebuilt from the "
            f"file; byte-level BPE with one of these can: {known}",
            where=str(file.path),
            fix=_PASS,
        )
    tokens = _tokens(file)
    special = {
        role: tokens[int(one)]
        for role, key in _ROLES.items()
        if (one := file.metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None and int(one) < len(tokens)
    }
    if "eos_token" not in special:
        raise ModelError("the GGUF file names no end of text", where=str(file.path), fix=_PASS)
    own = file.metadata.get("tokenizer.chat_template")
    name, source = choose_template("auto", str(own) if own else None)
    files = {
        "tokenizer.json": json.dumps(_tokenizer(file, tokens, cut), ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(special, ensure_ascii=False).encode(),
    }
    return Contract(source, name, special, None, "user", {}, files)


def _tokenizer(file: GgufFile, tokens: list[str], cut: str) -> Mapping[str, Any]:
    """tokenizer.json."""
    types = file.metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    added = [
        {
            "id": one,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for one, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    plain = {
        token: one
        for one, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind not in (_CONTROL, _USER_DEFINED, _UNUSED)
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": not _CUTS[cut],
    }
    split = {"type": "Split", "pattern": {"Regex": _CUTS[cut]}, "behavior": "Isolated", "invert": False}
    merges = file.metadata.get("tokenizer.ggml.merges") or []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if cut in _COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}
        if _CUTS[cut]
        else byte_level,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut in _WHOLE_WORDS,
            "vocab": plain,
            "merges": [list(one.split(" ", 1)) for one in merges],
        },
    }


def _require_same_ids(file: GgufFile, contract: Contract) -> None:
    texts = [*NASTY, contract.render([Message("user", NASTY[0])], answer_next=True)]
    for text, theirs in zip(texts, tokens_by_llama_cpp(file.path, texts), strict=True):
        ours = contract.tokens_of(text)
        if ours != theirs:
            same = (a == b for a, b in zip(ours, theirs, strict=False))
            at = next((i for i, equal in enumerate(same) if not equal), min(len(ours), len(theirs)))
            raise ModelError(
                f"the tokenizer made of the file gives other ids than llama.cpp, from token {at} of {text[:40]!r} on",
                where=str(file.path),
                fix=_PASS,
            )
