"""Keys and values of the answers in progress: a fixed number of slots, and what attends to them.

    cache.keys[layer], cache.values[layer]   [slots, key heads, max_length, head dimension]

`Prefill` is a packed stream of whole prompts that also fills their slots; `Chunk` is a part of one long prompt;
`Decode` is one token for each of the first N slots. All are contexts of `model.attention`. What all prompts begin with
is computed once and copied into each slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.errors import OutOfRoom
from tunesmith.kernels.chosen import kernels_for
from tunesmith.model.attention import Packed, causal, flash, flash_takes

KERNEL_GROUP = 16  # query heads to a key head that the kernel takes
_TOGETHER = 16  # slots that read the cache as far as the longest of them, without a kernel of their own


def decode_kernel(device: torch.device, group: int) -> Callable[..., Tensor] | None:
    """The kernel that decodes on this device; None where torch's attention does. `group`: query heads a key head."""
    return kernels_for(device).decode_attention if group <= KERNEL_GROUP else None


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
        self._write = kernels_for(device).slot_write
        self.prefix: list[tuple[Tensor, Tensor]] = []  # of each layer, keys and values [1, K, P, D]
        shape = (slots, key_heads, max_length, head_dim)
        try:
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        except torch.OutOfMemoryError:
            size = 2 * layers * slots * key_heads * max_length * head_dim * dtype.itemsize
            raise OutOfRoom(
                f"no memory for {slots} answers of {max_length} tokens side by side ({size / 2**30:.1f} GiB)",
                fix="generate fewer side by side (evaluate.batch, predict --batch), or shorter answers (max_tokens)",
            ) from None

    def write(self, layer: int, slots_T: Tensor, positions_T: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> None:
        """Token t of the stream goes to its slot, at its position."""
        k_TKD, v_TKD = k_BKTD[0].transpose(0, 1), v_BKTD[0].transpose(0, 1)
        self._write(k_TKD, v_TKD, slots_T, positions_T, self.keys[layer], self.values[layer])

    def keep_prefix(self, length: int) -> None:
        """The first `length` tokens of slot 0 are those that all prompts begin with."""
        self.prefix = [
            (keys[:1, :, :length].clone(), values[:1, :, :length].clone())
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def begin_with_prefix(self, slots: slice) -> None:
        """Fresh slots get those tokens."""
        for (keys_1KPD, values_1KPD), keys, values in zip(self.prefix, self.keys, self.values, strict=True):
            keys[slots, :, : keys_1KPD.shape[2]] = keys_1KPD
            values[slots, :, : values_1KPD.shape[2]] = values_1KPD

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copies the first `length` tokens of slots `sources` to slots `targets`."""
        for memory in (*self.keys, *self.values):
            memory[targets, :, :length] = memory[sources, :, :length]

    def cleanse(self) -> None:
        """Takes out what is not finite: a later answer's attention multiplies what it does not see by zero."""
        for memory in (*self.keys, *self.values):
            memory.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, eq=False)
class Prefill:
    """Whole prompts in one stream [1, T], into slots that hold nothing, or the prefix that all prompts begin with."""

    cache: SlotCache
    packed: Packed
    slots_T: Tensor  # int64: the slot of every token
    positions_T: Tensor  # int64
    before: int = 0  # tokens of the prefix, which the stream leaves out

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        self.cache.write(layer, self.slots_T, self.positions_T, k_BKTD, v_BKTD)
        if not self.before:
            return self.packed.attend(layer, q_BHTD, k_BKTD, v_BKTD, scale, window)
        prefix_k, prefix_v = self.cache.prefix[layer]
        all_k = torch.cat([prefix_k, k_BKTD], dim=2)[:, :, self._key_places]
        all_v = torch.cat([prefix_v, v_BKTD], dim=2)[:, :, self._key_places]
        if flash_takes(q_BHTD):
            of_keys = (self._key_edges, self.packed.max_length + self.before)
            return flash(
                q_BHTD, all_k, all_v, self.packed.cu_seqlens, self.packed.max_length, scale, window, of_keys
            )
        lengths = self.packed.lengths
        keys, values = (x.split_with_sizes([self.before + n for n in lengths], dim=2) for x in (all_k, all_v))
        documents = zip(q_BHTD.split_with_sizes(lengths, dim=2), keys, values, strict=True)
        return torch.cat([causal(q, k, v, scale, window) for q, k, v in documents], dim=2).transpose(1, 2)

    @cached_property
    def _key_edges(self) -> Tensor:
        edges = self.packed.cu_seqlens
        return edges + self.before * torch.arange(len(edges), device=edges.device, dtype=edges.dtype)

    @cached_property
    def _key_places(self) -> Tensor:
        """Where each document's keys stand in [prefix, stream]: the prefix again for every document."""
        places, lengths = [], self.packed.lengths
        for begin, length in zip(accumulate([self.before, *lengths]), lengths, strict=False):
            places += [*range(self.before), *range(begin, begin + length)]
        return torch.tensor(places, device=self.slots_T.device)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Tokens `before` and on of the prompt in one slot, in a stream [1, T]; those before them lie in the slot."""

    cache: SlotCache
    slot: int
    before: int
    slots_T: Tensor  # int64
    positions_T: Tensor  # int64

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        self.cache.write(layer, self.slots_T, self.positions_T, k_BKTD, v_BKTD)
        count = q_BHTD.shape[2]
        end = self.before + count
        seen = slice(self.slot, self.slot + 1), slice(None), slice(end)
        keys, values = self.cache.keys[layer][seen], self.cache.values[layer][seen]
        if flash_takes(q_BHTD):
            edges, key_edges = self._edges
            return flash(q_BHTD, keys, values, edges, count, scale, window, (key_edges, end))
        return causal(q_BHTD, keys, values, scale, window).transpose(1, 2)

    @cached_property
    def _edges(self) -> tuple[Tensor, Tensor]:
        """From 0 to the number of queries, and to that of keys."""
        edge = torch.arange(2, device=self.slots_T.device, dtype=torch.int32)
        return edge * len(self.slots_T), edge * (self.before + len(self.slots_T))


@dataclass(frozen=True, eq=False)
class Decode:
    """One token for each of the slots 0 to N-1, in a stream [1, N]."""

    cache: SlotCache
    positions_N: Tensor  # int64: where each slot's token stands, which is the number of tokens before it
    lengths: Sequence[int] = ()
    """The same on the host, for the path without a kernel: how far it reads."""
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        count, key_heads, head_dim = q_BHTD.shape[2], k_BKTD.shape[1], q_BHTD.shape[3]
        self.cache.write(layer, self._slots_N, self.positions_N, k_BKTD, v_BKTD)
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        kernel = decode_kernel(q_BHTD.device, q_BHTD.shape[1] // key_heads)
        if kernel is not None:
            output_NHD = kernel(q_BHTD[0].transpose(0, 1), keys, values, self.positions_N, scale, window)
            return output_NHD[None]
        # the query heads that share a key head stand where sdpa expects query positions: nothing is expanded
        q_NKGD = q_BHTD[0].transpose(0, 1).reshape(count, key_heads, -1, head_dim)
        parts = [
            scaled_dot_product_attention(
                q_NKGD[begin:end], keys[begin:end, :, :longest], values[begin:end, :, :longest],
                attn_mask=self._mask(begin, end, longest, window, q_BHTD.dtype), scale=scale,
            )
            for begin, end, longest in self._groups(count)
        ]  # fmt: skip
        return torch.cat(parts).reshape(1, count, -1, head_dim)

    @cached_property
    def _slots_N(self) -> Tensor:
        return torch.arange(len(self.positions_N), device=self.positions_N.device)

    def _groups(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Neighbouring slots, and how far the longest of them reads."""
        step = _TOGETHER if self.positions_N.device.type == "cpu" else count
        for begin in range(0, count, step):
            end = min(begin + step, count)
            yield begin, end, max(self.lengths[begin:end]) + 1

    def _mask(self, begin: int, end: int, longest: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[N, 1, 1, longest]: 0 at the cached positions that a token sees, -inf elsewhere; made once for all layers."""
        if (begin, window) not in self._masks:
            positions_N = self.positions_N[begin:end]
            distance_NL = positions_N[:, None] - torch.arange(longest, device=positions_N.device)
            hidden_NL = distance_NL < 0
            if window is not None:
                hidden_NL |= distance_NL >= window
            mask_NL = torch.zeros(hidden_NL.shape, dtype=dtype, device=hidden_NL.device)
            self._masks[begin, window] = mask_NL.masked_fill_(hidden_NL, float("-inf"))[:, None, None]
        return self._masks[begin, window]
