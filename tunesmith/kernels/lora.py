"""The narrow products of adapters under dropout: masks are drawn where numbers are read, and never stored.

Reference: `plain.lora_down`, `plain.lora_up`, `plain.lora_outer`. The sums over tokens are made in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels import plain
from tunesmith.kernels.kernel_set import Drops

_WIDEST = 64  # ranks above it: torch's products on dropped copies
_BLOCK = 128  # columns of a program
_STAGE = 33_000  # bytes up to which three stages of loads fit into 99 KiB, which Ampere's and Ada's smaller cards have


@triton.jit
def _down(  # type: ignore[no-untyped-def]  # triton's own types
    x, a, keys, factors, out, tokens, width, scale, threshold, x_row, a_row, out_row,
    RANK: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    key = tl.load(keys + token, mask=here, other=0)
    rank = tl.arange(0, WIDE)
    at = tl.arange(0, BLOCK)
    rows = x + token.to(tl.int64)[:, None] * x_row
    first = tl.zeros([TOKENS, WIDE], tl.float32)
    second = tl.zeros([TOKENS, WIDE], tl.float32)
    third = tl.zeros([TOKENS, WIDE], tl.float32)
    for start in range(0, width, BLOCK):
        inside = start + at < width
        value = tl.load(rows + start + at, mask=here[:, None] & inside[None, :], other=0.0)
        for g in tl.static_range(COUNT):
            factor = tl.load(factors + g * width + start + at, mask=inside, other=0)
            kept = tl.where(key[:, None] * factor[None, :] >= threshold, value, 0.0).to(value.dtype)
            place = a + (g * RANK + rank)[None, :] * a_row + (start + at)[:, None]
            down = tl.load(place, mask=(rank < RANK)[None, :] & inside[:, None], other=0.0)
            if g == 0:
                first = tl.dot(kept, down, first, input_precision="ieee")
            elif g == 1:
                second = tl.dot(kept, down, second, input_precision="ieee")
            else:
                third = tl.dot(kept, down, third, input_precision="ieee")
    to = out + token.to(tl.int64)[:, None] * out_row + rank[None, :]
    writes = here[:, None] & (rank < RANK)[None, :]
    tl.store(to, (first * scale).to(out.dtype.element_ty), mask=writes)
    if COUNT > 1:
        tl.store(to + RANK, (second * scale).to(out.dtype.element_ty), mask=writes)
    if COUNT > 2:
        tl.store(to + 2 * RANK, (third * scale).to(out.dtype.element_ty), mask=writes)


@triton.jit
def _up(  # type: ignore[no-untyped-def]
    d, a, keys, factors, out, tokens, width, threshold, d_row, a_row, out_row,
    RANK: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    key = tl.load(keys + token, mask=here, other=0)
    rank = tl.arange(0, WIDE)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    to = out + token.to(tl.int64)[:, None] * out_row + at[None, :]
    both = here[:, None] & inside[None, :]
    total = tl.load(to, mask=both, other=0.0).to(tl.float32)
    for g in tl.static_range(COUNT):
        factor = tl.load(factors + g * width + at, mask=inside, other=0)
        narrow = d + token.to(tl.int64)[:, None] * d_row + (g * RANK + rank)[None, :]
        grad = tl.load(narrow, mask=here[:, None] & (rank < RANK)[None, :], other=0.0)
        place = a + (g * RANK + rank)[:, None] * a_row + at[None, :]
        wide = tl.load(place, mask=(rank < RANK)[:, None] & inside[None, :], other=0.0)
        up = tl.dot(grad, wide, input_precision="ieee")
        total += tl.where(key[:, None] * factor[None, :] >= threshold, up, 0.0)
    tl.store(to, total.to(out.dtype.element_ty), mask=both)


@triton.jit
def _outer(  # type: ignore[no-untyped-def]
    d, x, keys, factors, parts, tokens, width, threshold, share, d_row, x_row,
    RANK: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    begin = tl.program_id(1) * share
    rank = tl.arange(0, WIDE)
    first = tl.zeros([WIDE, BLOCK], tl.float32)
    second = tl.zeros([WIDE, BLOCK], tl.float32)
    third = tl.zeros([WIDE, BLOCK], tl.float32)
    for start in range(begin, min(begin + share, tokens), TOKENS):
        token = start + tl.arange(0, TOKENS)
        here = token < tokens
        key = tl.load(keys + token, mask=here, other=0)
        place = x + token.to(tl.int64)[:, None] * x_row + at[None, :]
        value = tl.load(place, mask=here[:, None] & inside[None, :], other=0.0)
        for g in tl.static_range(COUNT):
            factor = tl.load(factors + g * width + at, mask=inside, other=0)
            kept = tl.where(key[:, None] * factor[None, :] >= threshold, value, 0.0).to(value.dtype)
            narrow = d + token.to(tl.int64)[None, :] * d_row + (g * RANK + rank)[:, None]
            grad = tl.load(narrow, mask=(rank < RANK)[:, None] & here[None, :], other=0.0)
            if g == 0:
                first = tl.dot(grad, kept, first, input_precision="ieee")
            elif g == 1:
                second = tl.dot(grad, kept, second, input_precision="ieee")
            else:
                third = tl.dot(grad, kept, third, input_precision="ieee")
    own = parts + tl.program_id(1).to(tl.int64) * (COUNT * RANK * width)
    to = own + rank[:, None] * width + at[None, :]
    writes = (rank < RANK)[:, None] & inside[None, :]
    tl.store(to, first, mask=writes)
    if COUNT > 1:
        tl.store(to + RANK * width, second, mask=writes)
    if COUNT > 2:
        tl.store(to + 2 * RANK * width, third, mask=writes)


def lora_down(x_TK: Tensor, a_RK: Tensor, drops: Drops, scale: float, out_TR: Tensor) -> None:
    """See `plain.lora_down`."""
    rank = _one_rank(drops)
    if rank is None:
        return plain.lora_down(x_TK, a_RK, drops, scale, out_TR)
    tokens, width = x_TK.shape
    count, size = len(drops.ranks) - 1, 32 if x_TK.shape[0] < 8192 else 64
    if out_TR.shape[1] > count * rank:
        out_TR[:, count * rank :] = 0
    _down[(triton.cdiv(tokens, size),)](
        x_TK, a_RK, drops.keys_T, drops.factors_GK, out_TR, tokens, width, scale, drops.threshold,
        x_TK.stride(0), a_RK.stride(0), out_TR.stride(0),
        RANK=rank, WIDE=_wide(rank), COUNT=count, TOKENS=size, BLOCK=_BLOCK, num_warps=4,
        num_stages=_stages(size, rank, count, x_TK.element_size()),
    )  # fmt: skip
    return None


def lora_up(d_TR: Tensor, a_RK: Tensor, drops: Drops, out_TK: Tensor) -> None:
    """See `plain.lora_up`."""
    rank = _one_rank(drops)
    if rank is None:
        return plain.lora_up(d_TR, a_RK, drops, out_TK)
    tokens, width = out_TK.shape
    _up[(triton.cdiv(tokens, 64), triton.cdiv(width, _BLOCK))](
        d_TR, a_RK, drops.keys_T, drops.factors_GK, out_TK, tokens, width, drops.threshold,
        d_TR.stride(0), a_RK.stride(0), out_TK.stride(0),
        RANK=rank, WIDE=_wide(rank), COUNT=len(drops.ranks) - 1, TOKENS=64, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return None


def lora_outer(d_TR: Tensor, x_TK: Tensor, drops: Drops) -> Tensor:
    """See `plain.lora_outer`."""
    rank = _one_rank(drops)
    if rank is None:
        return plain.lora_outer(d_TR, x_TK, drops)
    tokens, width = x_TK.shape
    count, columns = len(drops.ranks) - 1, triton.cdiv(width, _BLOCK)
    pieces = max(1, min(triton.cdiv(tokens, 64), triton.cdiv(264, columns)))
    share = triton.cdiv(triton.cdiv(tokens, pieces), 64) * 64
    parts = torch.empty(pieces, count * rank, width, dtype=torch.float32, device=x_TK.device)
    _outer[(columns, pieces)](
        d_TR, x_TK, drops.keys_T, drops.factors_GK, parts, tokens, width, drops.threshold, share,
        d_TR.stride(0), x_TK.stride(0),
        RANK=rank, WIDE=_wide(rank), COUNT=count, TOKENS=64, BLOCK=_BLOCK, num_warps=4,
        num_stages=_stages(64, rank, count, x_TK.element_size()),
    )  # fmt: skip
    return parts.sum(0) if pieces > 1 else parts[0]


def _one_rank(drops: Drops) -> int | None:
    """The rank of each of at most three adapters, where they have one that fits into a program."""
    rank = drops.ranks[1]
    even = all(start == g * rank for g, start in enumerate(drops.ranks))
    return rank if even and rank <= _WIDEST and len(drops.ranks) <= 4 else None


def _wide(rank: int) -> int:
    return max(16, int(triton.next_power_of_2(rank)))


def _stages(tokens: int, rank: int, count: int, size: int) -> int:
    """How many turns of a program's loop are loaded ahead: what a card's shared memory holds."""
    turn = (tokens + count * _wide(rank)) * _BLOCK * size
    return 3 if turn <= _STAGE else 2 if turn <= 2 * _STAGE else 1
