"""The adapter alone as a GGUF file, which llama.cpp lays over the GGUF of its base.

llama.cpp scales each pair's product by alpha / rank, one alpha for all. What differs from that (rsLoRA, a pair with an
alpha of its own) goes into B. Rows of B are permuted where those of the base's weight are (tensors.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunesmith.base import Base
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.export.gguf.architecture import Architecture, read_architecture
from tunesmith.export.gguf.file import write_file
from tunesmith.export.gguf.library import require_gguf
from tunesmith.export.gguf.tensors import Planned, gguf_name, permuted_heads, stored_shapes
from tunesmith.lookup import nearest
from tunesmith.model.adapter import StoredPair, read_adapter

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_adapter_gguf(adapter: Path, base: Base, out: Path, contract: Contract) -> None:
    """Writes the adapter in PEFT's format in `adapter`, trained on `base`, as `out`, whole or not at all.

    ModelError where the adapter is another base's or another tokenizer's, or where llama.cpp can't apply it.
    """
    require_gguf()
    _require_same_contract(adapter, contract)
    architecture = read_architecture(base.config, base.folder / "config.json")
    shapes, pairs = stored_shapes(architecture), read_adapter(adapter)
    alpha = next(iter(pairs.values())).alpha
    tensors: list[Planned] = []
    for name, pair in pairs.items():
        wanted = shapes.get(f"{name}.weight")
        if wanted is None:
            guess = nearest(f"{name}.weight", shapes)
            raise ModelError(
                f"the adapter holds {name}, which the base lacks"
                + (f"; the nearest is {guess}" if guess else ""),
                where=str(adapter),
                fix="export it with the base it was trained on",
            )
        found = (pair.B.shape[0], pair.A.shape[1])
        if found != wanted:
            raise ModelError(
                f"{name} is {list(found)} in the adapter and {list(wanted)} in the base",
                where=str(adapter),
                fix="export it with the base it was trained on",
            )
        tensors += _pair(architecture, name, pair, alpha)

    def describe(writer: GGUFWriter) -> None:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_name(out.stem)
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_file_type(0)
        writer.add_quantization_version(2)

    write_file(out, architecture.name, describe, tensors)


def _pair(architecture: Architecture, name: str, pair: StoredPair, alpha: float) -> list[Planned]:
    new = gguf_name(architecture, f"{name}.weight")
    rank = pair.A.shape[0]
    scale = pair.alpha / (math.sqrt(pair.rank) if pair.rslora else pair.rank)
    own = alpha / rank
    B = pair.B.float() if scale == own else (pair.B.double() * (scale / own)).float()
    for half, matrix in (("A", pair.A), ("B", B)):
        if not bool(torch.isfinite(matrix).all()):
            raise ModelError(f"{name}.lora_{half} holds numbers that are not finite", fix="train it again")
    A = pair.A.float().contiguous()
    heads = permuted_heads(architecture, f"{name}.weight")
    return [
        Planned(f"{new}.lora_a", "F32", tuple(A.shape), A),
        Planned(f"{new}.lora_b", "F32", tuple(B.shape), B.contiguous(), heads),
    ]


def _require_same_contract(adapter: Path, contract: Contract) -> None:
    path = adapter / "contract.json"
    if (
        path.is_file()
        and json.loads(path.read_text("utf-8"))["tokenizer_sha256"] != contract.tokenizer_sha256
    ):
        raise ModelError(
            "the adapter was trained with another tokenizer",
            where=str(path),
            fix="export it with its own run",
        )
