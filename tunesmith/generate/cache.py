"""Keys and values of the answers in progress: a fixed number of slots, and what attends to them.

    cache.keys[layer], cache.values[layer]   [slots, key heads, max_length, head dimension]

`Prefill` is a packed stream of whole prompts that also fills their slots; `Decode` is one token for each of the first
N slots. Both are contexts of `model.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.errors import OutOfRoom
from tunesmith.model.attention import Packed


class SlotCache:
    """Static memory for `slots` answers of at most `max_length` tokens, their prompts included."""

    def __init__(
        self,
        layers: int,
        slots: int,
        key_heads: int,
        max_length: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (slots, key_heads, max_length, head_dim)
        try:
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        except torch.OutOfMemoryError:
            size = 2 * layers * slots * key_heads * max_length * head_dim * dtype.itemsize
            raise OutOfRoom(
                f"no memory for {slots} answers of {max_length} tokens side by side ({size / 2**30:.1f} GiB)",
                fix="generate fewer side by side (evaluate.batch), or shorter answers (evaluate.decoding.max_tokens)",
            ) from None

    def write(self, layer: int, slots_T: Tensor, positions_T: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> None:
        """Token t of the stream goes to its slot, at its position."""
        self.keys[layer][slots_T, :, positions_T] = k_BKTD[0].transpose(0, 1)
        self.values[layer][slots_T, :, positions_T] = v_BKTD[0].transpose(0, 1)

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copies the first `length` tokens of slots `sources` to slots `targets`."""
        for memory in (*self.keys, *self.values):
            memory[targets, :, :length] = memory[sources, :, :length]


@dataclass(frozen=True, eq=False)
class Prefill:
    """Whole prompts in one stream [1, T], into slots that were empty."""

    cache: SlotCache
    packed: Packed
    slots_T: Tensor  # int64: the slot of every token
    positions_T: Tensor  # int64

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        self.cache.write(layer, self.slots_T, self.positions_T, k_BKTD, v_BKTD)
        return self.packed.attend(layer, q_BHTD, k_BKTD, v_BKTD, scale, window)


@dataclass(frozen=True, eq=False)
class Decode:
    """One token for each of the slots 0 to N-1, in a stream [1, N]."""

    cache: SlotCache
    positions_N: Tensor  # int64: where each slot's token stands, which is the number of tokens before it
    longest: int  # the largest of them + 1: attention reads no further
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        count, key_heads, head_dim = q_BHTD.shape[2], k_BKTD.shape[1], q_BHTD.shape[3]
        slots = torch.arange(count, device=q_BHTD.device)
        self.cache.write(layer, slots, self.positions_N, k_BKTD, v_BKTD)
        keys_NKLD = self.cache.keys[layer][:count, :, : self.longest]
        values_NKLD = self.cache.values[layer][:count, :, : self.longest]
        # the query heads that share a key head stand where sdpa expects query positions: nothing is expanded
        q_NKGD = q_BHTD[0].transpose(0, 1).reshape(count, key_heads, -1, head_dim)
        output_NKGD = scaled_dot_product_attention(
            q_NKGD, keys_NKLD, values_NKLD, attn_mask=self._mask(window, q_BHTD.dtype), scale=scale
        )
        return output_NKGD.reshape(1, count, -1, head_dim)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[N, 1, 1, longest]: 0 at the cached positions that a token sees, -inf elsewhere; made once for all layers."""
        if window not in self._masks:
            distance_NL = self.positions_N[:, None] - torch.arange(
                self.longest, device=self.positions_N.device
            )
            hidden_NL = distance_NL < 0
            if window is not None:
                hidden_NL |= distance_NL >= window
            mask_NL = torch.zeros(hidden_NL.shape, dtype=dtype, device=hidden_NL.device)
            self._masks[window] = mask_NL.masked_fill_(hidden_NL, float("-inf"))[:, None, None]
        return self._masks[window]
