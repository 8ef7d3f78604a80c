"""Cross-entropy of a chunk of logits and its gradient, written over the logits: a row is read twice, written once.

Reference: `plain.cross_entropy`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192


@triton.jit
def _cross_entropy(logits, targets, losses, vocabulary, row_stride, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # triton's own types
    row = tl.program_id(0).to(tl.int64)
    own = logits + row * row_stride
    at = tl.arange(0, BLOCK)
    # per lane: the largest seen and the sum of exponentials relative to it
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        value = tl.load(own + start + at, mask=start + at < vocabulary, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(largest, value)
        safe = tl.where(higher == -float("inf"), 0.0, higher)  # lanes that have seen nothing
        total = total * tl.exp(largest - safe) + tl.exp(value - safe)
        largest = higher
    top = tl.max(largest, axis=0)
    whole = tl.sum(total * tl.exp(largest - top), axis=0)
    target = tl.load(targets + row)
    gold = tl.load(own + target).to(tl.float32)
    tl.store(losses + row, tl.log(whole) - (gold - top))
    tl.debug_barrier()  # all have read the gold logit before it is written over
    for start in range(0, vocabulary, BLOCK):
        inside = start + at < vocabulary
        value = tl.load(own + start + at, mask=inside, other=-float("inf"))
        share = tl.exp(value.to(tl.float32) - top) / whole
        share -= tl.where(start + at == target, 1.0, 0.0)
        tl.store(own + start + at, (share * scale).to(value.dtype), mask=inside)


def cross_entropy(logits_nV: Tensor, targets_n: Tensor, scale: float) -> Tensor:
    """See `plain.cross_entropy`."""
    rows, vocabulary = logits_nV.shape
    losses_n = torch.empty(rows, dtype=torch.float32, device=logits_nV.device)
    block = min(_BLOCK, triton.next_power_of_2(vocabulary))
    _cross_entropy[(rows,)](
        logits_nV, targets_n, losses_n, vocabulary, logits_nV.stride(0), scale, BLOCK=block, num_warps=16
    )
    return losses_n
