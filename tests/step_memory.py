"""What a step of an engine allocates on a card, counted without one: the engine itself on meta tensors.

Every storage is counted from the operation that makes it until nobody holds it, rounded up to 512 bytes as torch's
CUDA allocator does. Meta tensors have sizes and no numbers, so the shapes are those of real models. What a card's
kernels do otherwise than torch's own operations stands here: Triton's work in place, flash attention's backward has
buffers of its own, products of two narrow matrices come in fp32. cuBLAS's workspaces are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tunesmith.engine import fused, fused_host, fused_layer, fused_weights, reference
from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_attention import Attended, Heads
from tunesmith.engine.plan import MicroBatchPlan
from tunesmith.engine.protocol import PackedBatch, pack_sequences
from tunesmith.kernels import plain
from tunesmith.kernels.kernel_set import Drops
from tunesmith.model import attention, dropout, lora
from tunesmith.model.attention import register
from tunesmith.model.lora import adapters, add_lora, linears
from tunesmith.model.weights import FrozenLinear, FrozenWeight, Int8, Nf4
from tunesmith.recipe import Recipe

ROUND = 512
WIDEST = 64  # ranks that Triton's narrow products take (kernels/lora.py)


class Counted(TorchDispatchMode):
    """Bytes of all meta storages alive: `now`, and the most since `restart`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        self._elsewhere = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known or storage.nbytes() == 0:
            return
        if self._elsewhere:
            self._known.add(key)
            weakref.finalize(storage, self._known.discard, key)
            return
        size = -(-storage.nbytes() // ROUND) * ROUND
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def host(self, like: Tensor) -> Tensor:
        """Memory of this shape that is the host's, not the card's."""
        self._elsewhere = True
        made = torch.empty(like.shape, dtype=like.dtype, device="meta")
        self._elsewhere = False
        return made

    def restart(self) -> None:
        """From here on a new peak."""
        self.peak = self.now


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Within, engines can be built of meta tensors, and what they allocate is counted."""
    monkeypatch.setattr(fused, "kernels_for", lambda device: KERNELS)
    monkeypatch.setattr(fused_layer, "attend", _attend)
    monkeypatch.setattr(fused_layer, "attend_backward", _attend_backward)
    monkeypatch.setattr(fused_weights, "wide_product", _wide_product)
    # these compare numbers, of which there are none
    monkeypatch.setattr(reference.ReferenceEngine, "_require_plain_head", lambda engine: None)
    monkeypatch.setattr(FusedEngine, "_require_equal_layers", lambda engine: None)
    monkeypatch.setattr(lora.LoraLinear, "initialize", lambda adapter, seed: None)
    monkeypatch.setattr(fused, "token_keys", lambda seed, step, rows, positions: positions.to(torch.int32))
    monkeypatch.setattr(
        reference, "token_keys", lambda seed, step, rows, positions: positions.to(torch.int32)
    )
    monkeypatch.setattr(
        attention.Packed, "attend", lambda packed, n, q, k, v, *more: _Attention.apply(q, k, v)
    )
    monkeypatch.setattr(dropout, "_kernel", lambda x: lambda x, out, *more: out)
    monkeypatch.setattr(
        Nf4, "dequantize", lambda weight, kind: torch.empty(weight.shape, dtype=kind, device="meta")
    )
    counted = Counted()
    monkeypatch.setattr(fused_host.Courier, "host", lambda courier, like: counted.host(like))
    monkeypatch.setattr(fused_host.Outer, "embed", _embed)
    with counted:
        yield counted


def engine_of(config: dict[str, Any], recipe: Recipe) -> FusedEngine:
    """A fused engine over a model without numbers."""
    model = _model(config, recipe)
    made = FusedEngine(model, recipe)
    made.body.rotary_emb.forward = lambda like, positions: _tables(like, positions, made.layers[0].width)
    return made


def reference_of(config: dict[str, Any], recipe: Recipe) -> reference.ReferenceEngine:
    """The reference engine over a model without numbers."""
    made = reference.ReferenceEngine(_model(config, recipe), recipe)
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    made.body.rotary_emb.forward = lambda like, position_ids: _tables(like, position_ids, width)
    return made


def batch_of(lengths: Sequence[int], learned: float = 1.0) -> PackedBatch:
    """Rows whose last `learned` share is learned."""
    masks = [[t >= n * (1 - learned) for t in range(n)] for n in lengths]
    return pack_sequences([[1] * n for n in lengths], masks, range(len(lengths)), 1)


def peak_of(
    counted: Counted,
    engine: reference.ReferenceEngine,
    plan: MicroBatchPlan,
    batch: PackedBatch,
    optimizer: int,
) -> int:
    """Bytes at the peak of a step under the plan, beside an optimiser state of so many bytes."""
    engine.use(plan)
    state = torch.empty(optimizer, dtype=torch.uint8, device="meta")
    engine.step(batch, 1.0)  # what is made once and kept
    counted.restart()
    engine.step(batch, 1.0)
    del state
    return counted.peak


def _model(config: dict[str, Any], recipe: Recipe) -> PreTrainedModel:
    kind = config["model_type"]
    made = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            made, attn_implementation=register(), dtype=getattr(torch, recipe.model.dtype)
        )
    model.tie_weights()
    if recipe.model.quantize != "none":
        for name in linears(model):
            linear = model.get_submodule(name)
            parent, _, leaf = name.rpartition(".")
            assert isinstance(linear, nn.Linear)
            frozen = FrozenLinear(_quantized(linear, recipe.model.quantize), linear.bias)
            setattr(model.get_submodule(parent), leaf, frozen)
    add_lora(model, recipe.tune, 0)
    for adapter in adapters(model):  # made on the CPU, and here small
        adapter.factors = adapter.factors.to("meta")
    return model


def _quantized(linear: nn.Linear, how: str) -> FrozenWeight:
    out, into = linear.weight.shape

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    if how == "int8":
        return Int8(empty(out, into, dtype=torch.int8), empty(out, dtype=torch.float32))
    scales = out * into // 64
    nested = (
        empty(-(-scales // 256), dtype=torch.float32),
        empty(256, dtype=torch.float32),
        empty(dtype=torch.float32),
    )
    packed = empty(out * into // 2, 1, dtype=torch.uint8)
    return Nf4(packed, (out, into), empty(scales, dtype=torch.uint8), nested)


# ---- what a card does otherwise than torch's operations


def _attend(heads: Heads, stream: Any, scale: float, window: int | None) -> Attended:
    q = heads.q
    lse = torch.empty(q.shape[1], len(q), dtype=torch.float32, device=q.device)
    return Attended(torch.empty(len(q), q.shape[1] * q.shape[2], dtype=q.dtype, device=q.device), (lse,))


def _attend_backward(
    d: Tensor, heads: Heads, attended: Attended, stream: Any, scale: float, window: int | None
) -> Heads:
    """As FlashAttention 2: sums of dq in fp32, dk and dv of all heads before those of a group are added."""
    q, k, _ = heads
    tokens = len(q) + 128 * (len(stream.cu_seqlens) - 1)
    wide = torch.empty(tokens, q.shape[1], q.shape[2], dtype=torch.float32, device=q.device)
    sums = torch.empty(q.shape[1], tokens, dtype=torch.float32, device=q.device)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in heads)
    if k.shape[1] < q.shape[1]:
        each = [torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(2)]
        del each
    del wide, sums
    return Heads(dq, dk, dv)


class _Attention(torch.autograd.Function):
    """The same through autograd, q, k and v as [1, heads, T, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, heads, tokens, width = q.shape
        lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
        o = torch.empty(1, tokens, heads, width, dtype=q.dtype, device=q.device)
        ctx.save_for_backward(q, k, v, o, lse)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        wide = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        found = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        if k.shape[1] < q.shape[1]:
            each = [torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(2)]
            del each
        del wide
        return found


def _embed(outer: fused_host.Outer, ids: Tensor, host_ids: Tensor) -> Tensor:
    return torch.empty(len(ids), outer._embedding.weight.shape[1], dtype=torch.bfloat16, device="meta")


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.empty(a.shape[0], b.shape[1], dtype=torch.float32, device=a.device)


def _nothing(*arguments: Any) -> None:
    """A kernel that writes into what it is given."""


def _rotate_backward(dq: Tensor, dk: Tensor, dv: Tensor, *more: Any) -> None:
    dv.flatten(1)


def _cross_entropy(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    return torch.empty(len(logits), dtype=torch.float32, device=logits.device)


def _one_rank(drops: Drops) -> bool:
    rank = drops.ranks[1]
    return rank <= WIDEST and len(drops.ranks) <= 4


def _lora_down(x: Tensor, a: Tensor, drops: Drops, scale: float, out: Tensor) -> None:
    if not _one_rank(drops):
        plain.lora_down(x, a, drops, scale, out)


def _lora_up(d: Tensor, a: Tensor, drops: Drops, out: Tensor) -> None:
    if not _one_rank(drops):
        plain.lora_up(d, a, drops, out)


def _lora_outer(d: Tensor, x: Tensor, drops: Drops) -> Tensor:
    if not _one_rank(drops):
        return plain.lora_outer(d, x, drops)
    columns = -(-x.shape[1] // 128)
    pieces = max(1, min(-(-len(x) // 64), -(-264 // columns)))
    parts = torch.empty(pieces, drops.ranks[-1], x.shape[1], dtype=torch.float32, device=x.device)
    return parts.sum(0) if pieces > 1 else parts[0]


KERNELS = replace(
    plain.PLAIN, norm=_nothing, norm_backward=_nothing, swiglu=_nothing, swiglu_backward=_nothing, rotate=_nothing,
    rotate_backward=_rotate_backward, cross_entropy=_cross_entropy, lora_down=_lora_down, lora_up=_lora_up,
    lora_outer=_lora_outer, nf4_image=_nothing,
)  # fmt: skip


def _tables(like: Tensor, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    made = [torch.empty(*positions.shape, width, dtype=like.dtype, device=like.device) for _ in range(2)]
    return made[0], made[1]
