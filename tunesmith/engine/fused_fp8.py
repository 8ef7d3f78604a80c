"""Products with frozen weights in fp8 (e4m3), for training steps alone: inexact, and about twice as fast.

    y = (x8 · W8ᵀ) · sx · sw          dx = (dy8 · W8T ᵀ) · sd · sk          accumulated in fp32, given in bf16

Activations and gradients get a scale a token, fresh in each product: nothing depends on what came before. Weights get
one an output channel; the way back has a transposed copy with a scale an input channel, because the tensor cores read
both factors along the sum. T tokens, N outputs, K inputs.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tunesmith.kernels.kernel_set import Kernels

SIZES = 16  # N and K are multiples of it


class Fp8Weights:
    """The fp8 copies of one weight [N, K], both ways round."""

    def __init__(self, weight_NK: Tensor, kernels: Kernels) -> None:
        self._kernels = kernels
        self.forward_copy = kernels.quantise_rows(weight_NK)
        self.backward_copy = kernels.quantise_rows(weight_NK.t().contiguous())

    def forward(self, x_TK: Tensor, out_TN: Tensor) -> Tensor:
        """out = x Wᵀ."""
        return product(self._kernels.quantise_rows(x_TK), self.forward_copy, out_TN)

    def input_gradient(self, d_TN: Tensor) -> Tensor:
        """dx [T, K] = dy W."""
        out_TK = d_TN.new_empty(len(d_TN), len(self.backward_copy[0]))
        return product(self._kernels.quantise_rows(d_TN), self.backward_copy, out_TK)


def product(x: tuple[Tensor, Tensor], w: tuple[Tensor, Tensor], out_TN: Tensor) -> Tensor:
    """out = (x8 · w8ᵀ) · scales, rounded once; x8 [T, K] and w8 [N, K] with a scale a row each."""
    (x8_TK, x_T1), (w8_NK, w_N1) = x, w
    if not x8_TK.is_cuda:
        return out_TN.copy_((x8_TK.float() @ w8_NK.float().t()) * x_T1 * w_N1.t())
    strided = not out_TN.is_contiguous() and not _keeps_strides(x8_TK.device)
    into = out_TN.new_empty(out_TN.shape) if strided else out_TN
    torch._scaled_mm(
        x8_TK, w8_NK.t(), x_T1, w_N1.t(), out_dtype=out_TN.dtype, use_fast_accum=True, out=into
    )  # fmt: skip
    return out_TN.copy_(into) if strided else out_TN


@cache
def _keeps_strides(device: torch.device) -> bool:
    """Whether torch gives this product to cuBLAS, which writes into strided rows; its own kernels would not."""
    version = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    return torch.cuda.get_device_capability(device)[0] == 9 and version >= (12, 9)
