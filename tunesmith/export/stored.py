"""What a quantised GGUF file itself says: its numbers, dequantised by the package gguf, in our own model.

llama.cpp's logits differ from the merged model's by the quantiser's error, which is large at few bits and hides other
mistakes, and by llama.cpp's arithmetic, which is small. Against the file's own numbers only the arithmetic is left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.export.gguf.architecture import Architecture, read_architecture
from tunesmith.export.gguf.library import require_gguf
from tunesmith.export.gguf.tensors import gguf_name, permuted_heads, unpermuted
from tunesmith.export.measure import ProofRows, folder_model, logits, reround_model

_BLOCK = {
    "Q8_0": 32,
    "IQ4_NL": 32,
}  # values that share a scale when llama.cpp rounds a linear's inputs; else 256


class Stored(NamedTuple):
    """Logits [n, V], fp32, CPU."""

    plain: Tensor
    """Of the file's numbers."""
    noisy: Tensor
    """The same by llama.cpp's arithmetic: what comes into a linear rounded to 8 bits, blocks with a scale each."""


@torch.no_grad()
def stored_logits(
    path: Path, kind: str, folder: Path, dtype: torch.dtype, device: Any, rows: ProofRows
) -> Stored:
    """`folder`: the merged model that the file `path` was made of; only its shape is taken. Works in `dtype`."""
    told = folder / "config.json"
    architecture = read_architecture(json.loads(told.read_text("utf-8")), told)
    model = folder_model(folder, dtype, device)
    _put(model, path, architecture)
    plain = logits(model, rows)
    if dtype != torch.float32:  # our own arithmetic is no finer than this
        reround_model(model, dtype, everything=True)
    block = _BLOCK.get(kind, 256)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (_to_8_bits(inputs[0], block), *inputs[1:]))
    return Stored(plain, logits(model, rows))


def _put(model: PreTrainedModel, path: Path, architecture: Architecture) -> None:
    gguf = require_gguf()
    stored = {one.name: one for one in gguf.GGUFReader(path).tensors}
    for name, parameter in model.named_parameters():
        one = stored[gguf_name(architecture, name)]
        numbers = np.array(gguf.dequantize(one.data, one.tensor_type), np.float32)
        values = torch.from_numpy(numbers).reshape(parameter.shape)
        if heads := permuted_heads(architecture, name):
            values = unpermuted(values, values.shape[0] // heads)
        parameter.data = values.to(parameter.device, parameter.dtype)


def _to_8_bits(x: Tensor, block: int) -> Tensor:
    pieces = x.float().reshape(-1, block)
    scale = pieces.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127
    return (pieces / scale).round_().mul_(scale).reshape(x.shape).to(x.dtype)
