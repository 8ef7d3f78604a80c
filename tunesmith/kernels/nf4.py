"""NF4 to a dense image in one pass, both kinds of scales at once; bit for bit what bitsandbytes gives.

A block of 64 numbers has the scale code[absmax[b]] · nested_absmax[b / 256] + offset (QLoRA, arXiv 2305.14314). Rows of
the image may be strided. Reference: `tunesmith.model.weights.Nf4.dequantize`.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# the 16 values of a 4-bit normal float, as bitsandbytes has them
VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_BLOCKS = 32  # of 64 numbers, a program


@triton.jit
def _image(  # type: ignore[no-untyped-def]  # triton's own types
    packed, absmax, nested, code, offset, values, out, blocks_in_row, out_row, BLOCKS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < blocks_in_row
    number = row * blocks_in_row + block
    scale = tl.load(code + tl.load(absmax + number, mask=inside, other=0).to(tl.int32))
    scale = scale * tl.load(nested + number // 256, mask=inside, other=0.0) + tl.load(offset)
    byte = tl.arange(0, 32)[None, :]
    wide = inside[:, None] & (byte < 32)
    pair = tl.load(packed + number[:, None] * 32 + byte, mask=wide, other=0).to(tl.int32)
    high = tl.load(values + (pair >> 4)) * scale[:, None]
    low = tl.load(values + (pair & 15)) * scale[:, None]
    both = tl.interleave(high, low)
    to = out + row * out_row + block[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(to, both.to(out.dtype.element_ty), mask=inside[:, None] & (tl.arange(0, 64)[None, :] < 64))


def nf4_image(
    packed: Tensor, absmax: Tensor, nested_absmax: Tensor, code: Tensor, offset: Tensor, out_OI: Tensor
) -> None:
    """Writes the dense image into out_OI, whose rows hold a multiple of 64 numbers."""
    rows, width = out_OI.shape
    blocks = width // 64
    # a product and a sum must round apart, as in bitsandbytes' two kernels
    _image[(rows, triton.cdiv(blocks, _BLOCKS))](
        packed, absmax, nested_absmax, code, offset, _values(out_OI.device), out_OI, blocks, out_OI.stride(0),
        BLOCKS=_BLOCKS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


@cache
def _values(device: torch.device) -> Tensor:
    return torch.tensor(VALUES, dtype=torch.float32, device=device)
