"""Dropout as a counter: what is kept is a function of names and numbers, never of a generator's state.

A number x[t, j] at the input of a module is dropped in training iff

    int32(key[t] · factor[j])  <  round(p · 2³²) − 2³¹          (32-bit product, wrapped; signed comparison)

    key[t]    = high32(m(m(m(m(seed) + step) + row) + position)) | 1        one per token and step
    factor[j] = high32(m(name + j)) | 1                                     one per module and feature
    m(z)      = SplitMix64's step: z += 9E3779B97F4A7C15; z = (z ^ z>>>30) · BF58476D1CE4E5B9;
                z = (z ^ z>>>27) · 94D049BB133111EB; z ^ z>>>31             (all modulo 2⁶⁴)
    name      = the first 8 bytes of sha256(module name), little-endian, then m

`row` is the row's number in the data set and `position` the token's in its row, so packing, padding, micro-batches,
recomputation, resuming and the number of GPUs can't change a mask; CPU, CUDA and Triton give the same bits. What is
kept is scaled by 1 / (1 − p). Multiply-shift hashing (Dietzfelbinger et al. 1997) makes masks of two features pairwise
independent over the keys, and SplitMix64 (Steele et al. 2014) makes the keys independent over tokens; one product a
number is what keeps it cheap where no kernel fuses it.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(z: Tensor) -> Tensor:
    """m of i64 tensors, element by element (i64 arithmetic wraps; shifts are made logical by a mask)."""
    z = z + _signed(_GOLDEN)
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _signed(_FIRST)
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _signed(_SECOND)
    return z ^ (z >> 31 & (1 << 33) - 1)


def named(name: str) -> Tensor:
    """The 64 bits that stand for a module's name; i64, 0-d, CPU."""
    return mix(torch.tensor(_signed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))))


def token_keys(seed: int, step: int, rows_T: Tensor, positions_T: Tensor) -> Tensor:
    """key_T (i32, odd) of tokens `positions_T` (i64) in rows `rows_T` (i64), both on one device."""
    start = mix(mix(torch.tensor(_signed(seed))) + step)
    return _odd_high32(mix(mix(rows_T + int(start)) + positions_T))


def feature_factors(name: str, features: int) -> Tensor:
    """factor_F (i32, odd) of a module; on the CPU."""
    return _odd_high32(mix(named(name) + torch.arange(features)))


class Dropout:
    """One for all adapters of a model. Outside `draws` nothing is dropped."""

    def __init__(self, p: float) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"dropout {p} is not in [0, 1)")
        self.p = p
        self.threshold = round(p * 2**32) - 2**31
        self.keys: Tensor | None = None

    @contextmanager
    def draws(self, keys_T: Tensor) -> Iterator[None]:
        """Within, tokens of the stream are dropped by `keys_T`; backward (recomputation) must lie within too."""
        self.keys = keys_T if self.p > 0 else None
        try:
            yield
        finally:
            self.keys = None


def keep_mask(keys_T: Tensor, factors_F: Tensor, threshold: int) -> Tensor:
    """[T, F] that is 1 where a number is kept and 0 where it is dropped: i32 on a CPU, bool elsewhere."""
    hashed = torch.mul(keys_T.unsqueeze(1), factors_F)
    # on a CPU a comparison in place is eight times as fast as one into bool; on CUDA bool is a quarter of the traffic
    return hashed.ge_(threshold) if hashed.device.type == "cpu" else hashed >= threshold


class Mask:
    """What one module drops of a stream; drawn when it is used, and by a kernel never stored."""

    def __init__(self, keys_T: Tensor, factors_F: Tensor, threshold: int) -> None:
        self.drawn_from = keys_T, factors_F, threshold

    @cached_property
    def kept(self) -> Tensor:
        """See `keep_mask`."""
        return keep_mask(*self.drawn_from)

    def drop(self, x_TF: Tensor) -> Tensor:
        """x where it is kept, 0 elsewhere; unscaled."""
        if kernel := _kernel(x_TF):
            return kernel(x_TF, torch.empty_like(x_TF), *self.drawn_from)
        if x_TF.dtype == torch.float32 and self.kept.dtype == torch.int32:
            # a float's bits times 0 or 1 are its bits or none: no conversion of the mask, a third of the time
            return torch.mul(x_TF.view(torch.int32), self.kept).view(torch.float32)
        return x_TF * self.kept

    def drop_(self, x_TF: Tensor) -> Tensor:
        """The same in place."""
        if kernel := _kernel(x_TF):
            return kernel(x_TF, x_TF, *self.drawn_from)
        if x_TF.dtype == torch.float32 and self.kept.dtype == torch.int32:
            x_TF.view(torch.int32).mul_(self.kept)
            return x_TF
        return x_TF.mul_(self.kept)


def _kernel(x_TF: Tensor) -> Callable[..., Tensor] | None:
    """One pass instead of three on CUDA, where triton is installed (torch's CUDA wheels bring it on Linux)."""
    if not x_TF.is_cuda or x_TF.stride(1) != 1 or not _has_triton():
        return None
    from tunesmith.kernels.dropout import drop

    return drop


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _odd_high32(z: Tensor) -> Tensor:
    return (z >> 32).to(torch.int32) | 1


def _signed(z: int) -> int:
    z %= 1 << 64
    return z - (1 << 64) if z >= 1 << 63 else z
