"""Rotary positions on queries and keys, with the norms per head that Qwen 3 has before them; a program a token.

Reference: `plain.rotate`, `plain.rotate_backward`. A head's first and second half turn together.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]  # triton's own types
    qkv, cos, sin, norms, out, heads, eps, in_row, table_row, out_row,
    HALF: tl.constexpr, WIDE: tl.constexpr, MANY: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * MANY + tl.arange(0, MANY)[:, None]
    at = tl.arange(0, WIDE)[None, :]
    inside = (head < heads) & (at < HALF)
    first = qkv + token * in_row + head * (2 * HALF) + at
    a = tl.load(first, mask=inside, other=0.0)
    b = tl.load(first + HALF, mask=inside, other=0.0)
    kind = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    if NORMED:
        rstd = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF) + eps)[:, None]
        weights = norms + head * (2 * HALF) + at
        wa = tl.load(weights, mask=inside, other=0.0).to(tl.float32)
        wb = tl.load(weights + HALF, mask=inside, other=0.0).to(tl.float32)
        a = (wa * (a * rstd).to(kind).to(tl.float32)).to(kind).to(tl.float32)
        b = (wb * (b * rstd).to(kind).to(tl.float32)).to(kind).to(tl.float32)
    table = token * table_row + at
    ca = tl.load(cos + table, mask=at < HALF, other=0.0).to(tl.float32)
    cb = tl.load(cos + table + HALF, mask=at < HALF, other=0.0).to(tl.float32)
    sa = tl.load(sin + table, mask=at < HALF, other=0.0).to(tl.float32)
    sb = tl.load(sin + table + HALF, mask=at < HALF, other=0.0).to(tl.float32)
    to = out + token * out_row + head * (2 * HALF) + at
    tl.store(to, (a * ca - b * sa).to(kind), mask=inside)
    tl.store(to + HALF, (b * cb + a * sb).to(kind), mask=inside)


@triton.jit
def _rotate_backward(  # type: ignore[no-untyped-def]
    d, cos, sin, norms, qkv, heads, eps, d_row, table_row, qkv_row,
    HALF: tl.constexpr, WIDE: tl.constexpr, MANY: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * MANY + tl.arange(0, MANY)[:, None]
    at = tl.arange(0, WIDE)[None, :]
    inside = (head < heads) & (at < HALF)
    first = d + token * d_row + head * (2 * HALF) + at
    da = tl.load(first, mask=inside, other=0.0)
    db = tl.load(first + HALF, mask=inside, other=0.0)
    kind = da.dtype
    da, db = da.to(tl.float32), db.to(tl.float32)
    table = token * table_row + at
    ca = tl.load(cos + table, mask=at < HALF, other=0.0).to(tl.float32)
    cb = tl.load(cos + table + HALF, mask=at < HALF, other=0.0).to(tl.float32)
    sa = tl.load(sin + table, mask=at < HALF, other=0.0).to(tl.float32)
    sb = tl.load(sin + table + HALF, mask=at < HALF, other=0.0).to(tl.float32)
    ga = da * ca + db * sb
    gb = db * cb - da * sa
    own = qkv + token * qkv_row + head * (2 * HALF) + at
    if NORMED:
        a = tl.load(own, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(own + HALF, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF) + eps)[:, None]
        weights = norms + head * (2 * HALF) + at
        ga *= tl.load(weights, mask=inside, other=0.0).to(tl.float32)
        gb *= tl.load(weights + HALF, mask=inside, other=0.0).to(tl.float32)
        a, b = a * rstd, b * rstd
        mean = ((tl.sum(ga * a, axis=1) + tl.sum(gb * b, axis=1)) / (2 * HALF))[:, None]
        ga, gb = rstd * (ga - a * mean), rstd * (gb - b * mean)
    tl.store(own, ga.to(kind), mask=inside)
    tl.store(own + HALF, gb.to(kind), mask=inside)


def rotate(
    qkv_TN: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    norms_ND: Tensor | None,
    eps: float,
    heads: int,
    out_TN: Tensor,
) -> None:
    """See `plain.rotate`."""
    half, many = cos_TD.shape[1] // 2, _many(heads)
    _rotate[(len(qkv_TN), triton.cdiv(heads, many))](
        qkv_TN, cos_TD, sin_TD, cos_TD if norms_ND is None else norms_ND, out_TN, heads, eps,
        qkv_TN.stride(0), cos_TD.stride(0), out_TN.stride(0),
        HALF=half, WIDE=triton.next_power_of_2(half), MANY=many, NORMED=norms_ND is not None,
    )  # fmt: skip


def rotate_backward(
    dq_TND: Tensor,
    dk_TND: Tensor,
    dv_TND: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    norms_ND: Tensor | None,
    eps: float,
    qkv_TN: Tensor,
) -> None:
    """See `plain.rotate_backward`."""
    tokens, _, width = dq_TND.shape
    before = 0
    for d_TND in (dq_TND, dk_TND):
        if d_TND.stride(1) != width:
            d_TND = d_TND.contiguous()
        heads = d_TND.shape[1]
        many = _many(heads)
        norms = cos_TD if norms_ND is None else norms_ND[before:]
        _rotate_backward[(tokens, triton.cdiv(heads, many))](
            d_TND, cos_TD, sin_TD, norms, qkv_TN[:, before * width :], heads, eps,
            d_TND.stride(0), cos_TD.stride(0), qkv_TN.stride(0),
            HALF=width // 2, WIDE=triton.next_power_of_2(width // 2), MANY=many, NORMED=norms_ND is not None,
        )  # fmt: skip
        before += heads
    first = before * width
    qkv_TN[:, first : first + dv_TND[0].numel()].copy_(dv_TND.flatten(1))


def _many(heads: int) -> int:
    return int(min(32, triton.next_power_of_2(heads)))
