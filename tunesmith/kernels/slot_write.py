"""New keys and values go to their places in a static cache, both in one pass; a program a token.

Reference: `plain.slot_write`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _slot_write(  # type: ignore[no-untyped-def]  # triton's own types
    k, v, slots, positions, keys, values, k_token, k_head, v_token, v_head, slot_stride, head_stride, length,
    HEADS: tl.constexpr, MANY: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot, position = tl.load(slots + token), tl.load(positions + token)
    head, dim = tl.arange(0, MANY)[:, None], tl.arange(0, WIDE)[None, :]
    width = tl.where(position < length, DIM, 0)  # nothing is ever written into another slot's memory
    inside = (head < HEADS) & (dim < width)
    k_KD = tl.load(k + token * k_token + head * k_head + dim, mask=inside)
    v_KD = tl.load(v + token * v_token + head * v_head + dim, mask=inside)
    to = slot * slot_stride + head * head_stride + position * DIM + dim
    tl.store(keys + to, k_KD, mask=inside)
    tl.store(values + to, v_KD, mask=inside)


def slot_write(
    k_TKD: Tensor,
    v_TKD: Tensor,
    slots_T: Tensor,
    positions_T: Tensor,
    keys_SKLD: Tensor,
    values_SKLD: Tensor,
) -> None:
    """See `plain.slot_write`."""
    k_TKD, v_TKD = (x if x.stride(2) == 1 else x.contiguous() for x in (k_TKD, v_TKD))
    tokens, heads, dim = k_TKD.shape
    _slot_write[(tokens,)](
        k_TKD, v_TKD, slots_T, positions_T, keys_SKLD, values_SKLD,
        k_TKD.stride(0), k_TKD.stride(1), v_TKD.stride(0), v_TKD.stride(1),
        keys_SKLD.stride(0), keys_SKLD.stride(1), keys_SKLD.shape[2],
        HEADS=heads, MANY=triton.next_power_of_2(heads), DIM=dim, WIDE=triton.next_power_of_2(dim), num_warps=4,
    )  # fmt: skip
