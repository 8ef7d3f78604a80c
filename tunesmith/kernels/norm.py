"""RMSNorm with the residual sum before it, forward and backward: a program a row, the row in registers.

Reference: `plain.norm`, `plain.norm_backward`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm(  # type: ignore[no-untyped-def]  # triton's own types
    x, delta, weight, total, out, width, eps, x_row, delta_row, total_row, out_row,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * x_row + at, mask=inside, other=0.0)
    kind = value.dtype
    if ADDS:
        more = tl.load(delta + row * delta_row + at, mask=inside, other=0.0)
        value = (value.to(tl.float32) + more.to(tl.float32)).to(kind)
        tl.store(total + row * total_row + at, value, mask=inside)
    wide = value.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    normed = (wide * rstd).to(kind).to(tl.float32)
    by = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_row + at, (by * normed).to(kind), mask=inside)


@triton.jit
def _norm_backward(  # type: ignore[no-untyped-def]
    d, x, weight, add, out, again, width, eps, d_row, x_row, add_row, out_row, again_row,
    ADDS: tl.constexpr, GIVES: tl.constexpr, REPEATS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * x_row + at, mask=inside, other=0.0)
    kind = value.dtype
    wide = value.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    normed = wide * rstd
    by = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if REPEATS:
        tl.store(again + row * again_row + at, (by * normed.to(kind).to(tl.float32)).to(kind), mask=inside)
    if GIVES:
        g = tl.load(d + row * d_row + at, mask=inside, other=0.0).to(tl.float32) * by
        result = rstd * (g - normed * (tl.sum(g * normed, axis=0) / width))
        if ADDS:
            result += tl.load(add + row * add_row + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * out_row + at, result.to(kind), mask=inside)


def norm(
    x_TH: Tensor,
    delta_TH: Tensor | None,
    weight_H: Tensor,
    eps: float,
    total_TH: Tensor | None,
    out_TH: Tensor,
) -> None:
    """See `plain.norm`."""
    rows, width = x_TH.shape
    delta = x_TH if delta_TH is None else delta_TH
    total = x_TH if total_TH is None else total_TH
    block = triton.next_power_of_2(width)
    _norm[(rows,)](
        x_TH, delta, weight_H, total, out_TH, width, eps,
        x_TH.stride(0), delta.stride(0), total.stride(0), out_TH.stride(0),
        ADDS=delta_TH is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


def norm_backward(
    d_TH: Tensor | None,
    x_TH: Tensor,
    weight_H: Tensor,
    eps: float,
    add_TH: Tensor | None,
    out_TH: Tensor | None,
    again_TH: Tensor | None,
) -> None:
    """See `plain.norm_backward`."""
    rows, width = x_TH.shape
    d = x_TH if d_TH is None else d_TH
    add = x_TH if add_TH is None else add_TH
    out = x_TH if out_TH is None else out_TH
    again = x_TH if again_TH is None else again_TH
    block = triton.next_power_of_2(width)
    _norm_backward[(rows,)](
        d, x_TH, weight_H, add, out, again, width, eps,
        d.stride(0), x_TH.stride(0), add.stride(0), out.stride(0), again.stride(0),
        ADDS=add_TH is not None, GIVES=out_TH is not None, REPEATS=again_TH is not None,
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))
