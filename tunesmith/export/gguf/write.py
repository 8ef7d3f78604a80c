"""A merged Hugging Face folder → GGUF, in the kinds that lose nothing to speak of: F32, F16, BF16, Q8_0.

Weights are read from the shards and converted piece by piece (file.py); tokens, template and stops are the Contract's
(vocabulary.py), so another program sees the prompts that were trained and ends where they end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith import console
from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.export.gguf.architecture import read_architecture
from tunesmith.export.gguf.file import write_file
from tunesmith.export.gguf.library import require_gguf
from tunesmith.export.gguf.tensors import plan
from tunesmith.export.gguf.values import KINDS
from tunesmith.export.gguf.vocabulary import Vocabulary, read_vocabulary
from tunesmith.model.tensors import StoredTensors
from tunesmith.recipe import Model

if TYPE_CHECKING:
    from gguf import GGUFWriter

_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # llama.h: llama_ftype


def write_gguf(
    folder: Path, out: Path, kind: str, contract: Contract, on_bytes: Callable[[int], None] | None = None
) -> None:
    """Writes the model in `folder` as `out`, whole or not at all.

    kind: F32, F16, BF16 or Q8_0. on_bytes: told how many more bytes are written (the whole is about the file's size).
    Norms and biases are always F32. ModelError where the model, its tokenizer or its values have no equal form in
    GGUF; SetupError where the package gguf is missing; OutOfRoom, AccessError.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind} is written by llama.cpp: quantize_gguf")
    require_gguf()
    base = resolve(Model(base=str(folder)))
    _require_same_tokenizer(base, contract)
    architecture = read_architecture(base.config, folder / "config.json")
    vocabulary = read_vocabulary(contract, int(architecture.config.vocab_size), folder)
    tensors = plan(architecture, StoredTensors(base), kind)
    if vocabulary.differs:
        console.warn(
            f"llama.cpp's tokens ({vocabulary.pre}) are not this tokenizer's for {vocabulary.differs}; "
            "tunesmith serves by the tokenizer itself, other programs that run the GGUF file don't"
        )

    def describe(writer: GGUFWriter) -> None:
        writer.add_type("model")
        writer.add_name(out.stem.removesuffix(f"-{kind}"))
        architecture.describe(writer)
        writer.add_file_type(_FILE_TYPES[kind])
        writer.add_quantization_version(2)
        _describe_tokens(writer, vocabulary)

    write_file(out, architecture.name, describe, tensors, on_bytes)


def _describe_tokens(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    # the template writes BOS, once; llama.cpp must not write another one
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if vocabulary.space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.space_prefix)
    writer.add_chat_template(vocabulary.template)


def _require_same_tokenizer(base: Base, contract: Contract) -> None:
    path = base.folder / "tokenizer.json"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != contract.tokenizer_sha256:
        raise ModelError(
            "the tokenizer in this folder is not the one that the model was trained with",
            where=str(path),
            fix="export the merged folder again: tunesmith export RUN",
        )
