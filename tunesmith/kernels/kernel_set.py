"""What a set of kernels offers. `plain.py` (torch's own operations) says what each means.

T tokens, H hidden, F the feed-forward's width, R ranks of the adapters that share an input, V vocabulary. Rows may be
strided (a tail may lie behind them); a row's numbers lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Drops(NamedTuple):
    """Dropout of the inputs of G adapters over one x_TK: number j of token t is dropped for adapter g where
    int32(keys[t] · factors[g, j]) < threshold; adapter g owns ranks[g] : ranks[g + 1] of the R."""

    keys_T: Tensor
    factors_GK: Tensor
    threshold: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Kernels:
    """One set. What each computes stands in `plain.py`, function by function."""

    norm: Callable[..., None]
    norm_backward: Callable[..., None]
    swiglu: Callable[..., None]
    swiglu_backward: Callable[..., None]
    rotate: Callable[..., None]
    rotate_backward: Callable[..., None]
    cross_entropy: Callable[..., Tensor]
    lora_down: Callable[..., None]
    lora_up: Callable[..., None]
    lora_outer: Callable[..., Tensor]
    quantise_rows: Callable[..., tuple[Tensor, Tensor]]
    slot_write: Callable[..., None]
    nf4_image: Callable[..., None] | None = None
    decode_attention: Callable[..., Tensor] | None = None
