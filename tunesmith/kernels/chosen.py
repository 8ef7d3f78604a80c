"""Which set of kernels serves a device: Triton's on CUDA, torch's own operations elsewhere."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

from tunesmith.kernels.kernel_set import Kernels


def kernels_for(device: torch.device) -> Kernels:
    """Triton's on CUDA where triton is installed, else plain ones."""
    if device.type == "cuda" and has_triton():
        from tunesmith.kernels.on_gpu import TRITON

        return TRITON
    from tunesmith.kernels.plain import PLAIN

    return PLAIN


@cache
def has_triton() -> bool:
    """torch's CUDA wheels bring it on Linux."""
    return importlib.util.find_spec("triton") is not None
