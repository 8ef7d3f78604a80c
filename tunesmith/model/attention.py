"""The one attention seam: training, prefill and decode go through transformers' public attention registry to here.

A model built with `attn_implementation=ATTENTION` must be called as

    model(input_ids=ids_1T, position_ids=positions_1T, use_cache=False, attention=context)

The context knows which tokens see which: `Packed` (documents one after another in one stream), `Padded` (a
rectangle) and the generator's contexts over its slot cache. Nothing ever builds a T×T mask: transformers makes none for
an implementation whose name isn't in its mask registry, and `attend` refuses one.

A query sees the keys of its own document at its own position and before; with a sliding window of w only the last
w of these, its own included (transformers' meaning of `sliding_window`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig

from tunesmith.errors import ModelError

ATTENTION = "tunesmith"


class Attention(Protocol):
    """What one forward pass needs to know of its stream."""

    def attend(
        self,
        layer: int,
        q_BHTD: Tensor,
        k_BKTD: Tensor,
        v_BKTD: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Attention output [B, T, H, D]; H query heads share K key heads in runs of H / K."""
        ...


@dataclass(frozen=True, eq=False)
class Packed:
    """Documents one after another in one stream [1, T]; document r is tokens cu_seqlens[r] to cu_seqlens[r+1]."""

    cu_seqlens: Tensor  # int32 [R+1], on the model's device, from 0 to T
    max_length: int  # of the longest document

    @cached_property
    def lengths(self) -> list[int]:
        """Of every document, on the host: one synchronisation for all layers."""
        lengths: list[int] = self.cu_seqlens.diff().tolist()
        return lengths

    def attend(
        self,
        layer: int,
        q_BHTD: Tensor,
        k_BKTD: Tensor,
        v_BKTD: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        if q_BHTD.shape[0] != 1:
            raise ValueError(f"a packed stream is one row, not {q_BHTD.shape[0]}; see Padded for rectangles")
        if flash_takes(q_BHTD):
            return flash(q_BHTD, k_BKTD, v_BKTD, self.cu_seqlens, self.max_length, scale, window)
        if sum(self.lengths) != q_BHTD.shape[2]:
            raise ValueError(f"the documents have {sum(self.lengths)} tokens, the stream {q_BHTD.shape[2]}")
        documents = zip(
            *(x.split_with_sizes(self.lengths, dim=2) for x in (q_BHTD, k_BKTD, v_BKTD)),
            strict=True,
        )
        return torch.cat([causal(q, k, v, scale, window) for q, k, v in documents], dim=2).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Padded:
    """Rows [R, L] padded on the right: causality alone keeps tokens from the padding, whose own output is noise."""

    lengths: Tensor  # int64 [R]

    def attend(
        self,
        layer: int,
        q_BHTD: Tensor,
        k_BKTD: Tensor,
        v_BKTD: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        if q_BHTD.shape[0] != len(self.lengths):
            raise ValueError(f"{len(self.lengths)} lengths for {q_BHTD.shape[0]} rows")
        return causal(q_BHTD, k_BKTD, v_BKTD, scale, window).transpose(1, 2)


def register() -> str:
    """Make ATTENTION known to transformers (again is harmless); returns the name for `attn_implementation`."""
    AttentionInterface.register(ATTENTION, attend)
    return ATTENTION


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    attention: Attention | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention modules call: query [B, H, T, D], key and value [B, K, T, D].

    Returns the output [B, T, H, D] and no weights. Whatever would change the result but isn't computed here is refused.
    """
    if attention is None:
        raise TypeError("the model was called without `attention=`: no document limits, no result")
    if attention_mask is not None:
        raise TypeError(
            "document limits come from `attention=` alone; call the model without an attention_mask"
        )
    if query.shape[2] != key.shape[2]:
        raise TypeError("keys came from a transformers cache; call the model with use_cache=False")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise ModelError("attention that looks ahead can't be trained or served as a causal language model")
    for name in ("softcap", "s_aux"):
        if others.get(name) is not None:
            raise ModelError(f"{type(module).__name__} uses {name} in its attention, which tunesmith lacks")
    if dropout > 0:
        raise ModelError(
            f"attention dropout {dropout} is not supported",
            where="config.json: attention_dropout",
            fix="set it to 0.0",
        )
    layer = module.layer_idx
    assert isinstance(layer, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention.attend(layer, query, key, value, scale, sliding_window), None


def head_shape(config: PreTrainedConfig) -> tuple[int, int]:
    """(key heads, head dimension) of a model's attention."""
    heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(getattr(config, "num_key_value_heads", None) or heads), int(head_dim)


def causal(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float, window: int | None) -> Tensor:
    """Causal attention within each row, [B, H, T, D]; exact in fp32 and fp64. Keys may begin before the queries."""
    if q_BHTD.is_cuda:  # torch's fused CUDA kernels for these types take no grouped heads
        groups = q_BHTD.shape[1] // k_BKTD.shape[1]
        k_BKTD, v_BKTD = (x.repeat_interleave(groups, dim=1) for x in (k_BKTD, v_BKTD))
    length, before = q_BHTD.shape[2], k_BKTD.shape[2] - q_BHTD.shape[2]
    grouped = q_BHTD.shape[1] != k_BKTD.shape[1]
    if not before and (window is None or length <= window):
        return scaled_dot_product_attention(
            q_BHTD, k_BKTD, v_BKTD, is_causal=True, scale=scale, enable_gqa=grouped
        )
    position = torch.arange(before + length, device=q_BHTD.device)
    distance_TT = position[before:, None] - position
    seen_TT = distance_TT >= 0
    if window is not None:
        seen_TT &= distance_TT < window
    return scaled_dot_product_attention(
        q_BHTD, k_BKTD, v_BKTD, attn_mask=seen_TT, scale=scale, enable_gqa=grouped
    )


@cache
def _has_flash(device_index: int) -> bool:
    return torch.cuda.get_device_capability(device_index) >= (8, 0)


def flash_takes(x_BHTD: Tensor) -> bool:
    head_dim = x_BHTD.shape[-1]
    return (
        x_BHTD.is_cuda
        and x_BHTD.dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= 256
        and _has_flash(x_BHTD.device.index)
    )


def flash(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scale: float,
    window: int | None,
    of_keys: tuple[Tensor, int] | None = None,
) -> Tensor:
    """torch's own flash varlen kernel: grouped heads, windows, autograd (derivative registered with the op).

    `of_keys`: cu_seqlens and max_length of the keys, where a document's keys begin before its queries; a query then
    stands as far from the end as its key does.
    """
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (q_BHTD, k_BKTD, v_BKTD))
    left, right = (-1, -1) if window is None else (window - 1, 0)
    key_edges, longest_key = of_keys or (cu_seqlens, max_length)
    output = torch.ops.aten._flash_attention_forward(
        q_THD,
        k_TKD,
        v_TKD,
        cu_seqlens,
        key_edges,
        max_length,
        longest_key,
        0.0,  # dropout
        window is None,  # causal; a window ends at the query itself, as torch.nn.attention.varlen passes it
        False,  # debug mask
        scale=scale,
        window_size_left=left,
        window_size_right=right,
    )[0]
    result: Tensor = output[None]
    return result
