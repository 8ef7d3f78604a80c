"""Attention of a flat stream and its gradient, called without autograd, so that what is kept is ours to choose.

On CUDA torch's flash kernel with document borders and grouped heads; for rows of one length cuDNN's, which is twice as
fast there. Elsewhere (CPU, fp32) the one attention seam, computed a second time in the backward.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from tunesmith.engine.fused_stream import Stream
from tunesmith.kernels.plain import by_heads
from tunesmith.model.attention import Packed, flash_takes


class Heads(NamedTuple):
    """q [T, H, D], k and v [T, K, D], possibly strided."""

    q: Tensor
    k: Tensor
    v: Tensor


class Attended(NamedTuple):
    """o [T, H · D], and what the backward needs beside q, k, v and o."""

    o: Tensor
    kept: tuple[Tensor, ...]


def attend(heads: Heads, stream: Stream, scale: float, window: int | None) -> Attended:
    """Causal attention within each document."""
    if not _is_fast(heads.q):
        q, k, v = (x.transpose(0, 1)[None] for x in heads)
        o = Packed(stream.cu_seqlens, stream.max_length).attend(0, q, k, v, scale, window)
        return Attended(o[0].flatten(1), ())
    if _is_dense(stream, window):
        q, k, v = (_rows(x, stream) for x in heads)
        out = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, scale=scale)
        o = out[0].transpose(1, 2).reshape(stream.tokens, -1)
        return Attended(o, (out[1], out[6], out[7]))
    o, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
        *heads, stream.cu_seqlens, stream.cu_seqlens, stream.max_length, stream.max_length, 0.0, window is None, False,
        scale=scale, **_sides(window),
    )  # fmt: skip
    return Attended(o.flatten(1), (lse, state, unused))


def attend_backward(
    d_TQ: Tensor, heads: Heads, attended: Attended, stream: Stream, scale: float, window: int | None
) -> Heads:
    """The gradients of q, k and v, of their shapes."""
    if not _is_fast(heads.q):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in heads]
            o = attend(Heads(*leaves), stream, scale, window).o
        return Heads(*torch.autograd.grad(o, leaves, d_TQ))
    d_THD, o_THD = (by_heads(x, heads.q.shape[1]) for x in (d_TQ, attended.o))
    if _is_dense(stream, window):
        q, k, v = (_rows(x, stream) for x in heads)
        lse, seed, offset = attended.kept
        length = stream.max_length
        # None: no borders inside, the rows are a rectangle
        grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            _rows(d_THD, stream), q, k, v, _rows(o_THD, stream), lse, seed, offset, None, None, None,
            length, length, 0.0, True, scale=scale,
        )  # fmt: skip
        return Heads(*(x.transpose(1, 2).flatten(0, 1) for x in grads))
    lse, state, unused = attended.kept
    grads = torch.ops.aten._flash_attention_backward(
        d_THD.contiguous(), *heads, o_THD, lse, stream.cu_seqlens, stream.cu_seqlens, stream.max_length,
        stream.max_length, 0.0, window is None, state, unused, scale=scale, **_sides(window),
    )  # fmt: skip
    return Heads(*cast(tuple[Tensor, Tensor, Tensor], grads))


def _is_fast(q_THD: Tensor) -> bool:
    return flash_takes(q_THD)


def _is_dense(stream: Stream, window: int | None) -> bool:
    """Whether cuDNN may take it: no window that cuts something off, and nobody asked for one order of sums."""
    whole = window is None or stream.max_length <= window
    return stream.dense and whole and not torch.are_deterministic_algorithms_enabled()


def _rows(x_THD: Tensor, stream: Stream) -> Tensor:
    """[rows, H, L, D], a view."""
    rows, length = len(x_THD) // stream.max_length, stream.max_length
    return x_THD.view(rows, length, *x_THD.shape[1:]).transpose(1, 2)


def _sides(window: int | None) -> dict[str, int]:
    """A window ends at the query itself; without one, causality alone limits."""
    return {"window_size_left": -1, "window_size_right": -1} if window is None else {
        "window_size_left": window - 1, "window_size_right": 0
    }  # fmt: skip
