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
from collections.abc import Iterator
from contextlib import contextmanager

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


def drop(x_TF: Tensor, kept_TF: Tensor) -> Tensor:
    """x where it is kept, 0 elsewhere; unscaled."""
    if x_TF.dtype == torch.float32 and kept_TF.dtype == torch.int32:
        # a float's bits times 0 or 1 are its bits or none: no conversion of the mask, a third of the time
        return torch.mul(x_TF.view(torch.int32), kept_TF).view(torch.float32)
    return x_TF * kept_TF


def drop_(x_TF: Tensor, kept_TF: Tensor) -> Tensor:
    """The same in place."""
    if x_TF.dtype == torch.float32 and kept_TF.dtype == torch.int32:
        x_TF.view(torch.int32).mul_(kept_TF)
        return x_TF
    return x_TF.mul_(kept_TF)


def _odd_high32(z: Tensor) -> Tensor:
    return (z >> 32).to(torch.int32) | 1


def _signed(z: int) -> int:
    z %= 1 << 64
    return z - (1 << 64) if z >= 1 << 63 else z
