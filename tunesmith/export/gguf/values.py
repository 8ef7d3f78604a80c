"""How a tensor's values become the bytes of a GGUF kind: F32, F16, BF16, Q8_0.

A value that the kind can't hold ends the export: F16 reaches to 65,504, bf16 to 3e38.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.errors import ModelError

KINDS = ("F32", "F16", "BF16", "Q8_0")  # what is written here; llama.cpp makes the others of these
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCK, _BLOCK_BYTES = 32, 34  # Q8_0: a scale in F16 and 32 values of 8 bits
_LARGEST = 65520.0  # from here on F16 rounds to infinity
_STEP = 1 << 18  # values converted at once: their fp32 form stays in the processor's cache


def size(kind: str, count: int) -> int:
    """Bytes of `count` values."""
    return count // _BLOCK * _BLOCK_BYTES if kind == "Q8_0" else count * _PLAIN[kind].itemsize


def encoded(values: Tensor, kind: str, name: str) -> Tensor:
    """The bytes (uint8, flat) of `values` [rows, columns] in `kind`. ModelError where one doesn't fit."""
    flat = values.reshape(-1)
    low, high = (float(one) for one in torch.aminmax(flat))
    if not (low > -float("inf") and high < float("inf")):  # NaN fails both
        raise ModelError(
            f"the tensor {name} holds numbers that are not finite",
            fix="train or merge again: no file of these weights can be right",
        )
    if kind == "F16" and max(-low, high) >= _LARGEST:
        raise ModelError(
            f"the tensor {name} holds {max(-low, high):,.0f}; F16 reaches to 65,504",
            where="export.gguf",
            fix="write BF16 or Q8_0 in the place of F16 (K-quants are made from BF16 as well)",
        )
    if kind == "Q8_0":
        return _q8(values)
    wanted = _PLAIN[kind]
    if flat.dtype == wanted:
        return flat.view(torch.uint8)
    out = torch.empty(flat.shape, dtype=wanted)
    for begin in range(0, len(flat), _STEP):
        # through fp32: from 16 bits to other 16 bits in one step is slower by half
        out[begin : begin + _STEP] = flat[begin : begin + _STEP].float()
    return out.view(torch.uint8)


def _q8(values: Tensor) -> Tensor:
    """llama.cpp's quantize_row_q8_0_ref: scale = largest / 127, values rounded half away from zero."""
    out = torch.empty((values.numel() // _BLOCK, _BLOCK_BYTES), dtype=torch.uint8)
    blocks = values.reshape(-1, _BLOCK)
    step = _STEP // _BLOCK
    for begin in range(0, len(blocks), step):
        x = blocks[begin : begin + step].float()
        scale = x.abs().amax(1, keepdim=True) / 127
        x = x * torch.where(scale == 0, 0.0, 1 / scale)
        x = torch.copysign((x.abs() + 0.5).floor_(), x)
        out[begin : begin + step, :2] = scale.half().view(torch.uint8)
        out[begin : begin + step, 2:] = x.to(torch.int8).view(torch.uint8)
    return out.reshape(-1)
