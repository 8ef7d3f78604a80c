"""The head's loss and the gradient of its input in one pass over chunks of logits, which are overwritten, never kept.

As `head.py`, without autograd: a chunk of logits becomes its own gradient in place and is multiplied back at once.
n positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from tunesmith.engine.fused_memory import CHUNK_ROWS
from tunesmith.kernels.kernel_set import Kernels

_CPU_BYTES = 8 << 20  # of logits: on a CPU they should stay in cache


def chunk_rows(head: nn.Linear) -> int:
    """Positions per chunk."""
    weight = head.weight
    if weight.device.type != "cpu":
        return CHUNK_ROWS
    return max(32, _CPU_BYTES // (weight.element_size() * weight.shape[0]))


def loss_and_gradient(
    hidden_nH: Tensor, head: nn.Linear, targets_n: Tensor, scale: float, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """(sum of losses in nats, fp64; scale × its gradient for hidden, over which it is written)."""
    loss = torch.zeros((), dtype=torch.float64, device=hidden_nH.device)
    for h_cH, targets_c, logits_cV in _chunks(hidden_nH, head, targets_n):
        loss += kernels.cross_entropy(logits_cV, targets_c, scale).sum(dtype=torch.float64)
        torch.mm(logits_cV, head.weight, out=h_cH)
    return loss, hidden_nH


def losses(hidden_nH: Tensor, head: nn.Linear, targets_n: Tensor, kernels: Kernels) -> Tensor:
    """nll_n in nats, fp32 (fp64 for fp64)."""
    chunks = _chunks(hidden_nH, head, targets_n)
    return torch.cat([kernels.cross_entropy(logits_cV, targets_c, 0.0) for _, targets_c, logits_cV in chunks])


def _chunks(hidden_nH: Tensor, head: nn.Linear, targets_n: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(hidden states, targets, logits) of some positions after the others; all logits lie in the same room."""
    weight_VH, bias_V = head.weight, cast(Tensor | None, head.bias)
    size = chunk_rows(head)
    room = hidden_nH.new_empty(min(size, len(targets_n)), weight_VH.shape[0])
    for start in range(0, len(targets_n), size):
        h_cH, targets_c = hidden_nH[start : start + size], targets_n[start : start + size]
        logits_cV = room[: len(targets_c)]
        if bias_V is None:
            torch.mm(h_cH, weight_VH.t(), out=logits_cV)
        else:
            torch.addmm(bias_V, h_cH, weight_VH.t(), out=logits_cV)
        yield h_cH, targets_c, logits_cV
