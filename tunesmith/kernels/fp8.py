"""Rows of numbers to fp8 (e4m3) with one scale a row, in one pass over rows that fit into registers, else in two.

Reference: `plain.quantise_rows`, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.plain import FP8_LARGEST, FP8_LEAST, FP8_STEP

_WHOLE = 32_768  # numbers of a row that a program holds at once


@triton.jit
def _quantise(  # type: ignore[no-untyped-def]  # triton's own types
    x, out, scales, width, x_row, largest, least, step, ONCE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x += row * x_row
    out += row * width
    if ONCE:
        value = tl.load(x + at, mask=at < width, other=0.0).to(tl.float32)
        most = tl.maximum(tl.max(tl.abs(value), axis=0), least)
        by = tl.div_rn(largest, most)
        tl.store(out + at, (value * by).to(out.dtype.element_ty), mask=at < width)
    else:
        highest = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            value = tl.load(x + start + at, mask=start + at < width, other=0.0).to(tl.float32)
            highest = tl.maximum(highest, tl.abs(value))
        most = tl.maximum(tl.max(highest, axis=0), least)
        by = tl.div_rn(largest, most)
        for start in range(0, width, BLOCK):
            inside = start + at < width
            value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(out + start + at, (value * by).to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, most * step)


def quantise_rows(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """See `plain.quantise_rows`."""
    out = torch.empty(x_TK.shape, dtype=torch.float8_e4m3fn, device=x_TK.device)
    return out, stretch_rows(x_TK, out)


def stretch_rows(x_TK: Tensor, out_TK: Tensor) -> Tensor:
    """out = x with each row's largest number made e4m3's largest, in out's type; returns the scales."""
    rows, width = x_TK.shape
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x_TK.device)
    block = min(triton.next_power_of_2(width), _WHOLE)
    _quantise[(rows,)](
        x_TK, out_TK, scales, width, x_TK.stride(0), FP8_LARGEST, FP8_LEAST, FP8_STEP,
        ONCE=width <= block, BLOCK=block, num_warps=min(16, max(1, block // 1024)),
    )  # fmt: skip
    return scales
