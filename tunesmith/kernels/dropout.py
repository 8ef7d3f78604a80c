"""Counter-based dropout in one pass: reads x, writes x where it is kept and 0 elsewhere; the mask is never stored.

Reference: `tunesmith.model.dropout.keep_mask`, bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _drop(x, out, keys, factors, features, x_stride, out_stride, threshold, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # triton's own types
    token = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < features
    hashed = tl.load(keys + token) * tl.load(factors + feature, mask=inside)  # int32, wraps
    value = tl.load(x + token * x_stride + feature, mask=inside)
    tl.store(out + token * out_stride + feature, tl.where(hashed >= threshold, value, 0.0), mask=inside)


def drop(x_TF: Tensor, out_TF: Tensor, keys_T: Tensor, factors_F: Tensor, threshold: int) -> Tensor:
    """out = x where int32(key · factor) ≥ threshold, else 0; `out` may be x. Both are contiguous along F."""
    tokens, features = x_TF.shape
    grid = (tokens, triton.cdiv(features, _BLOCK))
    _drop[grid](
        x_TF, out_TF, keys_T, factors_F, features, x_TF.stride(0), out_TF.stride(0), threshold, BLOCK=_BLOCK
    )
    return out_TF
