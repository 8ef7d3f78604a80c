"""Which tensors a GGUF file holds: their names there, kinds and places in the folder's files, and rows to permute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.errors import ModelError
from tunesmith.export.gguf import values
from tunesmith.export.gguf.architecture import Architecture
from tunesmith.export.gguf.library import require_gguf
from tunesmith.lookup import nearest
from tunesmith.model.stream import Place
from tunesmith.model.tensors import COMPUTED, StoredTensors

ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Planned:
    """One tensor of the file to be."""

    name: str
    """In GGUF."""
    kind: str
    shape: tuple[int, ...]
    source: Place | Tensor
    """Where its values lie, or they themselves."""
    heads: int = 0
    """Rows are permuted within each of so many heads; 0: they stay."""

    @property
    def bytes(self) -> int:
        """In the file."""
        return values.size(self.kind, math.prod(self.shape))


def stored_shapes(architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
    """transformers' name → shape, for every tensor that the architecture has stored."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture.config)  # type: ignore[no-untyped-call]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if architecture.tied:
        shapes.pop("lm_head.weight", None)
    return shapes


def gguf_name(architecture: Architecture, name: str) -> str:
    """GGUF's name of a tensor."""
    gguf = require_gguf()
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture.name)
    names = gguf.get_tensor_name_map(number, architecture.config.num_hidden_layers)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ModelError(
            f"llama.cpp's {architecture.name} has no place for {name}", fix="leave export.gguf out"
        )
    return str(found)


def permuted_heads(architecture: Architecture, name: str) -> int:
    """In how many heads the rows of this tensor have another order in llama.cpp."""
    if architecture.name != "llama":
        return 0
    if ".q_proj." in name:
        return architecture.heads
    return architecture.kv_heads if ".k_proj." in name else 0


def permuted(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of whole heads from transformers' order (first halves, then second halves) to pairs side by side."""
    paired = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2)
    return paired.reshape(rows.shape)


def unpermuted(rows: Tensor, head_dim: int) -> Tensor:
    """`permuted` taken back."""
    halved = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2)
    return halved.reshape(rows.shape)


def plan(architecture: Architecture, stored: StoredTensors, kind: str) -> list[Planned]:
    """All tensors in the order in which they are written. ModelError where one lacks, is strange or doesn't fit."""
    shapes = stored_shapes(architecture)
    _check(architecture, stored, shapes)
    found = stored.places(list(shapes))
    places = dict(zip(shapes, found or [], strict=True))
    made = []
    factors = architecture.rope_factors()
    if factors is not None:
        made.append(Planned(ROPE_FACTORS, "F32", tuple(factors.shape), factors))
    for name, shape in shapes.items():
        new = gguf_name(architecture, name)
        small = len(shape) < 2 or new.endswith("_norm.weight")
        if kind == "Q8_0" and not small and shape[-1] % 32:
            raise ModelError(
                f"Q8_0 takes rows of a multiple of 32 values; {name} has {shape[-1]}",
                where="export.gguf",
                fix="write F16 or BF16",
            )
        heads = permuted_heads(architecture, name)
        made.append(Planned(new, "F32" if small else kind, shape, places[name], heads))
    return made


def _check(architecture: Architecture, stored: StoredTensors, shapes: Mapping[str, Sequence[int]]) -> None:
    lacking = [name for name in shapes if name not in stored]
    if lacking:
        raise ModelError(
            f"the weight files lack {lacking[0]} ({len(lacking)} such)",
            where=str(stored.folder),
            fix="export the merged folder again, or download it again",
        )
    for name in stored:
        if name not in shapes and not COMPUTED.search(name) and name != "lm_head.weight":
            guess = nearest(name, shapes)
            raise ModelError(
                f"the weight files hold {name}, which {architecture.name} has no place for"
                + (f"; the nearest is {guess}" if guess else ""),
                where=str(stored.folder),
                fix="leave export.gguf out: something of this model would be lost",
            )
    for name, wanted in shapes.items():
        dtype, found = stored.about(name)
        if found != tuple(wanted):
            raise ModelError(
                f"{name} is {list(found)}; config.json speaks of {list(wanted)}",
                where=str(stored.folder),
                fix="download or export the folder again",
            )
        if dtype not in ("F32", "F16", "BF16"):
            raise ModelError(
                f"{name} is stored as {dtype}, which is not read here",
                where=str(stored.folder),
                fix="export from a merged folder of bfloat16, float16 or float32",
            )
