"""The head and its loss, in chunks: logits of all tokens never exist at once.

Only positions that predict learned tokens come here. The gradient with respect to the hidden states is written in
the forward, while a chunk's probabilities are at hand (as Liger's and Cut Cross-Entropy's linear losses do).
n positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_CHUNK_BYTES = {
    "cpu": 8 << 20,
    "cuda": 256 << 20,
}  # fp32 logits of one chunk; on a CPU they should stay in cache


def chunk_rows(vocabulary: int, device: str) -> int:
    """Positions per chunk: at least 32, or the head's weight would be read too often."""
    return max(32, _CHUNK_BYTES.get(device, 256 << 20) // (4 * vocabulary))


def summed_loss(hidden_nH: Tensor, head: nn.Linear, targets_n: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(scale × sum of losses, differentiable; the sum itself, fp64, detached) of cross-entropy in nats."""
    scaled, loss = _HeadLoss.apply(hidden_nH, head.weight, head.bias, targets_n, scale)  # type: ignore[no-untyped-call]
    return scaled, loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_nH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_n: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        loss = torch.zeros((), dtype=torch.float64, device=hidden_nH.device)
        dh_nH = torch.empty_like(hidden_nH)
        wide = torch.promote_types(weight_VH.dtype, torch.float32)
        dw_VH = torch.zeros_like(weight_VH, dtype=wide) if ctx.needs_input_grad[1] else None
        db_V = (
            torch.zeros_like(bias_V, dtype=wide) if ctx.needs_input_grad[2] and bias_V is not None else None
        )
        for part in _chunks(len(targets_n), weight_VH):
            h_cH = hidden_nH[part]
            part_loss, grad_cV = _chunk(h_cH, weight_VH, bias_V, targets_n[part], scale)
            loss += part_loss
            torch.mm(grad_cV, weight_VH, out=dh_nH[part])
            if dw_VH is not None:
                dw_VH += grad_cV.t() @ h_cH
            if db_V is not None:
                db_V += grad_cV.sum(0)
            del grad_cV  # or the next chunk's logits would lie beside it
        ctx.save_for_backward(dh_nH, dw_VH, db_V)
        ctx.kept = weight_VH.dtype
        ctx.mark_non_differentiable(loss)
        return scale * loss, loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dh_nH, dw_VH, db_V = ctx.saved_tensors
        factor = grads[0].to(dh_nH.dtype)
        dw_VH = None if dw_VH is None else (dw_VH * factor).to(ctx.kept)
        db_V = None if db_V is None else (db_V * factor).to(ctx.kept)
        return dh_nH * factor, dw_VH, db_V, None, None


def _chunk(
    h_cH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_c: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Summed loss in nats, and scale × its gradient for the logits, in the weight's type."""
    wide, gold_c1 = torch.promote_types(weight_VH.dtype, torch.float32), targets_c.unsqueeze(1)
    logp_cV = torch.log_softmax(linear(h_cH, weight_VH, bias_V), dim=-1, dtype=wide)
    gold_logp_c1 = logp_cV.gather(1, gold_c1)
    grad_cV = logp_cV.exp_().scatter_(1, gold_c1, gold_logp_c1.exp() - 1)
    loss = -gold_logp_c1.sum(dtype=torch.float64)
    return loss, grad_cV.mul_(scale).to(weight_VH.dtype)  # scaled before it is rounded to a half type


def position_losses(hidden_nH: Tensor, head: nn.Linear, targets_n: Tensor) -> Tensor:
    """Losses nll_n in nats, fp32 or wider; no gradient."""
    parts = []
    for part, logits_cV in logit_chunks(hidden_nH, head):
        wide = torch.promote_types(logits_cV.dtype, torch.float32)
        logp_cV = torch.log_softmax(logits_cV, dim=-1, dtype=wide)
        parts.append(-logp_cV.gather(1, targets_n[part].unsqueeze(1)).squeeze(1))
    return torch.cat(parts)


def logit_chunks(hidden_nH: Tensor, head: nn.Linear) -> Iterator[tuple[slice, Tensor]]:
    """(positions, logits_cV) chunk by chunk, in the model's type."""
    for part in _chunks(len(hidden_nH), head.weight):
        yield part, linear(hidden_nH[part], head.weight, head.bias)


def _chunks(n: int, weight_VH: Tensor) -> Iterator[slice]:
    rows = chunk_rows(weight_VH.shape[0], weight_VH.device.type)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))
