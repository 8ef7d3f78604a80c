"""silu(gate) · up, forward and backward, one pass each; the backward writes over what it has read.

Reference: `plain.swiglu`, `plain.swiglu_backward`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _swiglu(  # type: ignore[no-untyped-def]  # triton's own types
    gates, ups, out, width, gate_row, up_row, out_row, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gates + row * gate_row + at, mask=inside, other=0.0)
    up = tl.load(ups + row * up_row + at, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    tl.store(out + row * out_row + at, (wide * tl.sigmoid(wide) * up).to(gate.dtype), mask=inside)


@triton.jit
def _swiglu_backward(gate_up, d, width, in_row, d_row, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gates, ups, ds = gate_up + row * in_row + at, gate_up + row * in_row + width + at, d + row * d_row + at
    gate = tl.load(gates, mask=inside, other=0.0)
    kind = gate.dtype
    wide = gate.to(tl.float32)
    up = tl.load(ups, mask=inside, other=0.0).to(tl.float32)
    back = tl.load(ds, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(wide)
    acted = wide * s
    tl.store(gates, (back * up * (s + acted * (1 - s))).to(kind), mask=inside)
    tl.store(ups, (back * acted).to(kind), mask=inside)
    tl.store(ds, (acted * up).to(kind), mask=inside)


def swiglu(gate_TF: Tensor, up_TF: Tensor, out_TF: Tensor) -> None:
    """See `plain.swiglu`."""
    rows, width = out_TF.shape
    _swiglu[(rows, triton.cdiv(width, _BLOCK))](
        gate_TF, up_TF, out_TF, width, gate_TF.stride(0), up_TF.stride(0), out_TF.stride(0),
        BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip


def swiglu_backward(gate_up_TF: Tensor, d_TF: Tensor) -> None:
    """See `plain.swiglu_backward`."""
    rows, width = d_TF.shape
    _swiglu_backward[(rows, triton.cdiv(width, _BLOCK))](
        gate_up_TF, d_TF, width, gate_up_TF.stride(0), d_TF.stride(0), BLOCK=_BLOCK, num_warps=8
    )
