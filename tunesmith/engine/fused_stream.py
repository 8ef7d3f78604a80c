"""What the fused layers need to know of one micro-batch, made once: positions, documents, keys, who is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_WORTH_LEAVING_OUT = 0.9  # of the tokens: gathering costs something itself


@dataclass(frozen=True)
class Stream:
    """T tokens laid end to end.

    cos_TD, sin_TD: rotary tables in the stream's type. keys_T: dropout's counter, None where nothing is dropped.
    needed_n: the tokens whose last hidden state is asked for, None for (nearly) all. `dense`: every document has the
    same length, which the plan says is common enough to have kernels of its own. `fp8`: a training step whose products
    with frozen weights are fp8's.
    """

    cu_seqlens: Tensor
    max_length: int
    cos_TD: Tensor
    sin_TD: Tensor
    keys_T: Tensor | None
    needed_n: Tensor | None
    dense: bool = False
    fp8: bool = False

    @property
    def tokens(self) -> int:
        """T."""
        return self.cos_TD.shape[0]

    def after_attention(self) -> Stream:
        """The stream of needed tokens alone: what the last layer's second half works on."""
        if self.needed_n is None or self.keys_T is None:
            return self
        return replace(self, keys_T=self.keys_T.index_select(0, self.needed_n))


def needed(predicting_n: Tensor, tokens: int) -> Tensor | None:
    """`predicting_n`, or None where leaving the others out would gain nothing."""
    return predicting_n if predicting_n.shape[0] < _WORTH_LEAVING_OUT * tokens else None


def with_tail(tokens: int, width: int, tail: int, like: Tensor) -> Tensor:
    """[tokens, width + tail], uninitialised, in rows that begin at multiples of 128 bytes (64 numbers)."""
    row = -(-(width + tail) // 64) * 64 if tail else width
    return torch.empty(tokens, row, dtype=like.dtype, device=like.device)[:, : width + tail]
