"""Which token comes next: the likeliest, or a draw that depends on nothing but (seed, prompt, sample, position).

The random number of a draw is a hash of these four, so that neither the other answers in the batch nor the number of
slots can change it. The hash is Chris Wellons' lowbias32 (nullprogram.com/blog/2018/07/31), chained: h ← mix(h ⊕ word).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
_SPREAD = 0x9E3779B9  # 2^32 / golden ratio: neighbouring words start far apart


def stream_key(seed: int, prompt: int, sample: int) -> int:
    """32 bits that name the random numbers of one answer."""
    key = 0
    for word in (seed, seed >> 32, prompt, sample):
        key = _mix_int(key ^ ((word + 1) * _SPREAD & _LOW))
    return key


def uniform(keys_N: Tensor, positions_N: Tensor) -> Tensor:
    """fp64 [N] in [0, 1): the draw at a position of each answer. Both int64; positions count the answer's tokens."""
    state = _mix(keys_N ^ ((positions_N + 1) * _SPREAD & _LOW))
    high, low = _mix(state ^ 0x55555555), _mix(state ^ 0x33333333)
    return ((high >> 5).double() * 2**26 + (low >> 6).double()) / 2**53


def choose(
    logits_NV: Tensor,
    temperature: float,
    top_p: float,
    keys_N: Tensor,
    positions_N: Tensor,
    held_NV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The next token of each row, int64 [N], and its ln p under the model at temperature 1, [N].

    `held_NV`: the logits with -inf at what a grammar forbids; from these the token is chosen.
    """
    if logits_NV.dtype in (torch.float16, torch.bfloat16):
        logits_NV = logits_NV.float()
    open_NV = logits_NV if held_NV is None else held_NV.to(logits_NV.dtype)
    if temperature == 0:
        chosen_N = open_NV.argmax(-1)
    else:
        heat = torch.full_like(open_NV[:1, :1], temperature)  # by a plain number CUDA divides less exactly
        chosen_N = _draw((open_NV / heat).softmax(-1), top_p, uniform(keys_N, positions_N))
    picked_N = logits_NV.gather(1, chosen_N[:, None])[:, 0]
    return chosen_N, picked_N - logits_NV.logsumexp(-1)


def choose_each(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_p_N: Tensor | None,
    keys_N: Tensor,
    positions_N: Tensor,
    held_NV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`choose` where each row has its own temperature and top_p (fp32 or fp64 [N]): the same tokens as row by row.

    top_p_N: None says that it is 1 everywhere, and saves the sorting.
    """
    if logits_NV.dtype in (torch.float16, torch.bfloat16):
        logits_NV = logits_NV.float()
    open_NV = logits_NV if held_NV is None else held_NV.to(logits_NV.dtype)
    greedy_N = temperature_N == 0
    heat_N1 = temperature_N.masked_fill(greedy_N, 1).to(open_NV.dtype)[:, None]
    nucleus = 1.0 if top_p_N is None else top_p_N.to(open_NV.dtype)[:, None]
    drawn_N = _draw((open_NV / heat_N1).softmax(-1), nucleus, uniform(keys_N, positions_N))
    chosen_N = torch.where(greedy_N, open_NV.argmax(-1), drawn_N)
    picked_N = logits_NV.gather(1, chosen_N[:, None])[:, 0]
    return chosen_N, picked_N - logits_NV.logsumexp(-1)


def bytes_a_logit(temperature: float, top_p: float) -> int:
    """Memory at most for each of an answer's logits (4 bytes or fewer) while `choose` works, a grammar's mask included.

    Counted tensor by tensor (tests/test_slots.py); a card's sort takes as much again as what it sorts.
    """
    return 16 if temperature == 0 else 36 if top_p == 1 else 64


def _draw(p_NV: Tensor, top_p: float | Tensor, uniform_N: Tensor) -> Tensor:
    """`top_p`: one for all rows, or [N, 1]."""
    if isinstance(top_p, Tensor) or top_p < 1:
        sorted_NV, order_NV = p_NV.sort(stable=True, dim=-1, descending=True)
        before_NV = sorted_NV.cumsum(-1) - sorted_NV
        kept_NV = before_NV < top_p
        if isinstance(top_p, Tensor):
            kept_NV |= top_p >= 1  # sums of roundings may reach 1 before the last token
        kept_NV[:, 0] = True  # whatever top_p is
        p_NV = torch.zeros_like(p_NV).scatter(1, order_NV, sorted_NV.where(kept_NV, 0))
    # in the order of ids, not of probability: two near ties that swap places then move no other token's share
    sums_NV = p_NV.double().cumsum(-1)
    target_N1 = uniform_N[:, None] * sums_NV[:, -1:]
    return torch.searchsorted(sums_NV, target_N1, right=True)[:, 0].clamp_(max=p_NV.shape[1] - 1)


def _mix(x: Tensor) -> Tensor:
    """lowbias32 on int64 tensors that hold 32 bits."""
    x = x ^ (x >> 16)
    x = x * _FIRST & _LOW
    x = x ^ (x >> 15)
    x = x * (_SECOND - 2**32) & _LOW  # the same product mod 2^32, without overflow of 63 bits
    return x ^ (x >> 16)


def _mix_int(x: int) -> int:
    x ^= x >> 16
    x = x * _FIRST & _LOW
    x ^= x >> 15
    x = x * _SECOND & _LOW
    return x ^ (x >> 16)
