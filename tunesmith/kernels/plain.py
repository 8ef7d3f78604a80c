"""What every kernel computes, in torch's own operations: the CPU's set, and the truth for Triton's.

Norms as transformers' RMSNorm: statistics in fp32, the normalised row rounded to the stream's type, then weighted.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import silu

from tunesmith.kernels.kernel_set import Drops, Kernels

FP8_LARGEST = 448.0  # of e4m3
FP8_STEP = 1 / FP8_LARGEST
FP8_LEAST = 1e-30  # the smallest size of a row: its reciprocal is still a number


def norm(
    x_TH: Tensor,
    delta_TH: Tensor | None,
    weight_H: Tensor,
    eps: float,
    total_TH: Tensor | None,
    out_TH: Tensor,
) -> None:
    """out = RMSNorm(x + delta); total = x + delta. Without delta, total stays untouched."""
    if delta_TH is not None:
        assert total_TH is not None
        torch.add(x_TH, delta_TH, out=total_TH)
        x_TH = total_TH
    out_TH.copy_(weight_H * _normed(x_TH, eps)[0].to(x_TH.dtype))


def norm_backward(
    d_TH: Tensor | None,
    x_TH: Tensor,
    weight_H: Tensor,
    eps: float,
    add_TH: Tensor | None,
    out_TH: Tensor | None,
    again_TH: Tensor | None,
) -> None:
    """out = add + dRMSNorm(x)ᵀ d (where out is given); again = RMSNorm(x), a second time (likewise)."""
    normed, rstd_T1 = _normed(x_TH, eps)
    if again_TH is not None:
        again_TH.copy_(weight_H * normed.to(x_TH.dtype))
    if out_TH is None or d_TH is None:
        return
    g = d_TH.to(normed.dtype) * weight_H.to(normed.dtype)
    dx = rstd_T1 * (g - normed * (g * normed).mean(-1, keepdim=True))
    out_TH.copy_(dx if add_TH is None else dx + add_TH)


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide * rstd, rstd


def swiglu(gate_TF: Tensor, up_TF: Tensor, out_TF: Tensor) -> None:
    """out = silu(gate) · up; out may be gate itself."""
    torch.mul(silu(gate_TF), up_TF, out=out_TF)


def swiglu_backward(gate_up_TF: Tensor, d_TF: Tensor) -> None:
    """In place: gate_up becomes its own gradient, and d (the gradient of the product) becomes the product."""
    gate, up = gate_up_TF.chunk(2, dim=-1)
    s = torch.sigmoid(gate)
    acted = gate * s
    d_gate = d_TF * up * (s + acted * (1 - s))
    d_up = d_TF * acted
    torch.mul(acted, up, out=d_TF)
    gate.copy_(d_gate)
    up.copy_(d_up)


def rotate(
    qkv_TN: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    norms_ND: Tensor | None,
    eps: float,
    heads: int,
    out_TN: Tensor,
) -> None:
    """out[:, :heads · D] = the first `heads` heads of qkv (queries, then keys), rotated; out may be qkv itself.

    Where `norms_ND` is given (Qwen 3), head n goes through an RMSNorm of weight norms[n] first.
    """
    x_TND = _heads(qkv_TN, heads, cos_TD)
    if norms_ND is not None:
        x_TND = norms_ND * _normed(x_TND, eps)[0].to(x_TND.dtype)
    turned = x_TND * cos_TD[:, None] + _quarter_turn(x_TND) * sin_TD[:, None]
    _heads(out_TN, heads, cos_TD).copy_(turned)


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
    """In place: qkv (where there are norms: as it was before them) becomes its own gradient."""
    heads = dq_TND.shape[1] + dk_TND.shape[1]
    d_TND = torch.cat([dq_TND, dk_TND], dim=1)
    back = d_TND * cos_TD[:, None] - _quarter_turn(d_TND * sin_TD[:, None])
    own_TND = _heads(qkv_TN, heads, cos_TD)
    if norms_ND is not None:
        normed, rstd = _normed(own_TND, eps)
        g = back.to(normed.dtype) * norms_ND.to(normed.dtype)
        back = rstd * (g - normed * (g * normed).mean(-1, keepdim=True))
    own_TND.copy_(back)
    first = heads * cos_TD.shape[1]
    qkv_TN[:, first : first + dv_TND[0].numel()].copy_(dv_TND.flatten(1))


def _heads(x_TN: Tensor, heads: int, cos_TD: Tensor) -> Tensor:
    return by_heads(x_TN[:, : heads * cos_TD.shape[1]], heads)


def by_heads(x_TN: Tensor, heads: int) -> Tensor:
    """[T, heads, N / heads], a view even where rows are strided."""
    return x_TN.view(len(x_TN), heads, x_TN.shape[1] // heads)


def _quarter_turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def slot_write(
    k_TKD: Tensor,
    v_TKD: Tensor,
    slots_T: Tensor,
    positions_T: Tensor,
    keys_SKLD: Tensor,
    values_SKLD: Tensor,
) -> None:
    """keys[slots[t], :, positions[t]] = k[t], values likewise: where each of T new tokens stands in a static cache."""
    keys_SKLD[slots_T, :, positions_T] = k_TKD
    values_SKLD[slots_T, :, positions_T] = v_TKD


def cross_entropy(logits_nV: Tensor, targets_n: Tensor, scale: float) -> Tensor:
    """Losses_n in nats (fp32 or wider); in place, logits become scale × the gradient of their sum."""
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    logp_nV = torch.log_softmax(logits_nV, dim=-1, dtype=wide)
    gold_n1 = logp_nV.gather(1, targets_n.unsqueeze(1))
    grad_nV = logp_nV.exp_().scatter_(1, targets_n.unsqueeze(1), gold_n1.exp() - 1)
    logits_nV.copy_(grad_nV.mul_(scale))  # scaled before it is rounded to a half type
    return -gold_n1.squeeze(1)


def lora_down(x_TK: Tensor, a_RK: Tensor, drops: Drops, scale: float, out_TR: Tensor) -> None:
    """out[:, r] = scale · drop_g(x) · a[r], g being the adapter that owns r; columns beyond the ranks become 0."""
    out_TR[:, drops.ranks[-1] :] = 0
    for g, own in enumerate(_owned(drops)):
        out_TR[:, own] = (_dropped(x_TK, drops, g) @ a_RK[own].t()).mul_(scale)


def lora_up(d_TR: Tensor, a_RK: Tensor, drops: Drops, out_TK: Tensor) -> None:
    """out += the sum over adapters g of drop_g(d_g · a_g): the way back of `lora_down`."""
    for g, own in enumerate(_owned(drops)):
        out_TK += _dropped(d_TR[:, own] @ a_RK[own], drops, g)


def lora_outer(d_TR: Tensor, x_TK: Tensor, drops: Drops) -> Tensor:
    """[R, K] in fp32 (fp64 for fp64): row r = the sum over tokens of d[t, r] · drop_g(x[t])."""
    wide = torch.promote_types(x_TK.dtype, torch.float32)
    parts = [d_TR[:, own].t() @ _dropped(x_TK, drops, g) for g, own in enumerate(_owned(drops))]
    return torch.cat(parts).to(wide)


def quantise_rows(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """(fp8 [T, K], scales [T, 1] in fp32): x ≈ fp8 · scale, each row's largest number becoming e4m3's largest.

    A row of zeros stays one. What is not finite becomes NaN, so that it is noticed.
    """
    wide_TK = x_TK.float()
    most_T1 = wide_TK.abs().amax(1, keepdim=True).clamp(min=FP8_LEAST)
    by_T1 = torch.full_like(most_T1, FP8_LARGEST) / most_T1  # a true division: 448 / x would be 448 · (1 / x)
    return (wide_TK * by_T1).to(torch.float8_e4m3fn), most_T1 * FP8_STEP


def _owned(drops: Drops) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(drops.ranks)]


def _dropped(x_TK: Tensor, drops: Drops, g: int) -> Tensor:
    return x_TK * (torch.mul(drops.keys_T.unsqueeze(1), drops.factors_GK[g]) >= drops.threshold)


PLAIN = Kernels(
    norm=norm,
    norm_backward=norm_backward,
    swiglu=swiglu,
    swiglu_backward=swiglu_backward,
    rotate=rotate,
    rotate_backward=rotate_backward,
    cross_entropy=cross_entropy,
    lora_down=lora_down,
    lora_up=lora_up,
    lora_outer=lora_outer,
    quantise_rows=quantise_rows,
    slot_write=slot_write,
)
