"""Attention of one new token for each slot of a static cache, each reading no further than its own length.

Flash-decoding (Dao et al. 2023): the cached tokens of a slot are cut into SPLITS parts that are worked on side by
side, each with its running maximum and sum, and joined afterwards. Lengths are read on the device, so that the same
programs serve every step and can be replayed as a CUDA graph. Reference: `tunesmith.generate.cache.Decode` by torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64  # cached tokens a round
_ROWS = 16  # query heads of a program, the least that tl.dot takes
_PROGRAMS = 512  # wanted side by side: about four for each multiprocessor of a large card


@triton.jit
def _parts(  # type: ignore[no-untyped-def]  # triton's own types
    q, keys, values, positions, out, sums, q_slot, q_head, slot_stride, head_stride, scale, window,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    SPLITS: tl.constexpr, HEADS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.program_id(2)
    end = tl.load(positions + slot) + 1
    begin = tl.maximum(end - window, 0)
    part = tl.cdiv(tl.cdiv(end - begin, SPLITS), BLOCK) * BLOCK
    low = begin + split * part
    high = tl.minimum(low + part, end)
    row, dim = tl.arange(0, ROWS), tl.arange(0, WIDE)
    asked = (row[:, None] < GROUP) & (dim[None, :] < DIM)
    q_RD = tl.load(
        q + slot * q_slot + (head * GROUP + row[:, None]) * q_head + dim[None, :], mask=asked, other=0.0
    )
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    held_RD = tl.zeros([ROWS, WIDE], tl.float32)
    cached = slot * slot_stride + head * head_stride
    for at in range(low, high, BLOCK):
        place = at + tl.arange(0, BLOCK)
        inside = (place[:, None] < high) & (dim[None, :] < DIM)
        k_LD = tl.load(keys + cached + place[:, None] * DIM + dim[None, :], mask=inside, other=0.0)
        score_RL = tl.dot(q_RD, tl.trans(k_LD), input_precision=PRECISION) * scale
        score_RL = tl.where(place[None, :] < high, score_RL, float("-inf"))
        now = tl.maximum(most, tl.max(score_RL, 1))
        weight_RL = tl.exp(score_RL - now[:, None])
        shrink = tl.exp(most - now)
        v_LD = tl.load(values + cached + place[:, None] * DIM + dim[None, :], mask=inside, other=0.0)
        total = total * shrink + tl.sum(weight_RL, 1)
        held_RD = held_RD * shrink[:, None] + tl.dot(
            weight_RL.to(v_LD.dtype), v_LD, input_precision=PRECISION
        )
        most = now
    number = (slot * HEADS + head) * GROUP + row
    if SPLITS == 1:
        made = held_RD / total[:, None]
        tl.store(out + number[:, None] * DIM + dim[None, :], made.to(out.dtype.element_ty), mask=asked)
    else:
        tl.store(out + (number[:, None] * SPLITS + split) * DIM + dim[None, :], held_RD, mask=asked)
        tl.store(sums + (number * SPLITS + split) * 2, most, mask=row < GROUP)
        tl.store(sums + (number * SPLITS + split) * 2 + 1, total, mask=row < GROUP)


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    parts, sums, out, DIM: tl.constexpr, WIDE: tl.constexpr, SPLITS: tl.constexpr
):
    number = tl.program_id(0).to(tl.int64)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, WIDE)
    most_S = tl.load(sums + (number * SPLITS + split) * 2)
    total_S = tl.load(sums + (number * SPLITS + split) * 2 + 1)
    weight_S = tl.exp(most_S - tl.max(most_S, 0))  # a part without tokens has -inf: 0
    inside = (split[:, None] < SPLITS) & (dim[None, :] < DIM)
    part_SD = tl.load(parts + (number * SPLITS + split[:, None]) * DIM + dim[None, :], mask=inside, other=0.0)
    made_D = tl.sum(part_SD * weight_S[:, None], 0) / tl.sum(total_S * weight_S, 0)
    tl.store(out + number * DIM + dim, made_D.to(out.dtype.element_ty), mask=dim < DIM)


def decode_attention(
    q_NHD: Tensor,
    keys_SKLD: Tensor,
    values_SKLD: Tensor,
    positions_N: Tensor,
    scale: float,
    window: int | None,
    splits: int | None = None,
) -> Tensor:
    """[N, H, D]: slot n's token at positions_N[n] sees its cached tokens 0 … positions_N[n] (the last `window`).

    `splits`: parts that a slot's tokens are cut into, a power of two; chosen by N unless given.
    """
    count, heads, dim = q_NHD.shape
    key_heads, length = keys_SKLD.shape[1], keys_SKLD.shape[2]
    group = heads // key_heads
    if group > _ROWS:
        raise ValueError(f"{group} query heads to a key head; the kernel takes {_ROWS}")
    if splits is None:
        wanted = min(_PROGRAMS // (count * key_heads), triton.cdiv(length, _BLOCK), 64)
        splits = triton.next_power_of_2(wanted + 1) // 2 if wanted > 1 else 1
    out = torch.empty(count, heads, dim, dtype=q_NHD.dtype, device=q_NHD.device)
    parts, sums = out, out
    if splits > 1:
        parts = torch.empty(count * heads * splits, dim, dtype=torch.float32, device=q_NHD.device)
        sums = torch.empty(count * heads * splits, 2, dtype=torch.float32, device=q_NHD.device)
    wide = max(16, triton.next_power_of_2(dim))
    _parts[(count, key_heads, splits)](
        q_NHD, keys_SKLD, values_SKLD, positions_N, parts, sums, q_NHD.stride(0), q_NHD.stride(1),
        keys_SKLD.stride(0), keys_SKLD.stride(1), scale, 2**30 if window is None else window,
        GROUP=group, DIM=dim, WIDE=wide, BLOCK=_BLOCK, ROWS=_ROWS, SPLITS=splits, HEADS=key_heads,
        PRECISION="ieee" if q_NHD.dtype == torch.float32 else "tf32", num_warps=4,
    )  # fmt: skip
    if splits > 1:
        _join[(count * heads,)](parts, sums, out, DIM=dim, WIDE=wide, SPLITS=splits, num_warps=4)
    return out
