"""Meta's own Llama 3 tokenizer and chat formatter (PyPI: llama-models), as a folder that the Contract can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def meta_chat_format() -> Any:
    """Meta's ChatFormat over Meta's Tokenizer."""
    chat_format = pytest.importorskip("llama_models.llama3.chat_format")
    tokenizer = pytest.importorskip("llama_models.llama3.tokenizer")
    return chat_format.ChatFormat(tokenizer.Tokenizer.get_instance())


def write_llama3_tokenizer(folder: Path) -> Path:
    """tokenizer.json made from Meta's tiktoken file, with Llama 3.1's base configuration (no chat template)."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    meta = meta_chat_format().tokenizer
    import llama_models.llama3

    vocabulary = Path(next(iter(llama_models.llama3.__path__))) / "tokenizer.model"
    special = sorted(meta.special_tokens, key=meta.special_tokens.__getitem__)
    folder.mkdir(parents=True, exist_ok=True)
    TikTokenConverter(str(vocabulary), extra_special_tokens=special).converted().save(
        str(folder / "tokenizer.json")
    )
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "model_max_length": 131072}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
